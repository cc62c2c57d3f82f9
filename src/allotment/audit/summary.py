"""What a team wants to know of its log: waste, calibration, what each prompt would have got, what it is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from allotment.audit.advice import advice
from allotment.audit.counterfactual import Counterfactuals, counterfactuals
from allotment.audit.equivalence import Equivalence, equivalence
from allotment.audit.figures import BINS, Figures, bin_numbers
from allotment.audit.log import Log
from allotment.audit.replaying import Replay
from allotment.audit.sizes import unusual_sizes
from allotment.audit.verdict import Facts, Verdict, verdict
from allotment.types import FloatArray, IntArray, PromptId

SUCCESS_CLASSES = ("none", "up to 1/4", "to 1/2", "to 3/4", "below all", "all")
"""Classes of prompts by their share of successes over the whole log."""
LEAST_EXPECTED, MOST_THERE = 5.0, 0.1
"""Groups of equal rewards are missing if at least so many are expected, and at most this share of them is there."""


@dataclass(frozen=True)
class Waste:
    """Rollouts by whether their group could say anything: one in which all or none succeed has no signal."""

    rollouts: int
    """All rollouts of the log."""
    all_failed: int
    """Rollouts of groups without a success."""
    all_succeeded: int
    """Rollouts of groups without a failure."""

    @property
    def without_signal(self) -> float:
        """Share of the rollouts whose group had no signal."""
        return (self.all_failed + self.all_succeeded) / self.rollouts


@dataclass(frozen=True)
class CalibrationBin:
    """Visits whose predicted success lies in one tenth of [0, 1], from ``low`` to ``high``."""

    low: float
    high: float
    predicted: float
    """Mean over rollouts."""
    observed: float
    """Share of successes."""
    rollouts: int


@dataclass(frozen=True, eq=False)
class PromptShares:
    """What each prompt was and would have got; all arrays [M], NaN for a prompt without a visit."""

    ids: tuple[PromptId, ...]
    visits: IntArray
    success: FloatArray
    """Share of successes over all its rollouts."""
    predicted: FloatArray
    """Mean prediction before its visits."""
    logged: FloatArray
    """Rollouts a visit that it had."""
    allotted: FloatArray
    """Rollouts a visit that it would have had."""


@dataclass(frozen=True)
class SuccessClass:
    """Prompts of like success; rollouts are means over their visits."""

    name: str
    """One of :data:`SUCCESS_CLASSES`."""
    prompts: int
    """At least 1."""
    logged: float
    """Rollouts a visit in the log."""
    allotted: float
    """Rollouts a visit of the replay."""


@dataclass(frozen=True)
class Lengths:
    """Cost in tokens, or characters where the log has no tokens, if each rollout is as long as its group's mean."""

    unit: Literal["tokens", "characters"]
    logged: float
    """All completions of the log."""
    uniform: float
    """Uniform at the audit's budget."""
    allotted: float
    """The allocation at the same rollouts."""
    equivalent: float
    """The allocation at the rollouts that give it uniform's variance; NaN where these are not known."""


@dataclass(frozen=True, eq=False)
class Summary:
    """Everything that the audit says of one predictor on one log."""

    prompts: int
    """Prompts with a visit."""
    visits: int
    budget_per_prompt: int
    """Rollouts a prompt at which the allocation is compared with uniform."""
    waste: Waste
    """Rollouts of the log without signal."""
    calibration: tuple[CalibrationBin, ...]
    """Predicted against observed success, the bins that have visits."""
    shares: PromptShares
    """Prompt by prompt."""
    classes: tuple[SuccessClass, ...]
    """The same by classes of success, those that have prompts."""
    equivalence: Equivalence
    """The variance ratio and the equivalent budgets."""
    lengths: Lengths | None
    """Cost in tokens; None where no lengths are logged."""
    length_unit: Literal["tokens", "characters"]
    """Of lengths, logged or not."""
    verdict: Verdict
    """What follows, with its conditions."""
    counterfactuals: Counterfactuals
    """The same rollouts spent otherwise."""
    advice: tuple[str, ...]
    """What to do next."""


@dataclass(frozen=True)
class WastedPrompt:
    """A prompt whose rollouts said nothing, visit after visit."""

    name: str
    """Its text, or its id."""
    all_failed: int
    """Rollouts in groups without a success."""
    all_succeeded: int
    """Rollouts in groups without a failure."""
    length: float | None
    """Tokens, or characters, of these rollouts; None where no lengths are logged."""


