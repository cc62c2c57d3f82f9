"""Means, standard errors, and differences to uniform, paired by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from allotment.report.data import Arm, Study
from allotment.report.pairing import Reference, reference_of
from allotment.report.run import Run, common_steps
from allotment.types import FloatArray

Measure = Literal["pool_success", "held_out_success"]
Axis = Literal["rollouts_total", "tokens_total", "seconds_total"]

CONFIDENCE = 0.95
"""Two-sided, of the verdict on one planner and one measure."""


@dataclass(frozen=True)
class Estimate:
    """A mean over runs, in the unit of its values."""

    mean: float
    standard_error: float | None
    """Sample standard deviation (n - 1) over sqrt(n); None for one run, which tells nothing about its own error."""
    n: int
    """Number of runs, or of pairs of runs."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The mean of at least one value."""
        n = len(values)
        error = float(np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else None
        return cls(float(np.mean(values)), error, n)

    @property
    def verdict(self) -> str:
        """For a difference to uniform: what one may say about it."""
        alone, noise = "no standard error, so nothing can be concluded", "cannot be told apart from uniform"
        return self.judged(alone, "the same as uniform", noise, "higher than uniform", "lower than uniform")

    def judged(self, alone: str, same: str, noise: str, higher: str, lower: str) -> str:
        """For a difference: the word that fits it; ``alone`` where there is one pair only."""
        if self.standard_error is None:
            return alone
        if self.mean == 0 and self.standard_error == 0:
            return same
        if abs(self.mean) <= critical_value(self.n) * self.standard_error:
            return noise
        return higher if self.mean > 0 else lower


@dataclass(frozen=True)
class SummaryRow:
    """One arm at its last common step."""

    arm: Arm
    step: int
    seeds: int
    """Runs that its means are taken over."""
    success: dict[Measure, Estimate | None]
    """Exact success probability, mean over prompts, then over runs; None where it was not evaluated."""
    difference: dict[Measure, Estimate | None]
    """To uniform, over pairs of runs of equal seed, settings and step; None without a pair, and for uniform itself."""
    reference: Reference
    """The uniform runs it is compared with."""
    rollouts: float
    """Generated up to ``step``, mean over runs."""
    tokens: float
    """Generated up to ``step``, mean over runs."""
    zero_variance: float | None
    """Share of groups whose rewards are all equal, mean over steps and runs; None before the first step."""
    counts: tuple[int, int] | None
    """[fewest, most] rollouts of one prompt in any step; None before the first step."""
    seconds: float | None
    """Median seconds of a step, without evaluation, mean over runs; None without timings."""


@dataclass(frozen=True)
class Curve:
    """A learning curve; all arrays [E], one entry per evaluation common to the runs."""

    step: list[int]
    x: FloatArray
    """Rollouts or tokens generated, or seconds spent so far, mean over runs."""
    mean: FloatArray
    """Success probability, mean over runs."""
    standard_error: FloatArray | None
    """Over runs; None for one run."""


def critical_value(pairs: int) -> float:
    """Student's t: how many standard errors a mean of ``pairs`` (>= 2) differences must lie from 0."""
    return float(stdtrit(pairs - 1, (1 + CONFIDENCE) / 2))


def summarise(study: Study) -> list[SummaryRow]:
    """One row per arm that was evaluated at least once."""
    return [_row(arm, arm.step, reference_of(arm, study)) for arm in study.arms if arm.step is not None]


def curve(arm: Arm, axis: Axis, measure: Measure, runs: Sequence[Run] | None = None) -> Curve:
    """The mean curve over ``runs`` (those counted, if None), at the steps at which all were evaluated."""
    chosen = arm.counted if runs is None else runs
    steps = common_steps(chosen, measure)
    x_RE = np.array([[run.spent(axis, step) for step in steps] for run in chosen], dtype=np.float64)
    y_RE = np.array([[run.evaluations[step][measure] for step in steps] for run in chosen], dtype=np.float64)
    if not steps:
        return Curve([], np.zeros(0), np.zeros(0), None)
    error_E = y_RE.std(axis=0, ddof=1) / np.sqrt(len(chosen)) if len(chosen) > 1 else None
    return Curve(steps, x_RE.mean(axis=0), y_RE.mean(axis=0), error_E)


def _row(arm: Arm, step: int, reference: Reference) -> SummaryRow:
    runs = arm.counted
    last = [run.evaluations[step] for run in runs]
    trained = [row for run in runs for row in run.metrics if 1 <= row["step"] <= step]
    medians = [median for run in runs if (median := _median_seconds(run, step)) is not None]
    measures: tuple[Measure, ...] = ("pool_success", "held_out_success")
    return SummaryRow(
        arm=arm,
        step=step,
        seeds=len(runs),
        success={m: Estimate.of([row[m] for row in last]) if all(m in row for row in last) else None for m in measures},
        difference={m: None if arm.is_uniform else _paired(runs, step, m, reference) for m in measures},
        reference=reference,
        rollouts=float(np.mean([row["rollouts_total"] for row in last])),
        tokens=float(np.mean([row["tokens_total"] for row in last])),
        zero_variance=float(np.mean([row["zero_variance_groups"] for row in trained])) if trained else None,
        counts=(min(r["min_count"] for r in trained), max(r["max_count"] for r in trained)) if trained else None,
        seconds=float(np.mean(medians)) if medians else None,
    )


def _paired(runs: Sequence[Run], step: int, measure: Measure, reference: Reference) -> Estimate | None:
    """The mean of (run - uniform) over seeds that both have, at ``step``."""
    pairs = [(run, uniform) for run in runs if (uniform := reference.partner(run, step)) is not None]
    values = [(run.evaluations[step].get(measure), uniform.evaluations[step].get(measure)) for run, uniform in pairs]
    differences = [own - other for own, other in values if own is not None and other is not None]
    return Estimate.of(differences) if differences else None


def _median_seconds(run: Run, step: int) -> float | None:
    seconds = [row["seconds"] for row in run.timing if row["step"] <= step]
    return float(np.median(seconds)) if seconds else None
