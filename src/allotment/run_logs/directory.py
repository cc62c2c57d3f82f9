"""A run on disk: ``config.json``, ``metrics.jsonl``, ``rollouts.jsonl``, ``timing.jsonl``, ``checkpoint.safetensors``.

Everything but ``timing.jsonl`` is a function of the configuration: an interrupted and resumed run leaves the same bytes
as one that was never interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from allotment.config import Config, RunConfig
from allotment.errors import (
    AllotmentError,
    ConfigError,
    RunDirectoryError,
    StateError,
    StateVersionError,
    memory_explained,
)
from allotment.registry import TRAINERS
from allotment.run_logs.files import append_rows, sync, whole_lines, write_atomically
from allotment.run_logs.one_writer import not_made
from allotment.state import State, load_state, save_state

LOGS = ("metrics.jsonl", "rollouts.jsonl", "timing.jsonl")
CHECKPOINT_KIND = "lab-checkpoint"


class RunDirectory:
    """Opens a run directory, new or to be resumed, and appends to its logs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path, self.checkpoint_path = path / "config.json", path / "checkpoint.safetensors"

    @classmethod
    def create(cls, path: Path, config: RunConfig) -> RunDirectory:
        """A new run in ``path``. Raises RunDirectoryError: the directory already holds a run, or cannot be made."""
        check_vacant(path)
        run = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_atomically(run.config_path, config.to_json())
        except OSError as error:
            raise not_made(error) from error
        return run

    @classmethod
    def resume(cls, path: Path, config: RunConfig) -> RunDirectory:
        """The run in ``path``, with a config that differs from the saved one in ``steps`` at most. Raises
        RunDirectoryError: there is no run, or its checkpoint or a log is damaged; ConfigError: another field differs,
        or the run is already past ``config.steps``.
        """
        saved = saved_config(path)
        different = [
            name
            for name in type(config).model_fields
            if name != "steps" and getattr(saved, name, None) != getattr(config, name)
        ]
        if different:
            raise ConfigError(
                f"a resumed run keeps its configuration; {', '.join(different)} differ from {path}/config.json",
                got={name: getattr(config, name) for name in different},
                allowed={name: getattr(saved, name, None) for name in different},
                fix="leave these flags out, or start a new run in another --out",
            )
        run = cls(path)
        checkpoint = run._read_checkpoint()
        if checkpoint is not None and checkpoint["step"] > config.steps:
            raise ConfigError(
                f"the run in {path} is already past its new last step",
                got=f"steps {config.steps}",
                allowed=f"{checkpoint['step']} or more",
                fix="raise --steps, or start a new run in another --out",
            )
        for left_by_a_kill in path.glob(".*.tmp"):
            left_by_a_kill.unlink()
        write_atomically(run.config_path, config.to_json())
        return run

    def append(self, log: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add lines to a log."""
        append_rows(self.path / log, rows)

    def save_checkpoint(self, state: State) -> None:
        """Flush the logs to disk, then replace the checkpoint."""
        for log in LOGS:
            sync(self.path / log)
        save_state(self.checkpoint_path, state, kind=CHECKPOINT_KIND)

    def load_checkpoint(self) -> State | None:
        """The newest checkpoint, None if the run was killed before the first; logs are cut back to it. Raises
        RunDirectoryError: the checkpoint or a log is damaged, or a log ends before the checkpoint.
        """
        state = self._read_checkpoint()
        self.cut_logs(-1 if state is None else state["step"])
        return state

    def cut_logs(self, step: int, logs: Sequence[str] = LOGS) -> None:
        """Take off the lines after ``step``, which will be repeated; -1 takes all. Raises RunDirectoryError: a log is
        damaged, or ends before ``step``.
        """
        kept = {log: self._lines_until(log, step) for log in logs if (self.path / log).exists() or step >= 0}
        for log, lines in kept.items():
            write_atomically(self.path / log, "".join(lines))

    def _read_checkpoint(self) -> State | None:
        if not self.checkpoint_path.exists():
            return None
        try:
            state = load_state(self.checkpoint_path, kind=CHECKPOINT_KIND, keys=("step",))
        except StateVersionError:
            raise
        except StateError as error:
            raise self._damaged(error.__cause__ or error) from error
        if type(state["step"]) is not int or state["step"] < 0:
            raise self._damaged(f"step {state['step']!r}")
        return state

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around taking a checkpoint over. RunDirectoryError: what it holds is not what this run saved."""
        try:
            with memory_explained():
                yield
        except AllotmentError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error

    def _damaged(self, got: object) -> RunDirectoryError:
        return RunDirectoryError(
            f"{self.checkpoint_path} is damaged",
            got=got,
            allowed="a checkpoint as it was written",
            fix="restore the file, or delete it: --resume then repeats the run from step 0, to the same bytes",
        )

    def _lines_until(self, log: str, step: int) -> list[str]:
        """The lines of a log up to ``step``, all of which a checkpoint of that step has on disk."""
        path = self.path / log
        lines, last = [], -1
        try:
            for line in whole_lines(path) if path.exists() else ():
                text = line.decode()
                if (row_step := json.loads(text)["step"]) <= step:
                    lines.append(text)
                    last = row_step
        except (ValueError, KeyError, TypeError) as error:
            raise self._unusable(log, f"line {len(lines) + 1}: {type(error).__name__}: {error}") from error
        if last < step and log != "timing.jsonl":
            raise self._unusable(log, f"no line of step {step}, where the checkpoint is")
        return lines

    def _unusable(self, log: str, got: str) -> RunDirectoryError:
        return RunDirectoryError(
            f"{self.path / log} is damaged or incomplete",
            got=got,
            allowed="one JSON object a line, up to the checkpoint; only the last line may be cut short",
            fix="restore the file, or delete all logs and the checkpoint: --resume then starts again at step 0",
        )


def check_vacant(path: Path) -> None:
    """Raise :class:`~allotment.errors.RunDirectoryError` if ``path`` already holds a run."""
    if (path / "config.json").exists():
        raise RunDirectoryError(
            "the output directory already holds a run",
            got=path,
            allowed="a directory without config.json",
            fix="pass --resume to continue it, another --out, or delete it",
        )


def saved_config(path: Path) -> RunConfig:
    """The configuration of the run in ``path``. Raises RunDirectoryError: there is no run."""
    if not (path / "config.json").exists():
        raise RunDirectoryError(
            "there is no run to read", got=path, allowed="a directory with config.json", fix="check the path"
        )
    values = Config.json_values(path / "config.json")
    return TRAINERS[values.get("trainer", "lab")].config.from_values(values, str(path / "config.json"))
