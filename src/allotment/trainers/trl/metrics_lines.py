"""``metrics.jsonl`` and ``timing.jsonl`` of a run directory, from what TRL logs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from allotment.run_logs.directory import RunDirectory
from allotment.run_logs.files import read_log
from allotment.trainers.trl.config import TRLTrainConfig

OnStep = Callable[[dict[str, Any]], None]
LOGS = ("metrics.jsonl", "timing.jsonl")
"""What is written here; ``rollouts.jsonl`` is the trainer's."""
NAMES = {
    "grad_norm": "gradient_norm",
    "frac_reward_zero_std": "zero_variance_groups",
    "allotment/without_pair": "zero_variance_groups",
    "loss": "loss",
    "rewards/accuracies": "preference_accuracy",
    "rewards/margins": "margin",
}
"""Figures of TRL that go into ``metrics.jsonl``, and their names there."""
EVALUATED = ("pool", "held_out")
"""Prompts trained on, and others, in the order TRL evaluates them in."""
COUNTS = ("budget", "min_count", "max_count", "zero_count", "unscored", "tokens", "pairs")


class MetricsLines(TrainerCallback):
    """Writes ``metrics.jsonl`` and ``timing.jsonl`` from what TRL logs; a step's line waits for its evaluation."""

    def __init__(
        self,
        config: TRLTrainConfig,
        directory: RunDirectory,
        on_step: OnStep,
        reported: Callable[[str, dict[str, Any]], Any],
    ) -> None:
        """``reported``: the success in an evaluation's log, given what was evaluated."""
        self._config, self._directory, self._on_step, self._reported = config, directory, on_step, reported
        self._row: dict[str, Any] = {}
        self._tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Logs are cut back to the checkpoint."""
        step = self._number(state)
        self._directory.cut_logs(step or -1, LOGS)
        if step:
            self._tokens = read_log(self._directory.path / "metrics.jsonl")[-1]["tokens_total"]
            if step < self._config.steps:
                self._directory.append("timing.jsonl", [{"step": step, "resumed": True}])
        else:
            self._row = {"step": 0, "rollouts_total": 0, "tokens_total": 0}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """The last step is evaluated whatever its number."""
        control.should_evaluate |= state.global_step == state.max_steps
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """A step, or one of the two evaluations that may follow it."""
        if logs is None:
            return
        if "loss" in logs:
            self._row = self._step(self._number(state), logs)
            if not control.should_evaluate:
                self._write()
        for name in EVALUATED:
            if f"eval_{name}_reward" in logs or f"eval_{name}_runtime" in logs:
                self._row[f"{name}_success"] = self._reported(name, logs)
                if name == EVALUATED[-1]:
                    self._write()

    def _number(self, state: Any) -> int:
        """The step of the run, one batch of prompts: TRL counts updates."""
        return int(state.global_step) // self._config.updates

    def _step(self, step: int, logs: dict[str, Any]) -> dict[str, Any]:
        own = {k.removeprefix("allotment/"): v for k, v in logs.items() if k.startswith("allotment/")}
        figures = {k: int(v) if k in COUNTS else v for k, v in own.items() if k != "seconds"}
        self._tokens += figures.get("tokens", 0)
        totals = {"rollouts_total": step * self._config.budget, "tokens_total": self._tokens}
        seconds = {"seconds": round(logs.get("step_time", 0.0), 4), "planning": round(own.get("seconds", 0.0), 4)}
        self._directory.append("timing.jsonl", [{"step": step, **seconds}])
        return {"step": step, **totals, **figures, **{name: logs[key] for key, name in NAMES.items() if key in logs}}

    def _write(self) -> None:
        self._directory.append("metrics.jsonl", [self._row])
        self._on_step(self._row)
