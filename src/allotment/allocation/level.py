"""Continuous counts that all follow one level and spend the budget: the core of the relaxed and proportional splits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq

from allotment.types import FloatArray, IntArray

LevelCurve = Callable[[FloatArray], FloatArray]
"""Unbounded count of each prompt from ``weight / multiplier``; elementwise, continuous, not falling."""

NEGLIGIBLE = 1e-200
"""Weights below this share of the largest count as zero."""


def clipped_to_budget(
    weights_Q: FloatArray, budget: int, lower_Q: IntArray, upper_Q: IntArray, curve: LevelCurve
) -> tuple[FloatArray, float]:
    """``clip(curve(w / multiplier), lower, upper)`` with the multiplier for which the sum is the budget.

    Zero weights are the limit of equal, ever smaller ones: they stay at their lower bounds until all other prompts
    are at their upper bounds, then share what is left evenly.

    Args:
        weights_Q: [Q] finite, >= 0.
        budget: between the sums of the bounds.
        lower_Q: [Q] lower bounds.
        upper_Q: [Q] upper bounds.
        curve: see :data:`LevelCurve`.

    Returns:
        The counts, [Q], and the multiplier; 0.0 where prompts of zero weight share.
    """
    top = float(weights_Q.max())
    positive_Q = weights_Q > NEGLIGIBLE * top
    spare = budget - int(np.where(positive_Q, upper_Q, lower_Q).sum())
    if spare > 0 or not positive_Q.any():
        counts_Q = upper_Q.astype(np.float64)
        zero_Q = ~positive_Q
        left = budget - int(upper_Q[positive_Q].sum())
        counts_Q[zero_Q] = _solve(np.ones(int(zero_Q.sum())), left, lower_Q[zero_Q], upper_Q[zero_Q], lambda t: t)[0]
        return counts_Q, 0.0
    counts_Q = lower_Q.astype(np.float64)
    left = budget - int(lower_Q[~positive_Q].sum())
    scaled_Q = weights_Q[positive_Q] / top
    counts_Q[positive_Q], multiplier = _solve(scaled_Q, left, lower_Q[positive_Q], upper_Q[positive_Q], curve)
    return counts_Q, multiplier * top


def _solve(
    weights_Q: FloatArray, budget: int, lower_Q: IntArray, upper_Q: IntArray, curve: LevelCurve
) -> tuple[FloatArray, float]:
    """The same for positive weights, by root finding on the logarithm of the multiplier."""

    def counts(log_multiplier: float) -> FloatArray:
        clipped: FloatArray = np.clip(curve(weights_Q * np.exp(-log_multiplier)), lower_Q, upper_Q)
        return clipped

    def excess(log_multiplier: float) -> float:
        return float(counts(log_multiplier).sum()) - budget

    low, high = float(np.log(weights_Q.min())), float(np.log(weights_Q.max()))
    step = 1.0
    while excess(low) < 0.0:  # the smaller the multiplier, the larger the counts
        low, step = low - step, 2.0 * step
    step = 1.0
    while excess(high) > 0.0:
        high, step = high + step, 2.0 * step
    root = float(brentq(excess, low, high, xtol=1e-15, rtol=1e-15)) if high > low else low
    return counts(root), float(np.exp(root))
