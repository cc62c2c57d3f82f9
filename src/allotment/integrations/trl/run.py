"""``allotment train --trainer trl``: TRL's trainers on a model folder and a data set, into a run directory."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils.logging import disable_progress_bar

from allotment.config import TRLTrainConfig
from allotment.errors import ConfigError, message
from allotment.integrations.trl.config import AllotmentGRPOConfig, AllotmentRLOOConfig
from allotment.integrations.trl.trainer import AllotmentGRPOTrainer, AllotmentRLOOTrainer
from allotment.lab.run_directory import RunDirectory, read_log
from allotment.tasks.datasets import Row, format_rows, load_rows, split_held_out
from allotment.tasks.rewards import make_reward

OnStep = Callable[[dict[str, Any]], None]
LOGS = ("metrics.jsonl", "timing.jsonl")
"""What is written here; ``rollouts.jsonl`` is the trainer's."""
NAMES = {"grad_norm": "gradient_norm", "frac_reward_zero_std": "zero_variance_groups", "loss": "loss"}
"""Figures of TRL that go into ``metrics.jsonl``, and their names there."""
EVALUATED = ("pool", "held_out")
"""Prompts trained on, and others, in the order TRL evaluates them in."""
COUNTS = ("budget", "min_count", "max_count", "zero_count", "unscored", "tokens")


class TRLRun:
    """One run; the model is loaded and the trainer made at once.

    Raises:
        ConfigError: the configuration does not fit the model, the data set or TRL's batch.
        InvalidInputError: the data set cannot be used.
    """

    def __init__(self, config: TRLTrainConfig, out: Path) -> None:
        disable_progress_bar()  # type: ignore[no-untyped-call] # of loading and saving
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self.config = config
        arguments = trl_arguments(config, out)
        pool, held_out = _rows(config)
        self._verifier = make_reward(config.verifier, source=config.dataset, rule=config.extract)
        evaluated = {"pool": pool[: len(held_out)], "held_out": held_out}
        trainer = AllotmentRLOOTrainer if config.estimator == "rloo" else AllotmentGRPOTrainer
        try:
            self.trainer: Any = trainer(
                model=config.model,
                reward_funcs=[self._verifier],
                args=arguments,
                train_dataset=Dataset.from_list(pool),
                eval_dataset={name: Dataset.from_list(rows) for name, rows in evaluated.items()},
                processing_class=AutoTokenizer.from_pretrained(config.model, padding_side="left"),
            )
        except OSError as error:
            raise ConfigError(
                message(
                    "the model cannot be loaded",
                    got=f"{config.model}: {error}",
                    allowed="a folder with config.json, weights and tokenizer, or a hub name that can be reached",
                    fix="check --model",
                )
            ) from error
        for callback in (PrinterCallback, ProgressCallback):
            self.trainer.remove_callback(callback)

    def run(self, directory: RunDirectory, on_step: OnStep) -> None:
        """Train to the last step, from the newest checkpoint if there is one; ``on_step`` sees every metrics line."""
        checkpoint = _last_whole_checkpoint(directory.path)
        self.trainer.args.eval_on_start = checkpoint is None
        if self.trainer.accelerator.is_main_process:
            self.trainer.add_callback(_Lines(self.config, directory, on_step))
        try:
            self.trainer.train(resume_from_checkpoint=checkpoint)
        finally:
            self._verifier.close()
        self.trainer.save_model(str(directory.path / "model"))


