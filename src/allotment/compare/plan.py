"""Which runs a comparison is made of: planners x budgets x seeds, the reference and the yardsticks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from allotment.config import RunConfig
from allotment.errors import ConfigError
from allotment.registry import TRAINERS
from allotment.report.data import Run, read_run
from allotment.report.summary import Measure
from allotment.run_logs.directory import saved_config
from allotment.trainers import trainer_name

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
        lower, upper = self.settings.bounds
        bounds = (lower, upper if mean in self.budgets else max(upper, mean))
        planner, _, selector = entry.planner.partition("+")
        changed = {"planner": planner, "seed": seed, "rollouts_per_prompt": mean, "bounds": bounds}
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
