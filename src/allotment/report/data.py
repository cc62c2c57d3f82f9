"""Runs grouped into arms: runs that differ in nothing but their seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from allotment.config import RunConfig
from allotment.errors import RunDirectoryError
from allotment.registry import PLANNERS
from allotment.report.run import Row, Run, common_steps
from allotment.report.trl_runs import read_python_run
from allotment.run_logs.directory import LOGS, saved_config
from allotment.run_logs.files import read_log
from allotment.run_logs.trl_folder import STATE, is_of_model, is_trl_folder


def read_run(path: Path) -> Run:
    """Read one run directory, or the folder of a TRL run from Python; a last line that a kill cut short is left out of
    its log. Raises RunDirectoryError: there is no run, or a log is damaged before its last line; ConfigError: the
    configuration does not fit this version.
    """
    if is_trl_folder(path):
        return read_python_run(path)
    if not (path / "config.json").exists() or is_of_model(path / "config.json"):
        raise RunDirectoryError(
            "there is no run to read",
            got=path,
            allowed="a directory with config.json of allotment train, or a TRL run's output_dir with rollouts.jsonl",
            fix="name the folder above this checkpoint" if (path / STATE).exists() else "check the path",
        )
    config = saved_config(path)
    logs: dict[str, list[Row]] = {}
    for log in LOGS:
        try:
            logs[log] = read_log(path / log)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunDirectoryError(
                f"{path / log} is damaged",
                got=error,
                allowed="one JSON object a line; only the last line may be cut short",
                fix="restore the file, or train again with --resume from the last checkpoint",
            ) from error
    cut = tuple(log for log in LOGS if _is_cut(path / log))
    resumed = tuple(row["step"] for row in logs["timing.jsonl"] if "resumed" in row)
    timing = [row for row in logs["timing.jsonl"] if "resumed" not in row]
    return Run(path, config, logs["metrics.jsonl"], logs["rollouts.jsonl"], timing, resumed, cut)


def _is_cut(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")


BOOKKEEPING = frozenset({"seed", "evaluate_every", "checkpoint_every"})
"""Settings that change what is written down, or which sample is drawn, but not what is compared."""

METHOD = frozenset({"planner", "planner_settings", "candidate_prompts", "select", "select_settings"})
"""Settings that say which method runs, and are compared with plain uniform."""

PLANNER_ORDER = PLANNERS.built_in


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but their seed: one line of every figure, one row of every table."""

    label: str
    """The planner's name, with the settings in which it departs from most runs; no two arms share it."""
    runs: tuple[Run, ...]
    """By seed; at least one."""

    @property
    def config(self) -> RunConfig:
        """The configuration, whose seed is that of the first run."""
        return self.runs[0].config

    @property
    def is_uniform(self) -> bool:
        """Whether this is the reference that others are compared with."""
        return self.config.planner == "uniform"

    @cached_property
    def counted(self) -> tuple[Run, ...]:
        """The runs that means are taken over: the finished ones, or all evaluated ones if none has finished."""
        finished = tuple(run for run in self.runs if run.finished)
        return finished or tuple(run for run in self.runs if run.evaluations)

    @cached_property
    def steps(self) -> list[int]:
        """The steps at which every counted run was evaluated, ascending; empty if no run was."""
        return common_steps(self.counted)

    @property
    def step(self) -> int | None:
        """The last step at which all counted runs can be compared; None if there is none."""
        return self.steps[-1] if self.steps else None


@dataclass(frozen=True)
class Study:
    """All that a page is about."""

    arms: tuple[Arm, ...]
    """Uniform first, then in the order the command line names planners; the usual settings before others."""
    repeated: tuple[str, ...] = ()
    """Why some directories were left out: given twice, or the same configuration and seed as another."""

    @property
    def runs(self) -> list[Run]:
        """All runs, arm by arm."""
        return [run for arm in self.arms for run in arm.runs]

    @property
    def differing(self) -> dict[str, list[Any]]:
        """Settings in which the arms differ, beside the planner, with their values; the most frequent one first."""
        usual = _usual([run.config for run in self.runs])
        found = differing_settings([arm.config for arm in self.arms])
        return {name: [usual[name], *(v for v in values if v != usual[name])] for name, values in found.items()}


