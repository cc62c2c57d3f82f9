"""The variance ratio and what it is worth in rollouts, with intervals over prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from allotment.audit.figures import ratio, unbiased_variance
from allotment.audit.replaying import Replay
from allotment.pricing import Estimator, get_estimator
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


Outcome = Literal["helps", "no difference", "hurts", "cannot say"]
MOSTLY = 0.8
"""Share of the rollouts from which nearly all prompts count as unsolved, or as solved."""
SHORT = {"tokens": 16.0, "characters": 48.0}
"""Mean length below which an answer counts as short."""
FEW_PROMPTS = 50
"""Prompts below which an interval over prompts is not to be trusted."""

ASSUMPTIONS = (
    "the size of a rollout's gradient neither depends on its reward nor differs between prompts (assumption 4.1 of "
    "VIP); it fails where answers are short and unique: there the gradient follows the reward, and nothing is gained",
    "the training goes on as logged: that other counts would have changed the policy, and what would have been "
    "observed, is not replayed",
    "prompts count equally, as in a loss that averages over a prompt's own rollouts first",
)
"""What every verdict assumes."""


@dataclass(frozen=True)
class Facts:
    """The figures that a verdict follows from."""

    variance_ratio: Interval
    """Gradient variance relative to uniform, at the same rollouts."""
    rollouts: Interval
    """Rollouts a prompt that give uniform's variance."""
    budget_per_prompt: int
    """Rollouts a prompt of uniform."""
    prompts: int
    """Prompts with a visit."""
    first_visits: float
    """Share of the visits that are a prompt's first."""
    all_failed: float
    """Share of the rollouts in groups without a success."""
    all_succeeded: float
    """Share of the rollouts in groups without a failure."""
    mean_length: float | None
    """Mean length of a completion; None where it is not logged."""
    length_unit: Literal["tokens", "characters"]
    """Unit of ``mean_length``."""
    order_is_assumed: bool
    """Whether the log does not say which prompts shared a step."""


@dataclass(frozen=True)
class Verdict:
    """What the figures say, and under which conditions."""

    outcome: Outcome
    """In one word; by the interval of the variance ratio, which lies below 1, above 1 or around it."""
    text: str
    """The same in a sentence."""
    doubts: tuple[str, ...]
    """Conditions found in this log under which the sentence does not hold."""
    assumptions: tuple[str, ...] = ASSUMPTIONS
    """What holds or fails outside this log."""


def verdict(facts: Facts) -> Verdict:
    """The verdict that follows from the figures."""
    outcome = _outcome(facts.variance_ratio)
    return Verdict(outcome, _text(outcome, facts), _doubts(facts))


def _outcome(ratio: Interval) -> Outcome:
    if math.isnan(ratio.value) or math.isnan(ratio.low):
        return "cannot say"
    if ratio.high < 1:
        return "helps"
    return "hurts" if ratio.low > 1 else "no difference"


def _text(outcome: Outcome, facts: Facts) -> str:
    ratio, needed = facts.variance_ratio, facts.rollouts
    if outcome == "cannot say":
        return "No group of the log has both successes and failures: nothing can be said of variance."
    interval = f"{ratio.value:.3f} of uniform's (95 % interval {ratio.low:.3f} to {ratio.high:.3f})"
    if outcome == "no difference":
        return f"No difference from uniform can be told: the gradient's variance is {interval} at the same rollouts."
    if outcome == "hurts":
        return (
            f"It would make the gradient noisier: its variance is {interval} at the same rollouts. Stay with uniform."
        )
    text = f"It would help: the gradient's variance is {interval} at the same rollouts"
    if math.isfinite(needed.value):
        text += f"; the same precision with {needed.value:.1f} instead of {facts.budget_per_prompt} rollouts a prompt"
    return text + "."


def _doubts(facts: Facts) -> tuple[str, ...]:
    length, unit = facts.mean_length, facts.length_unit
    failed, succeeded, first = (
        f"{100 * share:.0f} %" for share in (facts.all_failed, facts.all_succeeded, facts.first_visits)
    )
    found = {
        f"completions have {length or 0:.0f} {unit} on average: with answers this short the first assumption is "
        "likely to fail": length is not None and length < SHORT[unit],
        "lengths are not logged: see for yourself that answers are not short": length is None,
        f"{failed} of the rollouts are in groups without a success: almost all prompts are at p = 0, and what little "
        "signal there is decides the figure": facts.all_failed >= MOSTLY,
        f"{succeeded} of the rollouts are in groups without a failure: almost all prompts are solved, and there is "
        "little left to learn": facts.all_succeeded >= MOSTLY,
        "one epoch only: no prompt was visited twice, so nothing is known of a prompt before its only visit but what "
        "similar prompts did": facts.first_visits == 1,
        f"{first} of the visits are a prompt's first: most of the gain of later epochs is not in the figure": 0.5
        <= facts.first_visits
        < 1,
        f"{facts.prompts} prompts are few for an interval over prompts": facts.prompts < FEW_PROMPTS,
        "the log does not say which prompts shared a step: their order is assumed": facts.order_is_assumed,
    }
    return tuple(text for text, holds in found.items() if holds)
