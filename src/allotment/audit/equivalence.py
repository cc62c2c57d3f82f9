"""The variance ratio and what it is worth in rollouts, with intervals over prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from allotment.audit.figures import ratio
from allotment.audit.replaying import Replay
from allotment.audit.settings import Settings
from allotment.types import FloatArray

RESAMPLES = 2000
LEVEL = 0.95
AT_ONCE = 2**22
"""Entries of the resampling matrix that are held at once."""


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled_R: FloatArray) -> Interval:
        """The percentile interval of ``resampled_R`` [R]; resamples that are NaN are left out."""
        known_R = resampled_R[~np.isnan(resampled_R)]
        if not len(known_R):
            return cls(value, math.nan, math.nan)
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(known_R, [tail, 1 - tail], method="inverted_cdf")  # infinite values stay what they are
        return cls(value, float(low), float(high))


def resampled_sums(values_MC: FloatArray, resamples: int = RESAMPLES, seed: int = 0) -> FloatArray:
    """[R, C] column sums over M prompts drawn with replacement, ``resamples`` times.

    All visits of a prompt come and go together: they share its success probability, and are no independent evidence.

    Args:
        values_MC: [M, C] what each prompt adds to each sum, M >= 1.
        resamples: R.
        seed: fixes the draws.
    """
    rng, n_prompts = np.random.default_rng(seed), len(values_MC)
    share = np.full(n_prompts, 1 / n_prompts)
    rows = max(AT_ONCE // n_prompts, 1)
    parts = [
        rng.multinomial(n_prompts, share, size=min(rows, resamples - start)) @ values_MC
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(parts)


BELOW, ABOVE = 7, 4
"""Budgets that are tried between the lower bound and the log's budget, and between that and twice as much."""
MOST_EQUIVALENT = 1e5
"""Rollouts a prompt up to which the estimator's curve is inverted."""
ABOVE_POLE = 0.01
"""How close to its pole, in rollouts, RLOO's curve is inverted where prompts may get one rollout: a budget that is
worth less than two of uniform's is said to be."""


@dataclass(frozen=True, eq=False)
class Equivalence:
    """Variance under the allocation and under uniform, at several budgets; intervals are over prompts."""

    variance_ratio: Interval
    """Gradient variance under the allocation over that of uniform, at the same rollouts."""
    uniform_rollouts: Interval
    """Rollouts a prompt that uniform needs for the variance that the allocation has at the audit's budget."""
    rollouts: Interval
    """Rollouts a prompt with which the allocation has the variance that uniform has at the audit's budget. Infinite:
    more than the largest budget tried."""
    budgets: FloatArray
    """[G] rollouts a prompt that were tried, ascending."""
    worth: FloatArray
    """[G] rollouts a prompt that uniform needs for the variance that the allocation has at each of ``budgets``."""
    counts: FloatArray
    """[G, V] rollouts that each visit gets at each of ``budgets``."""


def equivalence(replay: Replay, seed: int = 0) -> Equivalence:
    """Judge the replay's allocation at several budgets, by :meth:`~allotment.audit.replaying.Replay.variances`.

    The predictions are those made with what the log observed, whatever the budget: a smaller budget would have taught
    the predictor less. All figures are NaN where no visit says anything.
    """
    settings = replay.settings
    budget = settings.budget_per_prompt
    budgets_G = _grid(settings.lower, budget, settings.upper)
    counts_GV = np.stack([replay.counts if b == budget else replay.counts_at(b) for b in budgets_G]).astype(np.float64)
    columns = [*replay.variances(counts_GV), replay.uniform_variances()]
    n_prompts = len(replay.log.ids)
    sums_MC = np.stack(
        [np.bincount(replay.log.prompt, column, minlength=n_prompts).astype(np.float64) for column in columns], axis=1
    )
    whole_C, resampled_RC = sums_MC.sum(axis=0), resampled_sums(sums_MC, seed=seed)
    place = int(np.searchsorted(budgets_G, budget))
    ratios_RG = _ratios(resampled_RC)
    worth_G, worth_RG = (_worth(ratios, settings) for ratios in (_ratios(whole_C), ratios_RG))
    return Equivalence(
        Interval.of(ratio(float(whole_C[place]), float(whole_C[-1])), ratios_RG[:, place]),
        Interval.of(float(worth_G[place]), worth_RG[:, place]),
        Interval.of(_needed(worth_G, budgets_G, budget), np.array([_needed(w, budgets_G, budget) for w in worth_RG])),
        budgets_G,
        worth_G,
        counts_GV,
    )


def _grid(lower: int, budget: int, upper: int) -> FloatArray:
    """[G] budgets from the lower bound to twice the budget, the budget among them."""
    above = np.linspace(budget, min(upper, 2 * budget), ABOVE)
    return np.unique(np.concatenate([np.linspace(lower, budget, BELOW), above]))


def _ratios(sums_C: FloatArray) -> FloatArray:
    """[..., G] the sums [..., G + 1] over the last of them, uniform's; NaN where that is 0."""
    uniform = sums_C[..., -1:]
    return np.asarray(sums_C[..., :-1] / np.where(uniform > 0.0, uniform, np.nan), dtype=np.float64)


def _worth(ratios_G: FloatArray, settings: Settings) -> FloatArray:
    """[..., G] uniform's rollouts a prompt that leave these ratios [..., G] of its variance at the audit's budget."""
    curve = settings.compared
    least = curve.minimum_count if settings.lower >= curve.minimum_count else curve.minimum_count - 1 + ABOVE_POLE
    counts = np.geomspace(least, MOST_EQUIVALENT, 20_000)
    logs = np.log(curve.variance(counts))
    with np.errstate(divide="ignore"):
        wanted = -np.log(ratios_G * curve.variance(settings.budget_per_prompt))
    return np.asarray(np.exp(np.interp(wanted, -logs, np.log(counts))), dtype=np.float64)


def _needed(worth_G: FloatArray, budgets_G: FloatArray, budget: int) -> float:
    """The budget that is worth ``budget`` of uniform's; NaN where nothing is known, infinite above the grid."""
    if np.isnan(worth_G).any():
        return float("nan")
    if worth_G[-1] < budget:
        return float("inf")
    return float(np.interp(budget, np.maximum.accumulate(worth_G), budgets_G))
