"""The variance ratio and what it is worth in rollouts, with intervals over prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain

import numpy as np

from allotment.audit.log import Log
from allotment.audit.replaying import CountArray, Replay
from allotment.audit.settings import Settings
from allotment.types import FloatArray, IntArray

RESAMPLES = 2000
LEVEL = 0.95
AT_ONCE = 2**22
"""Entries of the resampling matrix that are held at once."""
MOST_UNITS = 4096
"""Units that are drawn: of more prompts, random groups of as equal a size as can be stand in for single ones."""


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

    @classmethod
    def of_resamples(cls, values_R: FloatArray) -> Interval:
        """The first value with the percentile interval of the others."""
        return cls.of(float(values_R[0]), values_R[1:])


def resampled_sums(values_MC: FloatArray, resamples: int = RESAMPLES, seed: int = 0) -> FloatArray:
    """[R, C] column sums over M prompts drawn with replacement, ``resamples`` times.

    All visits of a prompt come and go together: they share its success probability, and are no independent evidence.

    Args:
        values_MC: [M, C] what each prompt, or group of prompts, adds to each sum, M >= 1.
        resamples: R.
        seed: fixes the draws.
    """
    rng, n_prompts = np.random.default_rng(seed), len(values_MC)
    rows = max(AT_ONCE // n_prompts, 1)
    parts = []
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(n_prompts, size=(size, n_prompts)) + np.arange(size)[:, None] * n_prompts
        times = np.bincount(drawn.ravel(), minlength=size * n_prompts).reshape(size, n_prompts)
        parts.append(times.astype(np.float64) @ values_MC)
    return np.concatenate(parts)


def with_resamples(values_MC: FloatArray, seed: int) -> FloatArray:
    """[1 + R, C] the column sums, then those of the resamples."""
    return np.concatenate([values_MC.sum(axis=0)[None], resampled_sums(values_MC, seed=seed)])


def units(log: Log, seed: int = 0) -> tuple[IntArray, int]:
    """[V] which unit of the bootstrap each visit belongs to, and how many there are: its prompt, or a random group."""
    n_prompts = len(log.ids)
    if n_prompts <= MOST_UNITS:
        return log.prompt, n_prompts
    group_M = np.random.default_rng([seed, 2]).permutation(n_prompts) % MOST_UNITS
    return group_M[log.prompt], MOST_UNITS


NEAR, APART = 8, 0.5
"""So many rollouts above the lower bound, where the variance bends, the budgets that are tried lie so far apart, and
between one and two rollouts a prompt eight times as close as whole ones."""
BELOW, ABOVE = 7, 4
"""Budgets that are tried from there to the log's budget, and between that and twice as much."""
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
    counts: CountArray
    """[G, V] rollouts that each visit gets at each of ``budgets``."""


def equivalence(replay: Replay, seed: int = 0) -> Equivalence:
    """Judge the replay's allocation at several budgets, by :meth:`~allotment.audit.replaying.Replay.variances`.

    The predictions are those made with what the log observed, whatever the budget: a smaller budget would have taught
    the predictor less. A resample of prompts is judged at what its own prompts would be given: with more of those that
    get many, each gets fewer. All figures are NaN where no visit says anything.
    """
    settings = replay.settings
    budget = settings.budget_per_prompt
    budgets_G = budget_grid(settings)
    counts_GV = replay.counts_at(budgets_G)
    counts_GV[budgets_G == budget] = replay.counts
    unit_V, n_units = units(replay.log, seed)
    columns = chain(map(replay.variances, counts_GV), counts_GV, [replay.uniform_variances(), np.ones(len(unit_V))])
    sums = [np.bincount(unit_V, column, minlength=n_units).astype(np.float64) for column in columns]
    sums_RC = with_resamples(np.stack(sums, axis=1), seed)
    tried = len(budgets_G)
    variance_RG, spent_RG = sums_RC[:, :tried, None], sums_RC[:, tried:-2, None] / sums_RC[:, -1:, None]
    uniform_R = np.where(sums_RC[:, -2] > 0.0, sums_RC[:, -2], np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):  # precision is all but linear in the rollouts
        ratio_R = 1.0 / between(1.0 / variance_RG, crossing(spent_RG, budget))[:, 0] / uniform_R
    ratio_R = ratio_R.round(12)  # equal counts are 1, not 1 but for rounding
    worth_RG = _worth(variance_RG[:, :, 0] / uniform_R[:, None], settings)
    needed_R = between(spent_RG, crossing(worth_RG[:, :, None], budget))[:, 0]
    ratio, worth, needed = map(Interval.of_resamples, (ratio_R, _worth(ratio_R, settings), needed_R))
    return Equivalence(ratio, worth, needed, budgets_G, worth_RG[0], counts_GV)


