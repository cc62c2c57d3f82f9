"""The configuration of ``allotment train trl``. Importing this loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro
from pydantic import Field, field_validator, model_validator

from allotment.config import EstimatorName, JSONObject, ObjectiveName, RunConfig
from allotment.integrations.capabilities import TRL
from allotment.planning.contract import check_objective_names, check_planner_name, check_selector_name
from allotment.tasks.rewards import Rule, Verifier


class TRLTrainConfig(RunConfig):
    """Reinforcement learning of any causal language model with TRL."""

    trainer: Annotated[Literal["trl"], tyro.conf.Suppress] = "trl"
    model: str
    """Folder or hub name of a Hugging Face causal language model."""
    dataset: str
    """A .jsonl, .json, .parquet or .csv file with prompts and answers, or reasoning-gym:NAME."""
    USUAL_ESTIMATOR = "dr_grpo"
    estimator: EstimatorName | None = None
    """dr_grpo, the default: GRPOTrainer, loss dr_grpo, rewards not scaled; rloo: RLOOTrainer; shrinkage: as dr_grpo,
    against the planner's belief. Its variance is priced, also with on-policy-dpo, whose gradient begins as that of
    rloo."""
    objective: tuple[ObjectiveName, ...] = ()
    """on-policy-dpo: DPOTrainer on pairs of a prompt's rollouts, fresh in each step, against the policy of the start;
    rloo, dr_grpo, grpo: their advantages; by default the estimator's. The others need the lab."""
    updates: int = Field(1, ge=1)
    """With on-policy-dpo: optimiser steps on the pairs of a step."""
    learning_rate: float = Field(1e-6, gt=0, allow_inf_nan=False)
    """Learning rate of AdamW, constant."""
    max_completion_tokens: int = Field(256, ge=1)
    """Longest completion that is generated."""
    micro_batch: int = Field(8, ge=1)
    """Rollouts of a forward and backward pass on one device; a divisor of the budget over the devices. With
    on-policy-dpo two for each pair, and an optimiser step is on half as many pairs as the budget has rollouts."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the computation; auto is bfloat16 on a GPU that has it, else float32."""
    verifier: tuple[Verifier, ...] = ()
    """How a completion is judged, by one or several; by default reasoning-gym's own for its tasks, exact match for
    files, and none beside --reward."""
    extract: Rule | None = None
    """Where the answer stands in a completion, for all verifiers; see docs/tasks.md."""
    reward: tuple[str, ...] = ()
    """Reward functions of your own, module:function or path/to/file.py:function, called as TRL's are; beside verifiers
    only where --verifier names some."""
    reward_weights: tuple[float, ...] = ()
    """Weight of each in the reward, verifiers first; 1 each by default."""
    reward_columns: tuple[str, ...] = ()
    """Further columns of a file, which reward functions get by name."""
    success_reward: str | None = None
    """Name of the function whose value the planner is told and evaluations report, 1 for a success and 0 else; by
    default the first verifier, and the weighted sum where there is none."""
    lora: JSONObject | None = None
    """Train LoRA adapters with these settings of peft's LoraConfig, such as '{"r": 8}'; model/ then holds the adapter
    alone."""
    prompt_column: str = "prompt"
    """Column of the prompts in a file."""
    answer_column: str = "answer"
    """Column of the answers in a file."""
    prompt_id_column: str | None = None
    """Column of the prompts' names in a file; the place of the row if there is none."""
    dataset_size: int = Field(1000, ge=2)
    """Prompts that are made of a reasoning-gym task."""
    dataset_options: JSONObject = Field(default_factory=dict)
    """Options of the reasoning-gym task, such as '{"max_digits": 3}'."""
    system_prompt: str | None = None
    """System message before each prompt: the name of one of reasoning-gym's, or a text."""
    prompt_suffix: str | None = None
    """A line after each prompt, such as an instruction."""
    chat: bool = False
    """Whether a prompt is a user's message, put into the model's chat template."""
    held_out: int = Field(64, ge=1)
    """Prompts that are not trained on; they, and as many of the others, are judged every evaluate_every steps, by one
    sampled completion each."""
    prompt_embeddings: str | None = None
    """minilm (the packaged model) or a sentence-transformers model: tells the planner about prompts not yet seen."""
    trl: JSONObject = Field(default_factory=dict)
    """Further settings of TRL's configuration class, such as '{"beta": 0.01, "temperature": 0.8}'."""

    @field_validator("verifier", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        """Earlier versions had one, or None."""
        return () if value is None else (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _can_be_carried_out(self) -> Self:
        check_objective_names(self.objective, TRL)
        if len(self.objective) > 1:
            raise ValueError(f"one objective with TRL, got {', '.join(self.objective)}")
        check_planner_name(self.planner, TRL)
        if self.select is not None:
            check_selector_name(self.select, TRL)
        if self.prefers and self.select is not None:
            raise ValueError(
                f"no selector beside on-policy-dpo, whose pairs are made of every rollout, got {self.select}"
            )
        if self.prefers and (self.reward_weights or self.success_reward):
            raise ValueError("no reward_weights or success_reward beside on-policy-dpo, whose reward is the plain sum")
        if self.updates > 1 and not self.prefers:
            raise ValueError(f"more than one of updates only with the objective on-policy-dpo, got {self.updates}")
        return self

    @property
    def prefers(self) -> bool:
        """Whether pairs of rollouts are trained on."""
        return "on-policy-dpo" in self.objective

    @property
    def task(self) -> str:
        """What is trained, in a word."""
        return Path(self.model).name

    @property
    def data(self) -> str:
        """The data set."""
        return self.dataset