def read_study(run_directories: Sequence[Path]) -> Study:
    """Read run directories and group them; each directory, and each configuration with its seed, counts once. Raises
    RunDirectoryError: none was given, one holds no run, or a log is damaged; ConfigError: a configuration does not fit
    this version.
    """
    if not run_directories:
        raise RunDirectoryError(
            "no run to report on", got="no directory", allowed="at least 1", fix="name a run directory"
        )
    repeated: list[str] = []
    directories: dict[Path, Path] = {}
    for path in map(Path, run_directories):
        if path.resolve() in directories:
            repeated.append(f"{path} was given more than once and counts once.")
        directories.setdefault(path.resolve(), path)
    runs: dict[str, Run] = {}
    for run in map(read_run, directories.values()):
        key = setting_key(run.config, BOOKKEEPING - {"seed"})
        if run.from_python is not None:  # which rewards and data it had is not recorded
            key += f" {hash(tuple((row['step'], row['prompt_id'], row['successes']) for row in run.rollouts))}"
        kept = max(runs.get(key, run), run, key=lambda each: each.last_step)
        if key in runs:
            left = run if kept is runs[key] else runs[key]
            repeated.append(
                f"{left.path} has the same configuration and seed as {kept.path}: the same run, not a second seed. "
                "It is left out."
            )
        runs[key] = kept
    return Study(_arms(list(runs.values())), tuple(dict.fromkeys(repeated)))


def setting_key(config: RunConfig, without: frozenset[str]) -> str:
    """A configuration as a dictionary key, some of its fields left out."""
    return config.model_dump_json(exclude=set(without))


def differing_settings(configs: Sequence[RunConfig]) -> dict[str, list[Any]]:
    """The fields in which configurations differ, with their values; planner and bookkeeping aside."""
    names = dict.fromkeys(name for config in configs for name in type(config).model_fields)
    values = {
        name: _distinct([getattr(config, name, None) for config in configs])
        for name in names
        if name not in BOOKKEEPING | {"planner"}
    }
    return {name: found for name, found in values.items() if len(found) > 1}


def _arms(runs: list[Run]) -> tuple[Arm, ...]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(setting_key(run.config, BOOKKEEPING), []).append(run)
    usual = _usual([run.config for run in runs])
    arms = [
        Arm(_label(group[0].config, usual), tuple(sorted(group, key=lambda run: run.config.seed)))
        for group in groups.values()
    ]
    rank = {name: place for place, name in enumerate(("uniform", *(n for n in PLANNER_ORDER if n != "uniform")))}
    return tuple(
        sorted(arms, key=lambda arm: (rank.get(arm.config.planner, len(rank)), arm.label != arm.config.planner))
    )


def _usual(configs: Sequence[RunConfig]) -> dict[str, Any]:
    """The most frequent value (the first of them) of each setting in which configurations differ."""
    values = {name: [getattr(c, name, None) for c in configs] for name in differing_settings(configs)}
    return {name: max(_distinct(found), key=found.count) for name, found in values.items()}


def _distinct(values: list[Any]) -> list[Any]:
    """In the order of their first appearance; some are dictionaries, which have no hash."""
    return [value for place, value in enumerate(values) if value not in values[:place]]


def _label(config: RunConfig, usual: dict[str, Any]) -> str:
    named = [name for name, value in usual.items() if getattr(config, name, None) != value]
    told = [f"{name.replace('_', ' ')} {setting_text(getattr(config, name, None))}" for name in named]
    return ", ".join([config.planner, *told])


def setting_text(value: Any) -> str:
    """The value of a setting as one would write it on the command line."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "as by default"
    return str(value)
