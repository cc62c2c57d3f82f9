"""The runs of a comparison and its numbers: paired differences to uniform, and the budget to reach its success."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from allotment.config import RunConfig
from allotment.errors import ConfigError
from allotment.registry import TRAINERS
from allotment.report.data import Arm, read_run
from allotment.report.run import Run
from allotment.report.summary import Estimate, Measure, curve
from allotment.run_logs.directory import saved_config
from allotment.trainers import trainer_name
from allotment.types import FloatArray

Role = Literal["reference", "planner", "yardstick"]


@dataclass(frozen=True)
class Entry:
    """A line of the table: a planner at a budget, which is its own or, as a yardstick, twice the block's."""

    planner: str
    """Its name; ``PLANNER+SELECTOR`` where it trains on a selection of its rollouts."""
    rollouts_per_prompt: int
    role: Role
    label: str


@dataclass(frozen=True)
class Job:
    """One run: where it lies, and what it is."""

    path: Path
    config: RunConfig


@dataclass(frozen=True)
class Comparison:
    """Planners at budgets, over paired seeds; ``settings`` is what all runs have in common."""

    out: Path
    settings: RunConfig
    planners: tuple[str, ...]
    budgets: tuple[int, ...]
    """Rollouts a prompt."""
    seeds: tuple[int, ...]
    yardsticks: bool = True
    """Whether uniform at twice the budget and, in the lab, the oracle run too."""

    def __post_init__(self) -> None:
        for name, values in (("planner", self.planners), ("budget", self.budgets)):
            if not values or len(set(values)) < len(values):
                raise ConfigError(
                    f"each {name} is compared once",
                    got=" ".join(map(str, values)) or "none",
                    allowed=f"at least one {name}, all different",
                    fix=f"check --{name}s",
                )

    def block(self, budget: int) -> list[Entry]:
        """The lines of the table at one budget: uniform first, yardsticks last."""
        named = [name for name in self.planners if name != "uniform"]
        entries = [Entry("uniform", budget, "reference", "uniform")]
        entries += [Entry(name, budget, "planner", name) for name in named]
        if self.yardsticks:
            if TRAINERS[trainer_name(self.settings)].has_oracle and "oracle" not in named:
                entries.append(Entry("oracle", budget, "yardstick", "oracle"))
            entries.append(Entry("uniform", 2 * budget, "yardstick", "uniform, 2x budget"))
        return entries

    @property
    def jobs(self) -> list[Job]:
        """Every run once; seeds outermost, so that pairs are complete early. Raises ConfigError: the settings do not
        admit a planner or a budget.
        """
        entries = [entry for budget in self.budgets for entry in self.block(budget)]
        jobs = [self.job(entry, seed) for seed in self.seeds for entry in entries]
        return list({job.path: job for job in jobs}.values())

    def job(self, entry: Entry, seed: int) -> Job:
        """The run of an entry and a seed; twice the budget raises the upper bound where it must."""
        mean = entry.rollouts_per_prompt
        suffix = "" if mean == self.settings.rollouts_per_prompt else f"-b{mean}"
        planner, _, selector = entry.planner.partition("+")
        changed = {"planner": planner, "seed": seed, "rollouts_per_prompt": mean}
        lower, upper = self.settings.model_copy(update={"planner": planner}).limits
        if self.settings.bounds is not None or (mean > upper and mean not in self.budgets):
            changed["bounds"] = (lower, upper if mean in self.budgets else max(upper, mean))
        if selector:
            changed["select"] = selector
        config = type(self.settings).from_values(self.settings.model_dump() | changed, f"the {entry.label} runs")
        return Job(self.out / f"{entry.planner}{suffix}-s{seed}", config)


