"""One run directory, read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from allotment.config import RunConfig
from allotment.errors import RunDirectoryError
from allotment.run_logs.directory import LOGS, saved_config
from allotment.run_logs.files import read_log

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What one run directory holds."""

    path: Path
    config: RunConfig
    metrics: list[Row]
    """One line per step, step 0 (before training) first."""
    rollouts: list[Row]
    """One line per prompt of a step."""
    timing: list[Row]
    """Seconds of each step."""
    resumed: tuple[int, ...] = ()
    """Steps after which the run was taken up again, from the checkpoint it had there."""
    cut_logs: tuple[str, ...] = ()
    """Logs whose last line was cut short by a kill; that line is left out."""

    @cached_property
    def evaluations(self) -> dict[int, Row]:
        """The metrics lines with success on pool and held-out prompts, by step."""
        return {row["step"]: row for row in self.metrics if "pool_success" in row}

    @property
    def last_step(self) -> int:
        """The last step that was logged; 0 if none was."""
        return max((int(row["step"]) for row in self.metrics), default=0)

    @property
    def finished(self) -> bool:
        """Whether the last configured step was reached and evaluated."""
        return self.config.steps in self.evaluations

    @cached_property
    def timed(self) -> bool:
        """Whether the seconds of every logged step are known."""
        return {row["step"] for row in self.timing} >= set(range(1, self.last_step + 1))

    def spent(self, axis: str, step: int) -> float:
        """Up to the evaluation at ``step``: a total of the metrics line, or ``"seconds_total"`` of the timed steps."""
        if axis == "seconds_total":
            return float(sum(row["seconds"] for row in self.timing if row["step"] <= step))
        return float(self.evaluations[step][axis])


def common_steps(runs: Sequence[Run]) -> list[int]:
    """The steps at which every run was evaluated, ascending; none without runs."""
    return sorted(set.intersection(*(set(run.evaluations) for run in runs))) if runs else []


def read_run(path: Path) -> Run:
    """Read one run directory; a last line that a kill cut short is left out of its log.

    Raises:
        RunDirectoryError: there is no run, or a log is damaged before its last line.
        ConfigError: the configuration does not fit this version.
    """
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
