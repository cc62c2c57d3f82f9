"""What ``allotment watch`` reads while a run goes on: a run directory, or the folder of a TRL run from Python."""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path
from typing import Any, Protocol

from allotment.errors import RunDirectoryError
from allotment.run_logs.files import whole_lines
from allotment.run_logs.trl_figures import evaluated_rewards, step_rows, step_seconds
from allotment.run_logs.trl_folder import ROLLOUTS, STATE, TRLFolder, is_trl_folder, read_trl_folder

Row = dict[str, Any]
RECENT = 20
"""Steps that a recent mean is over."""


class Tail(Protocol):
    """A run as it goes on."""

    path: Path
    """The file that grows with every step."""
    rows: list[Row]
    """A line a step."""

    def read(self) -> None:
        """Take in what was added."""

    def settings(self) -> Row:
        """What is known of the run: ``steps``, ``planner``, ``seed``, ..."""
        ...

    def seconds(self) -> list[float]:
        """Of the last steps; none where they are not known."""
        ...


def tail_of(run: Path) -> Tail:
    """What there is to watch in a folder. RunDirectoryError where there is nothing."""
    return FolderTail(run) if is_trl_folder(run) else MetricsTail(run)


class MetricsTail:
    """The whole lines of ``metrics.jsonl``, each read once; all anew where the file was cut back by a resumed run.
    Raises RunDirectoryError: there is no such file.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.path = run, run / "metrics.jsonl"
        self.rows: list[Row] = []
        self._read = 0
        if not self.path.exists():
            raise RunDirectoryError(
                "there is no run to watch",
                got=run,
                allowed="a folder with metrics.jsonl, or a TRL run's with rollouts.jsonl",
                fix="check the path; a run writes its first line when its first evaluation is done",
            )

    def read(self) -> None:
        """Take in what was added; lines that are no JSON objects are ignored."""
        if self.path.stat().st_size < self._read:
            self.rows, self._read = [], 0
        for line in whole_lines(self.path, self._read):
            self._read += len(line)
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                self.rows.append(row)

    def settings(self) -> Row:
        """``config.json``; nothing where it cannot be read."""
        try:
            found = json.loads((self.run / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def seconds(self) -> list[float]:
        """By the last lines of ``timing.jsonl``."""
        try:
            lines = deque(whole_lines(self.run / "timing.jsonl"), maxlen=RECENT)
            return [float(row["seconds"]) for row in map(json.loads, lines) if "resumed" not in row]
        except (OSError, ValueError, KeyError, TypeError):
            return []


class FolderTail:
    """``rollouts.jsonl`` of a TRL run, step by step, and what the newest checkpoint logged; read when one has changed.
    Raises RunDirectoryError as :func:`~allotment.run_logs.trl_folder.read_trl_folder`.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.path = run, run / ROLLOUTS
        self.rows: list[Row] = []
        self._folder: TRLFolder = read_trl_folder(run)
        self._seen: object = None

    def read(self) -> None:
        """Take in what was added."""
        now = self._now()
        if now == self._seen:
            return
        self._folder, self._seen = read_trl_folder(self.run), now
        rows = {row["step"]: row for row in step_rows(self._folder)}
        for name, rewards in evaluated_rewards(self._folder.checkpoint).items():
            for step, reward in rewards.items():
                if step in rows:
                    rows[step]["eval_reward" if not name else f"eval_{name}_reward"] = reward
        self.rows = list(rows.values())

    def _now(self) -> object:
        return self.path.stat().st_size, sorted(map(os.fspath, self.run.glob(f"checkpoint-*/{STATE}")))

    def settings(self) -> Row:
        """What the newest checkpoint says."""
        state = None if self._folder.checkpoint is None else self._folder.checkpoint.planner
        found = {"steps": self._folder.steps, "planner": self._folder.planner}
        found["seed"] = None if state is None else state["settings"]["seed"]
        return {name: value for name, value in found.items() if value is not None}

    def seconds(self) -> list[float]:
        """As TRL logged them up to the newest checkpoint."""
        return [float(row["seconds"]) for row in step_seconds(self._folder.checkpoint)[-RECENT:]]
