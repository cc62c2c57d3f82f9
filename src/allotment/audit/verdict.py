"""What the figures of a log say, and under which conditions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from allotment.audit.equivalence import Interval

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
BELIEVED = (
    "uniform has the other rollouts as baseline, the allotment the belief too: that is unbiased only in a loss that "
    "sums over tokens or divides by a constant, not by the rollout's own length",
)
"""What a verdict assumes beside, of an estimator that takes the belief as baseline."""


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
    believes: bool = False
    """Whether the allotment has the belief as baseline."""
    missing_groups: int = 0
    """Groups of equal rewards that should be in the log and are not."""
    doubts: tuple[str, ...] = ()
    """What was found on reading, and of the sizes of groups: to be looked into before a figure is believed."""


@dataclass(frozen=True)
class Verdict:
    """What the figures say, and under which conditions."""

    outcome: Outcome
    """In one word; by the interval of the variance ratio, which lies below 1, above 1 or around it."""
    headline: str
    """For somebody who has one minute and knows nothing of variance."""
    text: str
    """The same in a sentence."""
    doubts: tuple[str, ...]
    """Conditions found in this log under which the sentence does not hold; :attr:`first_look` before the others."""
    assumptions: tuple[str, ...] = ASSUMPTIONS
    """What holds or fails outside this log."""
    first_look: tuple[str, ...] = ()
    """The doubts that are as loud as the verdict: the log may not be what it was taken for."""
    way_out: str = ""
    """What to do where nothing can be said."""


def verdict(facts: Facts) -> Verdict:
    """The verdict that follows from the figures."""
    outcome, headline, way_out = _nothing_to_say(facts) or (_outcome(facts.variance_ratio), "", "")
    headline = headline or _headline(outcome, facts)
    if facts.doubts:
        headline += f" But look first: {facts.doubts[0]}."
    assumptions = (*ASSUMPTIONS, *BELIEVED) if facts.believes else ASSUMPTIONS
    return Verdict(outcome, headline, _text(outcome, facts), _doubts(facts), assumptions, facts.doubts, way_out)


def _nothing_to_say(facts: Facts) -> tuple[Outcome, str, str] | None:
    """The outcome, its headline and the way out, where the log cannot say anything."""
    begin = "This log cannot say what would be saved: "
    ratio = facts.variance_ratio
    if facts.missing_groups:
        why = "rollouts were filtered before it was written."
        return "cannot say", begin + why, "Log rollouts before they are filtered, and audit that log."
    if math.isnan(ratio.value) or math.isnan(ratio.low):
        why, way_out = "no prompt was sometimes solved and sometimes not.", "Train on prompts"
        if facts.all_failed == 1:
            why, way_out = "every prompt failed every time.", "Train on easier prompts"
        elif facts.all_succeeded == 1:
            why, way_out = "every prompt was solved every time.", "Train on harder prompts"
        return "cannot say", begin + why, f"{way_out} that are solved sometimes: from these nothing is learnt."
    if facts.first_visits == 1 and ratio.low == ratio.high == 1:
        why = "every prompt was visited once, and nothing tells prompts apart before their first visit."
        way_out = "Audit a longer run, in which prompts come again, or pass embeddings of the prompts (--embeddings)."
        return "cannot say", begin + why, way_out
    return None


def _outcome(ratio: Interval) -> Outcome:
    if ratio.high < 1:
        return "helps"
    return "hurts" if ratio.low > 1 else "no difference"


def _headline(outcome: Outcome, facts: Facts) -> str:
    needed, n = facts.rollouts, facts.budget_per_prompt
    if outcome == "hurts":
        return (
            "Give every prompt the same number of rollouts: splitting them by prediction would have made learning "
            "noisier."
        )
    if outcome == "no difference":
        return "No gain can be told from this log: splitting rollouts by prediction is as good as equal numbers."
    if not math.isfinite(needed.value) or needed.value >= n:
        return "Splitting rollouts by prediction would have given a more precise gradient from as many rollouts."
    span = ""
    if math.isfinite(needed.low) and math.isfinite(needed.high):
        span = f" ({100 * max(1 - needed.high / n, 0):.0f} to {100 * (1 - needed.low / n):.0f} %)"
    saved = f"{100 * (1 - needed.value / n):.0f} % fewer rollouts for the same gradient precision{span}"
    return f"{saved}, had they been split by prediction."


def _text(outcome: Outcome, facts: Facts) -> str:
    ratio, needed = facts.variance_ratio, facts.rollouts
    if facts.missing_groups:
        return (
            "What it would save on the whole run cannot be told: the log was filtered. About "
            f"{facts.missing_groups:,} groups in which all or none succeed are missing, as after dynamic sampling, and "
            "these are what is saved on. Of the groups that are left: variance "
            f"{ratio.value:.3f} of uniform's (95 % interval {ratio.low:.3f} to {ratio.high:.3f}). Log rollouts before "
            "they are filtered."
        )
    if math.isnan(ratio.value):
        return "No group of the log has both successes and failures: nothing can be said of variance."
    if outcome == "cannot say":
        return "Before its first visit every prompt looks like every other: a split is equal numbers. Variance 1.000."
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
    return (*facts.doubts, *(text for text, holds in found.items() if holds))