def _last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was not cut short by a kill: the trainer's state is what TRL writes last."""
    whole = [file.parent for file in folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return str(max(whole, key=lambda path: int(path.name.partition("-")[2]))) if whole else None


def _rows(config: TRLTrainConfig) -> tuple[list[Row], list[Row]]:
    """Prompts to train on, and those held out."""
    rows = load_rows(
        config.dataset,
        size=config.dataset_size,
        options=config.dataset_options,
        prompt_column=config.prompt_column,
        answer_column=config.answer_column,
        id_column=config.prompt_id_column,
    )
    rows = format_rows(rows, system_prompt=config.system_prompt, suffix=config.prompt_suffix, chat=config.chat)
    return split_held_out(rows, config.held_out)


def trl_arguments(config: TRLTrainConfig, out: Path) -> Any:
    """TRL's configuration for a run.

    Raises:
        ConfigError: a setting in ``config.trl`` does not exist or has a flag of its own, or ``micro_batch`` does not
            divide the budget.
    """
    kind = AllotmentRLOOConfig if config.estimator == "rloo" else AllotmentGRPOConfig
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    _check_micro_batch(config, devices)
    has_gpu = torch.cuda.is_available()
    own: dict[str, Any] = {
        "output_dir": str(out),
        "seed": config.seed,
        "max_steps": config.steps,
        "per_device_train_batch_size": config.micro_batch,
        "gradient_accumulation_steps": config.budget // (config.micro_batch * devices),
        "num_generations": config.rollouts_per_prompt,
        "max_completion_length": config.max_completion_tokens,
        "learning_rate": config.learning_rate,
        "save_steps": config.checkpoint_every,
        "bf16": config.dtype == "bfloat16" or (config.dtype == "auto" and has_gpu and torch.cuda.is_bf16_supported()),
        "planner": config.planner,
        "planner_kwargs": {"bounds": [config.lower, config.upper]},
        "prompt_id_column": "prompt_id",
        "prompt_embeddings": config.prompt_embeddings,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": config.evaluate_every,
        "save_strategy": "steps",
        "disable_tqdm": True,
    }
    defaults: dict[str, Any] = {
        "beta": 0.0,
        "lr_scheduler_type": "constant",
        "save_total_limit": 2,
        "report_to": "none",
        "use_cpu": not has_gpu,
        "gradient_checkpointing": has_gpu,
        "num_generations_eval": 1,
        "per_device_eval_batch_size": 8 * config.micro_batch,
        "model_init_kwargs": {"dtype": "float32"},
    }
    if kind is AllotmentGRPOConfig:
        defaults |= {"loss_type": "dr_grpo", "scale_rewards": "none"}
    known = {field.name for field in fields(kind)}
    _check_further(config.trl, known, set(own))
    return kind(**own, **{name: value for name, value in defaults.items() if name in known} | config.trl)


def _check_micro_batch(config: TRLTrainConfig, devices: int) -> None:
    if config.budget % (config.micro_batch * devices):
        valid = [n for n in range(1, config.budget // devices + 1) if config.budget % (n * devices) == 0]
        raise ConfigError(
            message(
                "micro_batch does not divide the budget",
                got=f"micro_batch {config.micro_batch} on {devices} device(s), budget {config.budget}",
                allowed=", ".join(map(str, valid)) or "nothing: the budget is not divisible by the devices",
                fix="choose one of them, or another prompts_per_step",
            )
        )


def _check_further(given: dict[str, Any], known: set[str], own: set[str]) -> None:
    for name in given:
        if name in own:
            got, fix = f"{name} in trl", f"use the flag of the run ({', '.join(sorted(own))} are set from flags)"
        elif name not in known:
            got, fix = repr(name), f"did you mean {difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]!r}?"
        else:
            continue
        allowed = "fields of TRL's configuration that have no flag of their own"
        raise ConfigError(message("a setting for TRL cannot be used", got=got, allowed=allowed, fix=fix))


class _Lines(TrainerCallback):
    """Writes ``metrics.jsonl`` and ``timing.jsonl`` from what TRL logs; a step's line waits for its evaluation."""

    def __init__(self, config: TRLTrainConfig, directory: RunDirectory, on_step: OnStep) -> None:
        self._config, self._directory, self._on_step = config, directory, on_step
        self._row: dict[str, Any] = {}
        self._tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Logs are cut back to the checkpoint."""
        self._directory.cut_logs(state.global_step or -1, LOGS)
        if state.global_step:
            self._tokens = read_log(self._directory.path / "metrics.jsonl")[-1]["tokens_total"]
            if state.global_step < self._config.steps:
                self._directory.append("timing.jsonl", [{"step": state.global_step, "resumed": True}])
        else:
            self._row = {"step": 0, "rollouts_total": 0, "tokens_total": 0}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """The last step is evaluated whatever its number."""
        control.should_evaluate |= state.global_step == self._config.steps
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """A step, or one of the two evaluations that may follow it."""
        if logs is None:
            return
        if "loss" in logs:
            self._row = self._step(state.global_step, logs)
            if not control.should_evaluate:
                self._write()
        for name in EVALUATED:
            if f"eval_{name}_runtime" in logs:
                self._row[f"{name}_success"] = logs["eval_reward"]
                if name == EVALUATED[-1]:
                    self._write()

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
