"""The figures by which a predictor is judged, from its predictions and the counts observed afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from allotment.types import FloatArray, IntArray, Posterior

SMALLEST_PROBABILITY = 1e-6
"""Predictions are clipped to ``[1e-6, 1 - 1e-6]`` in the log loss."""
BINS = 10
"""Equal-width bins of the calibration error."""
TAIL = 0.05
"""Probability left out on either side of the 90 % interval."""


@dataclass(frozen=True)
class Figures:
    """What one predictor did over a range of visits; NaN where no visit says anything."""

    variance_ratio: float
    """Variance of the gradient estimator under this predictor's allocation, relative to uniform; below 1 is better."""
    log_loss: float
    """Mean over visits of ``-(k log p + (n - k) log(1 - p)) / n`` at p = E[p]: natural logarithm, per rollout."""
    mae: float
    """Mean over visits of ``|E[p] - k/n|``; the binomial noise of k/n is a floor."""
    calibration_error: float
    """Expected calibration error: ``|mean E[p] - success rate|`` over ten bins of E[p], weighted by rollouts."""
    coverage90: float
    """Share of visits inside the central 90 % interval, see :func:`interval_coverage`; 0.9 is calibrated."""
    visits: int
    """Visits that the figures are over."""
    success: float
    """Share of successes of their rollouts; over the ranges it is how p grew."""


def unbiased_variance(successes_V: IntArray, trials_V: IntArray) -> FloatArray:
    """[V] ``k (n - k) / (n (n - 1))``, the unbiased estimate of ``p (1 - p)``; 0 where n = 1, which says nothing."""
    return successes_V * (trials_V - successes_V) / unbiased_pairs(trials_V)


def unbiased_pairs(trials_V: IntArray) -> FloatArray:
    """[V] ``n (n - 1)``, the ordered pairs of rollouts; 1 where there are none."""
    return np.maximum(trials_V * (trials_V - 1.0), 1.0)


def mean_absolute_error(p_V: FloatArray, successes_V: IntArray, trials_V: IntArray) -> float:
    """Mean of ``|p - k/n|``."""
    return float(np.abs(p_V - successes_V / trials_V).mean())


def log_loss(p_V: FloatArray, successes_V: IntArray, trials_V: IntArray) -> float:
    """Mean over visits of the loss per rollout, in nats; p clipped to ``[1e-6, 1 - 1e-6]``."""
    p_V = np.clip(p_V, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    rate_V = successes_V / trials_V
    return float(-(rate_V * np.log(p_V) + (1 - rate_V) * np.log1p(-p_V)).mean())


def calibration_error(p_V: FloatArray, successes_V: IntArray, trials_V: IntArray) -> float:
    """Expected calibration error over ten equal-width bins; bins, and visits within a bin, weighted by rollouts."""
    excess = np.bincount(bin_numbers(p_V), weights=trials_V * p_V - successes_V)
    return float(np.abs(excess).sum() / trials_V.sum())


def bin_numbers(p_V: FloatArray, bins: int = BINS) -> IntArray:
    """[V] which of ``bins`` equal-width bins of [0, 1] each probability lies in; 1.0 belongs to the last."""
    return np.minimum((p_V * bins).astype(np.int64), bins - 1)


def interval_coverage(belief: Posterior, successes_Q: IntArray, trials_Q: IntArray) -> FloatArray:
    """[Q] how much of each observed count lies inside the central 90 % of its predictive distribution, in [0, 1].

    The predictive distribution F of the count is ``Binomial(n, p)`` averaged over the belief about p. A count k covers
    the values from F(k-1) to F(k), its randomised probability integral transform is uniform there, and this is the
    exact probability that it falls into [0.05, 0.95]. Its mean is 0.9 for a predictor whose distribution is right,
    however discrete the counts; the share of counts inside an interval of counts would be more than that. A count that
    the belief holds impossible is not covered.
    """
    above_Q, below_Q = belief.count_cdf(successes_Q, trials_Q), belief.count_cdf(successes_Q - 1, trials_Q)
    width_Q = above_Q - below_Q
    inside_Q = np.clip(above_Q, TAIL, 1 - TAIL) - np.clip(below_Q, TAIL, 1 - TAIL)
    return np.divide(inside_Q, width_Q, out=np.zeros_like(width_Q), where=width_Q > 0)


def ratio(part: float, whole: float) -> float:
    """``part / whole``; NaN for nothing out of nothing."""
    return part / whole if whole else math.nan
