"""``allotment train trl``: TRL's trainers on a model folder and a data set, into a run directory."""

from __future__ import annotations

import difflib
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback, ProgressCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils.logging import disable_progress_bar

from allotment.errors import ConfigError
from allotment.integrations.trl.config import AllotmentGRPOConfig, AllotmentRLOOConfig
from allotment.integrations.trl.preferences import AllotmentDPOConfig, AllotmentDPOTrainer
from allotment.integrations.trl.trainer import AllotmentGRPOTrainer, AllotmentRLOOTrainer
from allotment.run_logs.directory import RunDirectory
from allotment.tasks.datasets import Row, format_rows, load_rows, split_held_out
from allotment.trainers.trl.config import TRLTrainConfig
from allotment.trainers.trl.judging import judging_of
from allotment.trainers.trl.lora import check_fits, lora_config
from allotment.trainers.trl.metrics_lines import MetricsLines, OnStep

KINDS: dict[str, tuple[Any, Any]] = {
    "dr_grpo": (AllotmentGRPOTrainer, AllotmentGRPOConfig),
    "grpo": (AllotmentGRPOTrainer, AllotmentGRPOConfig),
    "shrinkage": (AllotmentGRPOTrainer, AllotmentGRPOConfig),
    "rloo": (AllotmentRLOOTrainer, AllotmentRLOOConfig),
    "on-policy-dpo": (AllotmentDPOTrainer, AllotmentDPOConfig),
}


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
        adapter = lora_config(config.lora)
        pool, held_out = _rows(config)
        self._judging = judging_of(config, pool)
        arguments = trl_arguments(config, out, self._judging.success)
        evaluated = {"pool": pool[: len(held_out)], "held_out": held_out}
        try:
            if config.lora is not None:
                check_fits(adapter, config.model, config.lora)
            self.trainer: Any = _kind(config)[0](
                model=config.model,
                reward_funcs=list(self._judging.functions),
                args=arguments,
                train_dataset=Dataset.from_list(pool),
                eval_dataset={name: Dataset.from_list(rows) for name, rows in evaluated.items()},
                processing_class=AutoTokenizer.from_pretrained(config.model, padding_side="left"),
                **({} if adapter is None else {"peft_config": adapter}),
            )
        except OSError as error:
            raise ConfigError(
                "the model cannot be loaded",
                got=f"{config.model}: {error}",
                allowed="a folder with config.json, weights and tokenizer, or a hub name that can be reached",
                fix="check --model",
            ) from error
        for callback in (PrinterCallback, ProgressCallback):
            self.trainer.remove_callback(callback)

    def run(self, directory: RunDirectory, on_step: OnStep) -> None:
        """Train to the last step, from the newest checkpoint if there is one; ``on_step`` sees every metrics line."""
        checkpoint = _last_whole_checkpoint(directory.path)
        self.trainer.args.eval_on_start = checkpoint is None
        if self.trainer.accelerator.is_main_process:
            self.trainer.add_callback(MetricsLines(self.config, directory, on_step, self._judging.reported))
        try:
            self.trainer.train(resume_from_checkpoint=checkpoint)
        finally:
            self._judging.close()
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
        further_columns=config.reward_columns,
        needs_answer=bool(config.verifier) or not config.reward,
    )
    rows = format_rows(rows, system_prompt=config.system_prompt, suffix=config.prompt_suffix, chat=config.chat)
    return split_held_out(rows, config.held_out)


def _kind(config: TRLTrainConfig) -> tuple[Any, Any]:
    """Trainer and configuration class."""
    return KINDS[config.objective[0] if config.objective else config.priced]


def _estimator(config: TRLTrainConfig) -> dict[str, str]:
    """The planner's, where it is not that of the trainer's class."""
    return {"estimator": "shrinkage"} if config.priced == "shrinkage" else {}


def trl_arguments(config: TRLTrainConfig, out: Path, success: str | None = None) -> Any:
    """TRL's configuration for a run; ``success``: name of the reward function that says what a success is.

    Raises:
        ConfigError: a setting in ``config.trl`` does not exist or has a flag of its own, or ``micro_batch`` does not
            divide the budget.
    """
    kind, prefers = _kind(config)[1], config.prefers
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    _check_micro_batch(config, devices)
    has_gpu = torch.cuda.is_available()
    own: dict[str, Any] = {
        "output_dir": str(out),
        "seed": config.seed,
        "max_steps": config.steps * config.updates,
        "per_device_train_batch_size": config.micro_batch // 2 if prefers else config.micro_batch,
        "gradient_accumulation_steps": config.budget // (config.micro_batch * devices),
        "num_generations": config.rollouts_per_prompt,
        "max_completion_length": config.max_completion_tokens,
        "learning_rate": config.learning_rate,
        "save_steps": config.checkpoint_every * config.updates,
        "bf16": config.dtype == "bfloat16" or (config.dtype == "auto" and has_gpu and torch.cuda.is_bf16_supported()),
        "planner": config.planner,
        "planner_kwargs": {"bounds": [config.lower, config.upper], **_estimator(config), **config.planner_settings},
        "prompt_id_column": "prompt_id",
        "prompt_embeddings": config.prompt_embeddings,
        "logging_steps": config.updates,
        "eval_strategy": "steps",
        "eval_steps": config.evaluate_every * config.updates,
        "save_strategy": "steps",
        "disable_tqdm": True,
    }
    if prefers:
        own |= {"prompts_per_round": config.prompts_per_step, "updates_per_round": config.updates}
        own["planner_kwargs"]["estimator"] = config.priced
    else:
        own |= {"select": config.select, "select_kwargs": config.select_settings or None}
    if config.reward_weights:
        own["reward_weights"] = list(config.reward_weights)
    if success is not None:
        own["success_reward"] = success
    defaults: dict[str, Any] = {
        "lr_scheduler_type": "constant",
        "save_total_limit": 2,
        "report_to": "none",
        "use_cpu": not has_gpu,
        "gradient_checkpointing": has_gpu,
        "num_generations_eval": 1,
        "per_device_eval_batch_size": 8 * config.micro_batch,
        "model_init_kwargs": {"dtype": "float32"},
    }
    if not prefers:
        defaults["beta"] = 0.0
    if kind is AllotmentGRPOConfig:
        defaults |= {"loss_type": "dr_grpo", "scale_rewards": "group" if "grpo" in config.objective else "none"}
    known = {field.name for field in fields(kind)}
    _check_further(config.trl, known, set(own))
    return kind(**own, **{name: value for name, value in defaults.items() if name in known} | config.trl)


def _check_micro_batch(config: TRLTrainConfig, devices: int) -> None:
    each = 2 if config.prefers else 1  # a pair is two rollouts
    if config.budget % (config.micro_batch * devices) or config.micro_batch % each:
        valid = [n for n in range(each, config.budget // devices + 1, each) if config.budget % (n * devices) == 0]
        raise ConfigError(
            "micro_batch does not divide the budget" + (" into pairs" if config.prefers else ""),
            got=f"micro_batch {config.micro_batch} on {devices} device(s), budget {config.budget}",
            allowed=", ".join(map(str, valid)) or "nothing: the budget is not divisible by the devices",
            fix="choose one of them, or another prompts_per_step",
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
        raise ConfigError("a setting for TRL cannot be used", got=got, allowed=allowed, fix=fix)
