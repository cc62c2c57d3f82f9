"""What a planner is told of a rollout: whether it is right where verl's reward manager says so, else its score."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from allotment.planning import Planner, Uniform
from allotment.planning.success import SuccessPlanner
from allotment.types import FloatArray

log = logging.getLogger("allotment")


def told_rewards(scores_N: FloatArray, extras: Sequence[Any], key: str | None) -> FloatArray:
    """[N] the entry ``key`` of each rollout's ``reward_extra_info``, a share of 1; its score where there is none.

    Args:
        scores_N: [N] what verl trains on.
        extras: [N] verl's ``extra_fields``; none at all where they are not known.
        key: of ``reward_extra_info``; None: scores.
    """
    told_N = scores_N.copy()
    for row, extra in enumerate(extras if key is not None else ()):
        info = extra.get("reward_extra_info") if isinstance(extra, Mapping) else None
        value = _number(info.get(key)) if isinstance(info, Mapping) else None
        if value is not None and 0 <= value <= 1:
            told_N[row] = value
    return told_N


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def warn_of_rewards(told_N: FloatArray, planner: Planner, key: str | None) -> None:
    """Warn where what is told has more than two values, so that a threshold decides what a success is."""
    values = sorted(set(told_N.tolist()))
    if len(values) > 2 and isinstance(planner, SuccessPlanner) and not isinstance(planner, Uniform):
        log.warning(
            "rewards are not two-valued (%d values from %g to %g), and reward_extra_info has no %r of 0 and 1: the "
            "planner takes those of at least %g for successes. Let the reward function return {'score': ..., "
            "'acc': ...}, or set allotment.success_key, or allotment.success_threshold",
            len(values),
            values[0],
            values[-1],
            key,
            planner.success_threshold,
        )