def finished_run(job: Job) -> Run | None:
    """The run of a job if it reached the last step; None if it is still to be made or continued. Raises ConfigError:
    the directory holds a run with other settings, or one that is already past the last step; RunDirectoryError: a log
    is damaged.
    """
    if not (job.path / "config.json").exists():
        return None
    saved = saved_config(job.path)
    if saved.steps > job.config.steps or saved.model_copy(update={"steps": job.config.steps}) != job.config:
        different = [n for n in type(saved).model_fields if getattr(saved, n) != getattr(job.config, n, None)]
        raise ConfigError(
            f"{job.path} holds a run with other settings: {', '.join(different)}",
            got={name: getattr(job.config, name, None) for name in different},
            allowed={name: getattr(saved, name) for name in different},
            fix="give the settings it was made with (more --steps continue it), or compare in another folder",
        )
    run = read_run(job.path)
    return _evaluated_as_configured(run) if job.config.steps in run.evaluations else None


def _evaluated_as_configured(run: Run) -> Run:
    """Without the evaluation at the end of fewer steps, from which the run was continued: in one go there is none."""
    config, measures = run.config, get_args(Measure)
    extra = {step for step in run.evaluations if step % config.evaluate_every and step != config.steps}
    metrics = [
        {name: value for name, value in row.items() if row["step"] not in extra or name not in measures}
        for row in run.metrics
    ]
    return replace(run, metrics=metrics)


def finished_runs(jobs: Sequence[Job]) -> dict[Path, Run]:
    """The finished runs among ``jobs``, by directory."""
    return {job.path: run for job in jobs if (run := finished_run(job)) is not None}


def value_at(x_E: FloatArray, y_E: FloatArray, x: float) -> float | None:
    """The curve at ``x``, linear between evaluations; None outside [x_E[0], x_E[-1]].

    Args:
        x_E: rollouts, tokens or seconds so far, ascending; [E].
        y_E: success probability; [E].
        x: in the unit of ``x_E``.
    """
    if len(x_E) == 0 or not x_E[0] <= x <= x_E[-1]:
        return None
    return float(np.interp(x, x_E, y_E))


def difference_at_common_end(
    x_E: FloatArray, y_E: FloatArray, other_x_F: FloatArray, other_y_F: FloatArray
) -> tuple[float, float] | None:
    """``(x, first minus second curve)`` at the largest ``x`` that both reached; None where they do not overlap."""
    if len(x_E) == 0 or len(other_x_F) == 0:
        return None
    x = min(float(x_E[-1]), float(other_x_F[-1]))
    own, other = value_at(x_E, y_E, x), value_at(other_x_F, other_y_F, x)
    return None if own is None or other is None else (x, own - other)


def first_reach(x_E: FloatArray, y_E: FloatArray, target: float) -> float | None:
    """The smallest ``x`` at which the curve is at ``target`` or above, linear between evaluations; None if nowhere."""
    above = np.flatnonzero(y_E >= target)
    if len(above) == 0:
        return None
    after = int(above[0])
    if after == 0:
        return float(x_E[0])
    share = (target - y_E[after - 1]) / (y_E[after] - y_E[after - 1])
    return float(x_E[after - 1] + share * (x_E[after] - x_E[after - 1]))


Cost = Literal["steps", "rollouts", "tokens", "seconds"]
COSTS: tuple[Cost, ...] = get_args(Cost)
MEASURES: tuple[Measure, ...] = get_args(Measure)


@dataclass(frozen=True)
class Difference:
    """Success of an entry minus that of uniform at an equal cost, paired by seed."""

    estimate: Estimate
    at: float
    """The cost at which the pairs are compared: the largest that both runs of a pair reached; mean over pairs."""
    share: float
    """``at`` over what uniform cost in all."""


@dataclass(frozen=True)
class Reach:
    """Rollouts until the curve is first at uniform's final success."""

    rollouts: float
    """Where the mean curve over seeds crosses."""
    standard_error: float | None
    """Over seeds, each against its own partner; None with one seed, or where not every seed crosses."""
    share: float
    """``rollouts`` over what uniform took in all."""


@dataclass(frozen=True)
class Line:
    """One entry against uniform at the block's budget, over the seeds that have finished with both."""

    entry: Entry
    seeds: tuple[int, ...]
    success: Mapping[Measure, Estimate]
    """At the end of the runs."""
    differences: Mapping[Cost, Mapping[Measure, Difference | None]]
    """None where nothing can be compared: no pair, or steps without timings. Empty for the reference itself."""
    reach: Mapping[Measure, Reach | None]
    """None where the mean curve never gets there."""
    rollouts: float
    """Of a run, mean over seeds."""
    tokens: float
    """Of a run, mean over seeds."""
    zero_variance: float
    """Share of groups whose rewards are all equal, mean over steps and seeds."""


