"""One run of a report, and the steps that runs have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from allotment.config import RunConfig

Row = dict[str, Any]


@dataclass(frozen=True)
class FromPython:
    """What a run from Python has beside its logs, which do not say all that a run directory does."""

    ended: bool
    """Whether its last step was reached; False too where no file says which is the last."""
    notes: tuple[str, ...]
    """What a reader must know: what is not recorded, and what stands for it."""
    each_step_logged: bool
    """Whether the rollouts without a reward are known of every step."""


@dataclass(frozen=True)
class Run:
    """What one run directory, or the folder of a TRL run, holds."""

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
    from_python: FromPython | None = None
    """Of a TRL run that was started from Python."""

    @cached_property
    def evaluations(self) -> dict[int, Row]:
        """The metrics lines with success on pool or held-out prompts, by step."""
        return {row["step"]: row for row in self.metrics if "pool_success" in row or "held_out_success" in row}

    @property
    def seed(self) -> str:
        """Its seed in words; its folder's name where the seed is not recorded."""
        return self.path.name if "seed" in not_recorded(self.config) else f"seed {self.config.seed}"

    @property
    def last_step(self) -> int:
        """The last step that was logged; 0 if none was."""
        return max((int(row["step"]) for row in self.metrics), default=0)

    @property
    def finished(self) -> bool:
        """Whether the last configured step was reached, and evaluated but in runs from Python."""
        return self.config.steps in self.evaluations if self.from_python is None else self.from_python.ended

    @cached_property
    def timed(self) -> bool:
        """Whether the seconds of every logged step are known."""
        return {row["step"] for row in self.timing} >= set(range(1, self.last_step + 1))

    def spent(self, axis: str, step: int) -> float:
        """Up to the evaluation at ``step``: a total of the metrics line, or ``"seconds_total"`` of the timed steps."""
        if axis == "seconds_total":
            return float(sum(row["seconds"] for row in self.timing if row["step"] <= step))
        return float(self.evaluations[step][axis])


def common_steps(runs: Sequence[Run], measure: str = "") -> list[int]:
    """The steps at which every run was evaluated, ascending; none without runs. ``measure``: that it must have."""
    found = [{step for step, row in run.evaluations.items() if not measure or measure in row} for run in runs]
    return sorted(set.intersection(*found)) if runs else []


def not_recorded(config: RunConfig) -> tuple[str, ...]:
    """Settings that no file of a run from Python says."""
    return tuple(getattr(config, "not_recorded", ()))
