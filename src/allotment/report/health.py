"""Health checks: what must hold before the figures are worth reading."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from allotment.pricing import get_estimator
from allotment.report.data import Arm, Study
from allotment.report.judged import GROWTH, claimed
from allotment.report.panel import Table
from allotment.report.predictions import Predictions, bins, calibration_error, predictions
from allotment.report.run import Run, not_recorded
from allotment.types import FloatArray, IntArray

Verdict = Literal["good", "look", "unknown"]

CALIBRATED = 0.1
"""Largest mean distance from the diagonal that passes."""
DEAD = 0.5
"""Largest share of groups without signal that passes."""
DRIFT = 0.05
"""Largest mean error of the predictions in the last quarter of a run that passes, chance aside."""

SLOWEST = 10
"""A step that took so many times the median, and a tenth of its run, is named."""


@dataclass(frozen=True)
class Finding:
    """What one check says of one arm."""

    arm: str
    verdict: Verdict
    """``look``: a reader should look into it; ``unknown``: the logs do not tell."""
    words: str


@dataclass(frozen=True)
class Check:
    """One check of all arms."""

    title: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of the findings."""
        found = {finding.verdict for finding in self.findings}
        return "look" if "look" in found else "good" if "good" in found else "unknown"


def health(study: Study) -> list[Check]:
    """All checks, the gravest first."""
    checks: dict[str, Callable[[Arm, Predictions], tuple[Verdict, str]]] = {
        "Logs complete": _complete,
        "Resumed or not": _resumed,
        "Budget conserved": _budget,
        "Counts within their bounds": _bounds,
        "Predictions calibrated": _calibrated,
        "Predictions keep up with the policy": _drift,
        "Groups with signal": _dead,
        "Steps of even time": _steady,
    }
    forecasts = [predictions(arm) for arm in study.arms]
    if any(claimed(arm) for arm in study.arms):
        checks["Learnt reward and verifier agree"] = _judged
    pairs = list(zip(study.arms, forecasts, strict=True))
    return [
        Check(title, tuple(Finding(arm.label, *check(arm, found)) for arm, found in pairs))
        for title, check in checks.items()
    ]


def health_table(checks: Sequence[Check]) -> Table:
    """The findings as rows."""
    rows = [(c.title, f.arm, f.verdict, f.words) for c in checks for f in c.findings]
    return Table(("check", "planner", "verdict", "finding"), rows)


def _complete(arm: Arm, _: Predictions) -> tuple[Verdict, str]:
    """Every step once in each log."""
    wrong: list[str] = []
    unknown: list[str] = []
    for run in arm.runs:
        counted = Counter(row["step"] for row in run.metrics)
        missing = [step for step in range(run.last_step + 1) if step not in counted]
        repeated = [step for step, times in counted.items() if times > 1]
        unlogged = {row["step"] for row in run.metrics if row["step"] > 0} ^ {row["step"] for row in run.rollouts}
        if not run.metrics:
            wrong.append(f"{run.seed} has no line yet")
        elif missing or repeated:
            wrong.append(f"{run.seed} lacks {len(missing)} steps and repeats {len(repeated)}")
        elif unlogged:
            wrong.append(f"metrics.jsonl and rollouts.jsonl of {run.seed} differ in {len(unlogged)} steps")
        elif "steps" in not_recorded(run.config):
            unknown.append(f"{run.seed} has {run.last_step} steps, and no file says how many there will be")
        elif not run.finished:
            wrong.append(f"{run.seed} stopped after {run.last_step} of {run.config.steps} steps")
    if wrong:
        return "look", "; ".join(wrong) + "."
    if unknown:
        return "unknown", "; ".join(unknown) + "."
    runs = "its run" if len(arm.runs) == 1 else f"all {len(arm.runs)} runs"
    return "good", f"every step of {runs} stands once in the logs, and the last is reached."


def _resumed(arm: Arm, _: Predictions) -> tuple[Verdict, str]:
    """Harmless: the steps after the checkpoint are made again, and stand in the logs once."""
    if any(run.from_python is not None for run in arm.runs):
        return "unknown", "the folder of a TRL run from Python does not say."
    if not any(run.timing for run in arm.runs):
        return "unknown", "no times are logged, and it would be said there."
    resumed = "; ".join(
        f"{run.seed} after step{'s' if len(run.resumed) > 1 else ''} {', '.join(map(str, run.resumed))}"
        for run in arm.runs
        if run.resumed
    )
    if not resumed:
        return "good", "no run was taken up again from a checkpoint."
    return "good", f"taken up again from a checkpoint: {resumed}. Steps made twice count once, in rollouts and in time."


def _budget(arm: Arm, _: Predictions) -> tuple[Verdict, str]:
    spent, budget = np.array([total for run in arm.runs for total in _step_totals(run).values()]), arm.config.budget
    if not len(spent):
        return "unknown", "no rollouts are logged yet."
    had = f"{spent.min():,}" if spent.min() == spent.max() else f"{spent.min():,} to {spent.max():,}"
    if "budget" in not_recorded(arm.config):
        return "unknown", f"no file says its budget; its steps had {had} rollouts."
    if arm.config.planner == "vip-tokens":
        return "unknown", f"its budget is of tokens; its steps had {had} rollouts."
    is_told = all(run.from_python is None or run.from_python.each_step_logged for run in arm.runs)
    if spent.min() < budget and spent.max() <= budget and not is_told:
        few = f"{had} rollouts a step had a reward, of {budget:,}"
        return "unknown", f"{few}; how many had none is known where TRL logs every step, up to its last checkpoint."
    if wrong := int((spent != budget).sum()):
        return "look", f"{wrong:,} of {len(spent):,} steps spent {had} instead of {budget:,}."
    return "good", f"each of {len(spent):,} steps spent its {budget:,} rollouts exactly."


