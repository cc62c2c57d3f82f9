"""A run on disk: ``config.json``, ``metrics.jsonl``, ``rollouts.jsonl``, ``timing.jsonl``, ``checkpoint.safetensors``.

Everything but ``timing.jsonl`` is a function of the configuration: an interrupted and resumed run leaves the same bytes
as one that was never interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from allotment.config import TrainConfig
from allotment.errors import ConfigError, RunDirectoryError, message
from allotment.state import State, load_state, save_state

LOGS = ("metrics.jsonl", "rollouts.jsonl", "timing.jsonl")
CHECKPOINT_KIND = "lab-checkpoint"


class RunDirectory:
    """Opens a run directory, new or to be resumed, and appends to its logs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config: TrainConfig) -> RunDirectory:
        """A new run in ``path``.

        Raises:
            RunDirectoryError: the directory already holds a run.
        """
        run = cls(path)
        if run.config_path.exists():
            raise RunDirectoryError(
                message(
                    "the output directory already holds a run",
                    got=path,
                    allowed="a directory without config.json",
                    fix="pass --resume to continue it, another --out, or delete it",
                )
            )
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(run.config_path, config.to_json())
        return run

    @classmethod
    def resume(cls, path: Path, config: TrainConfig) -> RunDirectory:
        """The run in ``path``, with a config that differs from the saved one in ``steps`` at most.

        Raises:
            RunDirectoryError: there is no run.
            ConfigError: another field differs.
        """
        saved = saved_config(path)
        different = [
            name
            for name in TrainConfig.model_fields
            if name != "steps" and getattr(saved, name) != getattr(config, name)
        ]
        if different:
            raise ConfigError(
                message(
                    f"a resumed run keeps its configuration; {', '.join(different)} differ from {path}/config.json",
                    got={name: getattr(config, name) for name in different},
                    allowed={name: getattr(saved, name) for name in different},
                    fix="leave these flags out, or start a new run in another --out",
                )
            )
        run = cls(path)
        write_atomically(run.config_path, config.to_json())
        return run

    @property
    def config_path(self) -> Path:
        """Where the resolved configuration lies."""
        return self.path / "config.json"

    @property
    def checkpoint_path(self) -> Path:
        """Where the newest checkpoint lies."""
        return self.path / "checkpoint.safetensors"

    def append(self, log: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add lines to a log."""
        with open(self.path / log, "a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))

    def save_checkpoint(self, state: State) -> None:
        """Flush the logs to disk, then replace the checkpoint."""
        for log in LOGS:
            if (self.path / log).exists():
                with open(self.path / log, "rb") as file:
                    os.fsync(file.fileno())
        save_state(self.checkpoint_path, state, kind=CHECKPOINT_KIND)

    def load_checkpoint(self) -> State | None:
        """The newest checkpoint, None if the run was killed before the first; logs are cut back to it."""
        state = load_state(self.checkpoint_path, kind=CHECKPOINT_KIND) if self.checkpoint_path.exists() else None
        last_step = -1 if state is None else state["step"]
        for log in LOGS:
            path = self.path / log
            if path.exists():
                write_atomically(
                    path, "".join(line for line in _whole_lines(path) if json.loads(line)["step"] <= last_step)
                )
        return state


def saved_config(path: Path) -> TrainConfig:
    """The configuration of the run in ``path``.

    Raises:
        RunDirectoryError: there is no run.
    """
    if not (path / "config.json").exists():
        raise RunDirectoryError(
            message("there is no run to read", got=path, allowed="a directory with config.json", fix="check the path")
        )
    return TrainConfig.from_json(path / "config.json")


def read_log(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a log; a last line cut short by a kill is left out. Empty if there is no file."""
    return [json.loads(line) for line in _whole_lines(path)] if path.exists() else []


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file in one go."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _whole_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
