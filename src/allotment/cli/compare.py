"""``allotment compare``: planners x budgets x seeds against uniform, in parallel, resumable."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import create_model
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from allotment.cli.train import split_trainer, with_settings
from allotment.compare import Comparison, Ended, Job, as_json, as_text, finished_runs, lines
from allotment.compare.running import on_processes, on_ray
from allotment.compare.table import WIDTH
from allotment.config import RunConfig
from allotment.errors import AllotmentError, ConfigError
from allotment.planning.contract import Capability, works_with
from allotment.registry import TRAINERS
from allotment.run_logs.one_writer import one_writer
from allotment.trainers import trainer_name


class RunsFailedError(AllotmentError):
    """Some runs of a comparison did not finish."""


@dataclass(frozen=True)
class _Compare:
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder of the runs, one run directory each: PLANNER[-bBUDGET]-sSEED. Finished runs are not repeated, interrupted
    ones continued."""
    planners: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PLANNER...")] = ("vip",)
    """Planners, as `allotment train --planner` takes them; PLANNER+SELECTOR, such as vip+pods, trains on a selection;
    all stands for every planner the trainer can carry out. uniform, the reference, always runs."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="F.toml")] = None
    """TOML file with any of the settings; flags override it."""
    seeds: int = 6
    """Number of paired runs, of seeds --seed, --seed + 1, ..."""
    budgets: tuple[int, ...] = ()
    """Mean rollouts a prompt; --rollouts-per-prompt if there is none."""
    yardsticks: bool = True
    """Whether uniform at twice the budget and, in the lab, the oracle are run beside the planners."""
    processes: int = 2
    """Processes on this machine, one run at a time in each; a Ray cluster decides by its cores."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Run on the Ray cluster at this address (auto: the one this machine belongs to; local: a new one here)."""
    gpus_per_run: float = 0.0
    """GPUs of a run on Ray, a fraction shares one; Ray hides the others from it. Local processes share them all."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def run(self) -> None:
        """Make the runs that are missing, then print the table of those that have finished."""
        comparison = self.comparison()
        jobs = comparison.jobs
        with one_writer(self.out), redirect_stdout(sys.stderr):  # standard output is the table's, not Ray's
            finished = finished_runs(jobs)
            failed = self._train([job for job in jobs if job.path not in finished], len(jobs))
            runs = finished_runs(jobs)
        blocks = {budget: lines(comparison, runs, budget) for budget in comparison.budgets}
        width = min(Console().width, WIDTH) if sys.stdout.isatty() else WIDTH
        print(json.dumps(as_json(comparison, blocks)) if self.json else as_text(comparison, blocks, width))
        if failed:
            raise RunsFailedError(
                f"{len(failed)} of {len(jobs)} runs did not finish",
                got=f"{failed[0].job.path.name}: {str(failed[0].error).splitlines()[0]}",
                allowed="runs that end",
                fix="see each run's line above; the same command takes them up again",
            )

    def comparison(self) -> Comparison:
        """What is to be run.

        Raises:
            ConfigError: a planner or a budget stands twice, or there is no seed or no process.
        """
        for name, value in (("seeds", self.seeds), ("processes", self.processes)):
            if value < 1:
                raise ConfigError(f"--{name} is too small", got=value, allowed="1 or more", fix="raise it")
        if self.gpus_per_run < 0 or (self.gpus_per_run > 0 and self.ray is None):
            raise ConfigError(
                "--gpus-per-run cannot be had",
                got=f"--gpus-per-run {self.gpus_per_run:g}, --ray {self.ray}",
                allowed="0 or more, and only with --ray",
                fix="leave it out, or name a cluster with --ray",
            )
        given: RunConfig = self.settings  # type: ignore[attr-defined]
        trainer = TRAINERS[trainer_name(given)]
        settings = trainer.config.from_values(given.model_dump(), "the command line")
        seeds = tuple(range(settings.seed, settings.seed + self.seeds))
        budgets = self.budgets or (settings.rollouts_per_prompt,)
        every = every_planner(trainer.capability)
        planners = tuple(name for given in self.planners for name in (every if given == "all" else (given,)))
        return Comparison(self.out, settings, planners, budgets, seeds, self.yardsticks)

    def _train(self, jobs: Sequence[Job], total: int) -> list[Ended]:
        """The runs that failed; a bar over runs on a terminal, one plain line a run elsewhere."""
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        failed = []
        with (
            Progress(*columns, console=console, disable=not console.is_terminal) as progress,
            closing(self._ends(jobs)) as ends,
        ):
            task = progress.add_task("runs", total=total, completed=total - len(jobs))
            if jobs and len(jobs) < total:
                console.print(f"{total - len(jobs)} of {total} runs have finished before", highlight=False)
            for ended in ends:
                progress.advance(task)
                if ended.error is not None:
                    failed.append(ended)
                if ended.error is not None or not console.is_terminal:
                    said = "finished" if ended.error is None else f"failed: {ended.error}"
                    console.print(f"{ended.job.path.name} {said}", soft_wrap=True, highlight=False, markup=False)
        return failed

    def _ends(self, jobs: Sequence[Job]) -> Generator[Ended]:
        if self.ray is None:
            return on_processes(jobs, self.processes)
        return on_ray(jobs, self.ray, self.processes, self.gpus_per_run)


def every_planner(trainer: Capability) -> tuple[str, ...]:
    """What ``--planners all`` stands for: what the trainer can carry out but the reference and the yardstick, which run
    anyway, and what needs rewards of another kind.
    """
    return tuple(name for name in works_with(trainer) if name not in ("uniform", "oracle", "reward-variance"))


def command(arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """The form of ``allotment compare`` for the trainer in ``arguments``, with its defaults, and the words to parse."""
    trainer, words, values = split_trainer(arguments, positionals=1)
    config = TRAINERS[trainer].config
    hidden: Any = make_settings(config)
    given = None if values is None else hidden.from_values({**values, "trainer": trainer}, "the settings")
    return with_settings("Compare", _Compare, hidden, given, _DESCRIPTION.format(trainer)), words


def make_settings(config: type[RunConfig]) -> type[RunConfig]:
    """The configuration without a flag for the planner: planners are named apart."""
    planner: Any = (Annotated[str, tyro.conf.Suppress], "vip")
    made: type[RunConfig] = create_model(f"Common{config.__name__}", __base__=config, planner=planner)
    return made


_DESCRIPTION = "Compare planners with uniform over paired seeds; every run is one of allotment train {}."