def _step_totals(run: Run) -> Counter[int]:
    """Rollouts of each step, those that came back without a reward included."""
    totals: Counter[int] = Counter()
    for row in run.rollouts:
        totals[row["step"]] += row["n"]
    for row in run.metrics:
        if row.get("unscored"):
            totals[row["step"]] += int(row["unscored"])
    return totals


def _bounds(arm: Arm, _: Predictions) -> tuple[Verdict, str]:
    counts: Counter[tuple[int, int, str]] = Counter()
    for number, run in enumerate(arm.runs):
        for row in run.rollouts:
            counts[number, row["step"], row["prompt_id"]] += row["n"]
    if not counts:
        return "unknown", "no rollouts are logged yet."
    if "bounds" in not_recorded(arm.config):
        return "unknown", "no file says them."
    n, lower, upper = np.array(list(counts.values())), arm.config.lower, arm.config.upper
    outside = int(((n < lower) | (n > upper)).sum())
    found = f"{n.min()} to {n.max()}" if n.min() < n.max() else str(n.min())
    words = f"{found} rollouts a prompt and step; {lower} to {upper} are allowed"
    return ("look", f"{words}, {outside:,} lie outside.") if outside else ("good", f"{words}.")


def _calibrated(_: Arm, forecast: Predictions) -> tuple[Verdict, str]:
    if not len(forecast):
        return "unknown", "no predictions are logged."
    found = bins(forecast)
    error = calibration_error(found)
    chances = [np.sqrt(2 * b.predicted * (1 - b.predicted) / (np.pi * b.rollouts)) for b in found]
    chance = float(np.average(chances, weights=[b.rollouts for b in found]))
    words = (
        f"{error:.3f} from the diagonal on average, {chance:.3f} by the chance of few rollouts alone; "
        f"up to {CALIBRATED:g} passes."
    )
    return ("look" if error > max(CALIBRATED, 2 * chance) else "good"), words


def _drift(_: Arm, forecast: Predictions) -> tuple[Verdict, str]:
    """Whether the last quarter of a run is predicted too low or too high by more than DRIFT and twice its error."""
    if not len(forecast) or forecast.step.max() < 4:
        return "unknown", "too few steps are logged with predictions."
    first = forecast.only(forecast.step <= 0.25 * forecast.step.max())
    last = forecast.only(forecast.step > 0.75 * forecast.step.max())
    observed, predicted = _rate(last.successes, last.n), _rate(last.predicted * last.n, last.n)
    error = observed - predicted
    chance = float(np.sqrt((last.n * last.predicted * (1 - last.predicted)).sum()) / last.n.sum())
    started = _rate(first.successes, first.n)
    words = (
        f"success of rollouts went from {started:.3f} in the first quarter of the steps to {observed:.3f} in the last, "
        f"where {predicted:.3f} was predicted ({error:+.3f}).".replace("-", "−")
    )
    return ("look" if abs(error) > max(DRIFT, 2 * chance) else "good"), words


def _rate(hits: FloatArray | IntArray, n: IntArray) -> float:
    return float(hits.sum() / max(n.sum(), 1))


def _dead(arm: Arm, _: Predictions) -> tuple[Verdict, str]:
    shares = [row["zero_variance_groups"] for run in arm.runs for row in run.metrics if "zero_variance_groups" in row]
    if not shares:
        return "unknown", "no step is logged yet."
    share = float(np.mean(shares))
    if get_estimator(arm.config.priced).believes:
        return "good", f"{share:.0%} of the groups were all right or all wrong; compared with a belief, they teach too."
    words = f"{share:.0%} of the groups were all right or all wrong and moved nothing; up to {DEAD:.0%} passes."
    return ("look" if share > DEAD else "good"), words


def _judged(arm: Arm, _: Predictions) -> tuple[Verdict, str]:
    """Whether the learnt reward claims more and more beyond what the verifier sees."""
    found = claimed(arm)
    if found is None:
        return "unknown", "the verifier says the reward, or too few steps are logged."
    grows, words = found
    return ("look" if grows else "good"), f"{words} A gap that grows by up to {GROWTH:g} passes."


def _steady(arm: Arm, _: Predictions) -> tuple[Verdict, str]:
    """A machine that stood still makes a curve by time worthless."""
    worst = ""
    for run in arm.runs:
        seconds = np.array([row["seconds"] for row in run.timing], np.float64)
        if not len(seconds):
            continue
        longest, median = float(seconds.max()), float(np.median(seconds))
        if longest > max(SLOWEST * median, 0.1 * seconds.sum()):
            step = run.timing[int(seconds.argmax())]["step"]
            worst = f"step {step} of {run.seed} took {longest:.1f} s, the median {median:.2f} s."
    if worst:
        return "look", worst
    if not any(run.timing for run in arm.runs):
        return "unknown", "no times are logged."
    return "good", f"no step took a tenth of its run and {SLOWEST} times the median."