@dataclass(frozen=True)
class Audited:
    """The audit of one run."""

    source: str
    """Where the log lies."""
    predictor: str
    """Whose predictions the summary is of."""
    summary: Summary
    notes: tuple[str, ...]
    """What a reader should know of the file."""
    by_range: Mapping[str, Figures] = field(default_factory=dict)
    """The figures by range of visits."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """How it was compared."""
    wasted: tuple[WastedPrompt, ...] = ()
    """The prompts with most rollouts that said nothing."""


def wasted_prompts(log: Log, most: int = 10) -> tuple[WastedPrompt, ...]:
    """The prompts with most rollouts in groups of equal rewards, the largest number first."""
    n_prompts, failed_V, solved_V = len(log.ids), log.successes == 0, log.successes == log.trials

    def sums(values_V: FloatArray | IntArray) -> FloatArray:
        return np.bincount(log.prompt, values_V, minlength=n_prompts).astype(np.float64)

    failed_M, solved_M = sums(log.trials * failed_V), sums(log.trials * solved_V)
    lengths_M = None if log.lengths is None else sums(log.lengths * (failed_V | solved_V))
    order_M = np.argsort(-(failed_M + solved_M), kind="stable")[:most]
    return tuple(
        WastedPrompt(
            str(log.ids[q]) if log.texts is None else log.texts[q],
            int(failed_M[q]),
            int(solved_M[q]),
            None if lengths_M is None else float(lengths_M[q]),
        )
        for q in order_M.tolist()
        if failed_M[q] + solved_M[q]
    )


def summarise(replay: Replay, seed: int = 0) -> Summary:
    """The summary of a replay; ``seed`` fixes the bootstrap's draws."""
    log, budget = replay.log, replay.settings.budget_per_prompt
    worth, waste, shares = equivalence(replay, seed), _waste(log), _shares(replay)
    lengths = _lengths(log, worth, budget)
    seen = int((shares.visits > 0).sum())
    facts = Facts(
        variance_ratio=worth.variance_ratio,
        rollouts=worth.rollouts,
        budget_per_prompt=budget,
        prompts=seen,
        first_visits=seen / len(log.visit),
        all_failed=waste.all_failed / waste.rollouts,
        all_succeeded=waste.all_succeeded / waste.rollouts,
        mean_length=None if lengths is None else lengths.logged / waste.rollouts,
        length_unit=log.length_unit,
        order_is_assumed=log.order_is_assumed,
        believes=replay.settings.believes,
        missing_groups=missing_groups(log),
        doubts=(*log.doubts, *unusual_sizes(log)),
    )
    found = verdict(facts)
    ways = Counterfactuals() if facts.missing_groups else counterfactuals(replay, worth, seed=seed)
    return Summary(
        seen,
        len(log.visit),
        budget,
        waste,
        calibration_bins(replay.probability, log.successes, log.trials),
        shares,
        _classes(shares),
        worth,
        lengths,
        log.length_unit,
        found,
        ways,
        advice(found, ways, budget),
    )


def calibration_bins(p_V: FloatArray, successes_V: IntArray, trials_V: IntArray) -> tuple[CalibrationBin, ...]:
    """Predicted against observed success in ten equal-width bins of the prediction; bins without visits are left out.

    Their weighted absolute differences add up to :func:`~allotment.audit.figures.calibration_error`.
    """
    bins_V = bin_numbers(p_V)
    rollouts_B = np.bincount(bins_V, trials_V, minlength=BINS)
    predicted_B = np.bincount(bins_V, trials_V * p_V, minlength=BINS)
    successes_B = np.bincount(bins_V, successes_V, minlength=BINS)
    return tuple(
        CalibrationBin(b / BINS, (b + 1) / BINS, float(predicted_B[b] / n), float(successes_B[b] / n), int(n))
        for b, n in enumerate(rollouts_B)
        if n
    )


def missing_groups(log: Log) -> int:
    """Groups of equal rewards that should be in the log and are not, as after dynamic sampling; 0 where too few are
    missing to say so.

    What should be there is counted as if every prompt had one success probability, its share of successes.
    """
    successes_M, trials_M = (np.bincount(log.prompt, v, minlength=len(log.ids)) for v in (log.successes, log.trials))
    p_V = (successes_M / np.maximum(trials_M, 1))[log.prompt]
    several_V = log.trials > 1
    expected = float((p_V**log.trials + (1 - p_V) ** log.trials)[several_V].sum())
    there = int(((log.successes == 0) | (log.successes == log.trials))[several_V].sum())
    return round(expected - there) if expected >= LEAST_EXPECTED and there < MOST_THERE * expected else 0


def _waste(log: Log) -> Waste:
    failed, succeeded = log.successes == 0, log.successes == log.trials
    return Waste(int(log.trials.sum()), int(log.trials[failed].sum()), int(log.trials[succeeded].sum()))


def _shares(replay: Replay) -> PromptShares:
    log, n_prompts = replay.log, len(replay.log.ids)

    def sums(values_V: FloatArray | IntArray) -> FloatArray:
        return np.bincount(log.prompt, values_V, minlength=n_prompts).astype(np.float64)

    visits = np.bincount(log.prompt, minlength=n_prompts)
    trials = sums(log.trials)
    with np.errstate(invalid="ignore"):
        return PromptShares(
            log.ids,
            visits,
            sums(log.successes) / trials,
            sums(replay.probability) / visits,
            trials / visits,
            sums(replay.counts) / visits,
        )


def _classes(shares: PromptShares) -> tuple[SuccessClass, ...]:
    seen_M = shares.visits > 0
    success_M, visits_M = shares.success[seen_M], shares.visits[seen_M]
    class_M = np.where(success_M == 0, 0, np.where(success_M == 1, 5, np.ceil(success_M * 4))).astype(np.int64)
    found = []
    for number, name in enumerate(SUCCESS_CLASSES):
        mine = class_M == number
        if mine.any():
            logged, allotted = (
                float(np.average(values_M[seen_M][mine], weights=visits_M[mine]))
                for values_M in (shares.logged, shares.allotted)
            )
            found.append(SuccessClass(name, int(mine.sum()), logged, allotted))
    return tuple(found)


def _lengths(log: Log, worth: Equivalence, budget: int) -> Lengths | None:
    if log.lengths is None:
        return None
    mean_V, needed = log.lengths / log.trials, worth.rollouts.value
    cost_G = worth.counts @ mean_V
    return Lengths(
        log.length_unit,
        float(log.lengths.sum()),
        float(mean_V.sum() * budget),
        float(cost_G[np.searchsorted(worth.budgets, budget)]),
        float(np.interp(needed, worth.budgets, cost_G)) if math.isfinite(needed) else math.nan,
    )