def budget_grid(settings: Settings) -> FloatArray:
    """[G] budgets from the lower bound to twice the budget; it, its half and its quarter are among them."""
    lower, budget, most = (
        settings.lower,
        settings.budget_per_prompt,
        min(settings.upper, 2 * settings.budget_per_prompt),
    )
    end, first = min(budget, lower + NEAR), lower + np.arange(1, 8 if lower == 1 else 1) / 8
    near = np.concatenate([np.arange(lower, end, APART), first])
    after = [n for n in (budget + APART, budget + 2 * APART) if n <= most]
    smaller = [n for n in (budget // 2, budget // 4) if n >= lower]
    parts = (near[near < budget], after, smaller, np.linspace(end, budget, BELOW), np.linspace(budget, most, ABOVE))
    return np.unique(np.concatenate(parts))


def _worth(ratios_G: FloatArray, settings: Settings) -> FloatArray:
    """[...] uniform's rollouts a prompt that leave these ratios [...] of its variance at the audit's budget."""
    curve = settings.compared
    least = curve.minimum_count if settings.lower >= curve.minimum_count else curve.minimum_count - 1 + ABOVE_POLE
    counts = np.geomspace(least, MOST_EQUIVALENT, 20_000)
    logs = np.log(curve.variance(counts))
    with np.errstate(divide="ignore"):
        wanted = -np.log(ratios_G * curve.variance(settings.budget_per_prompt))
    return np.asarray(np.exp(np.interp(wanted, -logs, np.log(counts))), dtype=np.float64)


def crossing(worth_RGK: FloatArray, target: float) -> FloatArray:
    """[R, K] where on the grid of budgets, counted from 0, the worth reaches ``target``: infinite where not, NaN
    where nothing is known.
    """
    rising = np.maximum.accumulate(worth_RGK, axis=1)
    after_RK = np.clip((rising < target).sum(axis=1), 1, max(rising.shape[1] - 1, 1))
    last = rising.shape[1] - 1
    low, high = (np.take_along_axis(rising, np.minimum(after_RK + d, last)[:, None], axis=1)[:, 0] for d in (-1, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        part_RK = np.clip((target - low) / np.where(high > low, high - low, np.inf), 0.0, 1.0)
    place_RK = np.where(rising[:, -1] < target, np.inf, after_RK - 1 + part_RK)
    return np.asarray(np.where(np.isnan(rising[:, -1]), np.nan, place_RK))


def between(values_RGK: FloatArray, place_RK: FloatArray) -> FloatArray:
    """[R, K] values [R or 1, G, K] at places of the grid, between its points in proportion; infinite, or NaN, where
    these are.
    """
    last, known_RK = values_RGK.shape[1] - 1, np.isfinite(place_RK)
    low_RK = np.where(known_RK, place_RK, 0.0).astype(np.int64)
    values_RGK = np.broadcast_to(values_RGK, (len(place_RK), *values_RGK.shape[1:]))
    low, high = (np.take_along_axis(values_RGK, np.minimum(low_RK + d, last)[:, None], axis=1)[:, 0] for d in (0, 1))
    with np.errstate(invalid="ignore"):
        found_RK = low + (place_RK - low_RK) * (high - low)
    return np.asarray(np.where(known_RK, found_RK, place_RK))
