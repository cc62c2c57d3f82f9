"""The variance ratio and what it is worth in rollouts, with intervals over prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from allotment.audit.bootstrap import Interval, resampled_sums
from allotment.audit.figures import ratio, unbiased_variance
from allotment.audit.replaying import Replay
from allotment.pricing import Estimator, get_estimator
from allotment.types import FloatArray

BELOW, ABOVE = 7, 4
"""Budgets that are tried between the lower bound and the log's budget, and between that and twice as much."""
MOST_EQUIVALENT = 1e5
"""Rollouts a prompt up to which the estimator's curve is inverted."""


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
    """Judge the replay's allocation at several budgets by the estimator's curve.

    The weight of a visit is :func:`~allotment.audit.figures.unbiased_variance` of its own counts, as in
    :class:`~allotment.audit.figures.Figures`. The predictions are those made with what the log observed, whatever the
    budget: a smaller budget would have taught the predictor less. All figures are NaN where no visit says anything.
    """
    settings, curve = replay.settings, get_estimator(replay.settings.estimator)
    budget = settings.budget_per_prompt
    budgets_G = _grid(settings.lower, budget, settings.upper)
    counts_GV = np.stack([replay.counts if b == budget else replay.counts_at(b) for b in budgets_G]).astype(np.float64)
    weights_V = unbiased_variance(replay.log.successes, replay.log.trials)
    terms_GV = weights_V * curve.variance(counts_GV)
    columns = [*terms_GV, weights_V * curve.variance(budget)]
    n_prompts = len(replay.log.ids)
    sums_MC = np.stack(
        [np.bincount(replay.log.prompt, column, minlength=n_prompts).astype(np.float64) for column in columns], axis=1
    )
    whole_C, resampled_RC = sums_MC.sum(axis=0), resampled_sums(sums_MC, seed=seed)
    place = int(np.searchsorted(budgets_G, budget))
    worth_G = _worth(whole_C, curve, budget)
    worth_RG = _worth(resampled_RC, curve, budget)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios_R = resampled_RC[:, place] / resampled_RC[:, -1]
    return Equivalence(
        Interval.of(ratio(float(whole_C[place]), float(whole_C[-1])), ratios_R),
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


def _worth(sums_C: FloatArray, curve: Estimator, budget: int) -> FloatArray:
    """[..., G] uniform's rollouts a prompt of the same variance; the last of [..., G + 1] sums is uniform's."""
    with np.errstate(divide="ignore", invalid="ignore"):
        variances = sums_C[..., :-1] / sums_C[..., -1:] * curve.variance(budget)
    counts = np.geomspace(curve.minimum_count, MOST_EQUIVALENT, 20_000)
    logs = np.log(curve.variance(counts))
    return np.asarray(np.exp(np.interp(-np.log(variances), -logs, np.log(counts))), dtype=np.float64)


def _needed(worth_G: FloatArray, budgets_G: FloatArray, budget: int) -> float:
    """The budget that is worth ``budget`` of uniform's; NaN where nothing is known, infinite above the grid."""
    if np.isnan(worth_G).any():
        return float("nan")
    if worth_G[-1] < budget:
        return float("inf")
    return float(np.interp(budget, np.maximum.accumulate(worth_G), budgets_G))
