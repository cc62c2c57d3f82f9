"""Learning curves as arrays: read between evaluations, never beyond them."""

from __future__ import annotations

import numpy as np

from allotment.types import FloatArray


def value_at(x_E: FloatArray, y_E: FloatArray, x: float) -> float | None:
    """The curve at ``x``, linear between evaluations; None outside [x_E[0], x_E[-1]].

    Args:
        x_E: rollouts, tokens or seconds so far, ascending; [E].
        y_E: success probability; [E].
        x: in the unit of ``x_E``.
    """
    if len(x_E) == 0 or not x_E[0] <= x <= x_E[-1]:
        return None
    return float(np.interp(x, x_E, y_E))


def difference_at_common_end(
    x_E: FloatArray, y_E: FloatArray, other_x_F: FloatArray, other_y_F: FloatArray
) -> tuple[float, float] | None:
    """``(x, first minus second curve)`` at the largest ``x`` that both reached; None where they do not overlap."""
    if len(x_E) == 0 or len(other_x_F) == 0:
        return None
    x = min(float(x_E[-1]), float(other_x_F[-1]))
    own, other = value_at(x_E, y_E, x), value_at(other_x_F, other_y_F, x)
    return None if own is None or other is None else (x, own - other)


def first_reach(x_E: FloatArray, y_E: FloatArray, target: float) -> float | None:
    """The smallest ``x`` at which the curve is at ``target`` or above, linear between evaluations; None if nowhere."""
    above = np.flatnonzero(y_E >= target)
    if len(above) == 0:
        return None
    after = int(above[0])
    if after == 0:
        return float(x_E[0])
    share = (target - y_E[after - 1]) / (y_E[after] - y_E[after - 1])
    return float(x_E[after - 1] + share * (x_E[after] - x_E[after - 1]))