def lines(comparison: Comparison, runs: Mapping[Path, Run], budget: int) -> list[Line]:
    """The lines of one block; entries without a finished pair are left out.

    Args:
        comparison: what was to be run.
        runs: the finished runs, by directory.
        budget: rollouts a prompt of the block.
    """
    found = []
    for entry in comparison.block(budget):
        own = {seed: runs.get(comparison.job(entry, seed).path) for seed in comparison.seeds}
        reference = Entry("uniform", budget, "reference", "uniform")
        others = {seed: runs.get(comparison.job(reference, seed).path) for seed in comparison.seeds}
        pairs = {seed: (run, other) for seed, run in own.items() if run and (other := others[seed])}
        if pairs:
            found.append(line(entry, tuple(pairs), list(pairs.values())))
    return found


def line(entry: Entry, seeds: tuple[int, ...], pairs: Sequence[tuple[Run, Run]]) -> Line:
    """One line from at least one pair (run, uniform)."""
    own = [run for run, _ in pairs]
    last = [run.evaluations[run.config.steps] for run in own]
    zero_variance = [row["zero_variance_groups"] for run in own for row in run.metrics if row["step"] >= 1]
    return Line(
        entry=entry,
        seeds=seeds,
        success={m: Estimate.of([row[m] for row in last]) for m in MEASURES},
        differences={}
        if entry.role == "reference"
        else {cost: {m: difference(pairs, cost, m) for m in MEASURES} for cost in COSTS},
        reach={m: reach(pairs, m) for m in MEASURES},
        rollouts=float(np.mean([row["rollouts_total"] for row in last])),
        tokens=float(np.mean([row["tokens_total"] for row in last])),
        zero_variance=float(np.mean(zero_variance)),
    )


def difference(pairs: Sequence[tuple[Run, Run]], cost: Cost, measure: Measure) -> Difference | None:
    """The mean over pairs of first minus second run, each pair at the largest cost that both reached."""
    at, differences, totals = [], [], []
    for run, other in pairs:
        own_x_E, other_x_F = costs(run, cost), costs(other, cost)
        if own_x_E is None or other_x_F is None:
            return None
        found = difference_at_common_end(own_x_E, column(run, measure), other_x_F, column(other, measure))
        if found is None:
            return None
        at.append(found[0])
        differences.append(found[1])
        totals.append(other_x_F[-1])
    return Difference(Estimate.of(differences), float(np.mean(at)), float(np.mean(at) / np.mean(totals)))


def reach(pairs: Sequence[tuple[Run, Run]], measure: Measure) -> Reach | None:
    """Where the runs get to the final success of their partners."""
    finals = [column(other, measure)[-1] for _, other in pairs]
    totals = [column(other, "rollouts_total")[-1] for _, other in pairs]
    mean = curve(Arm("", tuple(run for run, _ in pairs)), "rollouts_total", measure)
    crossing = first_reach(mean.x, mean.mean, float(np.mean(finals)))
    if crossing is None:
        return None
    each = [
        first_reach(column(run, "rollouts_total"), column(run, measure), final)
        for (run, _), final in zip(pairs, finals, strict=True)
    ]
    crossed = [x for x in each if x is not None]
    error = Estimate.of(crossed).standard_error if len(crossed) == len(each) else None
    return Reach(crossing, error, crossing / float(np.mean(totals)))


def costs(run: Run, cost: Cost) -> FloatArray | None:
    """Steps, rollouts, tokens or seconds up to each evaluation; [E]. None where a step was not timed."""
    if cost != "seconds":
        return column(run, "step" if cost == "steps" else f"{cost}_total")
    if not run.timed:
        return None
    return np.array([run.spent("seconds_total", step) for step in run.evaluations], dtype=np.float64)


def column(run: Run, name: str) -> FloatArray:
    """A field of the metrics at each evaluation; [E]."""
    return np.array([row[name] for row in run.evaluations.values()], dtype=np.float64)
