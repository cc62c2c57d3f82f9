"""Real-valued counts that fall with a multiplier, clipped to the bounds, where they sum to the budget."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq

from allotment.allocation.exact import Problem
from allotment.types import FloatArray, IntArray

LevelCurve = Callable[[FloatArray], FloatArray]
"""Unbounded count of each prompt from ``weight / multiplier``; elementwise, continuous, not falling."""
NEGLIGIBLE = 1e-200
"""Weights below this share of the largest count as zero."""


def clipped_to_budget(weights_Q: FloatArray, problem: Problem, curve: LevelCurve) -> tuple[FloatArray, float]:
    """``clip(curve(w / multiplier), lower, upper)`` with the multiplier for which the sum is the budget; and that.

    Zero weights are the limit of equal, ever smaller ones: they stay at their lower bounds until all other prompts
    are at their upper bounds, then share what is left evenly, and the multiplier is 0.0.
    """
    lower_Q, upper_Q, top = problem.lower, problem.upper, float(weights_Q.max())
    free_Q = positive_Q = weights_Q > NEGLIGIBLE * top
    zeros_share = problem.budget > int(np.where(positive_Q, upper_Q, lower_Q).sum()) or not positive_Q.any()
    if zeros_share:
        free_Q, weights_Q, top, curve = ~positive_Q, np.ones(len(weights_Q)), 1.0, lambda ratio_Q: ratio_Q
    counts_Q = (upper_Q if zeros_share else lower_Q).astype(np.float64)
    left = problem.budget - int(counts_Q[~free_Q].sum())
    counts_Q[free_Q], multiplier = _level(weights_Q[free_Q] / top, left, lower_Q[free_Q], upper_Q[free_Q], curve)
    return counts_Q, 0.0 if zeros_share else multiplier * top


def _level(
    weights_Q: FloatArray, budget: int, lower_Q: IntArray, upper_Q: IntArray, curve: LevelCurve
) -> tuple[FloatArray, float]:
    """The same for positive weights, by root finding on the logarithm of the multiplier."""

    def counts(log_multiplier: float) -> FloatArray:
        return np.asarray(np.clip(curve(weights_Q * np.exp(-log_multiplier)), lower_Q, upper_Q), dtype=np.float64)

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
