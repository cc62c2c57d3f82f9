"""The folder of a TRL run that was started from Python: what can be known of it.

``rollouts.jsonl`` has every step. The rest is in the newest whole checkpoint: ``trainer_state.json`` (what was logged,
and how many steps there will be) and ``planner.safetensors`` (the planner's settings). Nothing else is read, no pickle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from allotment.errors import AllotmentError, RunDirectoryError
from allotment.planning.making import make_planner
from allotment.planning.planner import PLANNER_FILE
from allotment.registry import PLANNERS
from allotment.run_logs.files import read_log
from allotment.state import State, load_state

Row = dict[str, Any]
ROLLOUTS, STATE = "rollouts.jsonl", "trainer_state.json"
KINDS = {"trl-planner": "steps", "trl-preferences": "rounds"}
"""Kinds of a planner's file beside a checkpoint, and the key under which each has its steps."""


@dataclass(frozen=True)
class Checkpoint:
    """What one checkpoint says of the run up to it."""

    path: Path
    history: tuple[Row, ...]
    """What TRL logged, ``step`` being that of its optimizer."""
    updates: int
    """Optimizer steps that were made."""
    max_updates: int
    """Optimizer steps that there will be."""
    told: int
    """Steps of the planner that were made."""
    planner: State | None = None
    """The planner's state; None where there is no file of it."""

    def step(self, updates: float) -> int:
        """The planner's step that an optimizer step belongs to: there may be several to a generation, or the reverse.

        0 before the first.
        """
        return int(np.ceil(updates * self.told / self.updates - 1e-9)) if self.updates else 0


@dataclass(frozen=True)
class TRLFolder:
    """A run's folder."""

    path: Path
    rollouts: list[Row]
    """The lines of ``rollouts.jsonl``."""
    is_cut: bool
    """Whether its last line was cut short, and is left out."""
    checkpoint: Checkpoint | None
    """The newest that is whole; None before the first."""
    damaged: tuple[Path, ...] = ()
    """Files of newer checkpoints that cannot be read."""

    @property
    def last_step(self) -> int:
        """The last step in ``rollouts.jsonl``."""
        return max((int(row["step"]) for row in self.rollouts), default=0)

    @property
    def steps(self) -> int | None:
        """Steps that there will be; None where no checkpoint says."""
        return None if self.checkpoint is None else self.checkpoint.step(self.checkpoint.max_updates)

    @property
    def planner(self) -> str | None:
        """The planner's name; None where no checkpoint says."""
        state = None if self.checkpoint is None else self.checkpoint.planner
        return None if state is None else planner_name(state)


def is_trl_folder(path: Path) -> bool:
    """Whether a run of TRL's trainers from Python lies here: no run directory, but a log or a checkpoint.

    A ``config.json`` may be that of the model, which TRL saves where it is told to.
    """
    if (path / "config.json").exists() and not is_of_model(path / "config.json"):
        return False
    return (path / ROLLOUTS).exists() or any(_states(path))


def read_trl_folder(path: Path) -> TRLFolder:
    """Read the folder of a run. RunDirectoryError: there is no ``rollouts.jsonl``, or it is damaged."""
    file = path / ROLLOUTS
    if not file.exists():
        raise RunDirectoryError(
            f"a TRL run without {ROLLOUTS}",
            got=path,
            allowed="the output_dir of AllotmentGRPOTrainer or another of Allotment's trainers",
            fix="check the path; TRL's own trainers do not write this log",
        )
    try:
        rows = read_log(file)
        rows.sort(key=lambda row: int(row["step"]))
    except (ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(
            f"{file} is damaged",
            got=f"{type(error).__name__}: {error}",
            allowed="one JSON object a line; only the last line may be cut short",
            fix="restore the file, or resume the run from a checkpoint: later lines are written again",
        ) from error
    last, damaged, newest = max((int(row["step"]) for row in rows), default=0), [], None
    for state in _states(path):
        try:
            found = _checkpoint(state)
        except (AllotmentError, ValueError, KeyError, TypeError, OSError):
            damaged.append(state)
            continue
        if found.told <= last:  # a later one was left by a run that was resumed from an earlier one
            newest = found
            break
    return TRLFolder(path, rows, not _ends_whole(file), newest, tuple(damaged))


def _states(path: Path) -> list[Path]:
    """The states of the trainer, of the newest checkpoint first."""

    def updates(state: Path) -> int:
        number = state.parent.name.partition("-")[2]
        return int(number) if number.isdigit() else -1

    return sorted(path.glob(f"checkpoint-*/{STATE}"), key=updates, reverse=True)


def _checkpoint(file: Path) -> Checkpoint:
    state = json.loads(file.read_text(encoding="utf-8"))
    updates, planner, told = int(state["global_step"]), None, int(state["global_step"])
    if (saved := file.with_name(PLANNER_FILE)).exists():
        planner, told = _planner(saved)
    history = tuple(row for row in state["log_history"] if isinstance(row["step"], int))
    return Checkpoint(file.parent, history, updates, int(state["max_steps"]), told, planner)


def _planner(file: Path) -> tuple[State, int]:
    """A planner's state, and the steps it was told."""
    errors = []
    for kind, key in KINDS.items():
        try:
            saved = load_state(file, kind=kind)
            return dict(saved["planner"]), int(saved[key])
        except AllotmentError as error:
            errors.append(error)
    raise errors[0]


def planner_name(state: State) -> str:
    """The name of the planner that has this state, as the registry spells it; else that of its class."""
    settings = state["settings"]
    limits = {key: settings[key] for key in ("budget", "estimator", "seed")}
    about = {"embeddings": np.zeros((1, 1)), "ids": ["0"], "success_probability": lambda ids: np.full(len(ids), 0.5)}
    for name in PLANNERS.names:
        try:
            bounds = (settings["lower"], settings["upper"])
            made = make_planner(name, offered=about, bounds=bounds, **limits).state_dict()
        except (AllotmentError, TypeError):
            continue
        same = {**made["settings"], **{k: settings.get(k) for k in _FREE if k in made["settings"]}}
        if made["kind"] == state["kind"] and same == settings:
            return name
    return str(state["kind"])


_FREE = ("prompts", "trained_prompts", "success_threshold", "threshold")
"""Settings that do not tell planners apart."""


def is_of_model(file: Path) -> bool:
    """Whether a ``config.json`` is that of a Hugging Face model."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and ("model_type" in found or "architectures" in found)


def _ends_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        if size:
            file.seek(-1, 2)
        return not size or file.read(1) == b"\n"


def rows_by_step(rollouts: Sequence[Row]) -> dict[int, list[Row]]:
    """The lines of each step."""
    found: dict[int, list[Row]] = {}
    for row in rollouts:
        found.setdefault(int(row["step"]), []).append(row)
    return found
