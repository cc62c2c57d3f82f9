"""Frozen, validated configurations, the same for the command line, TOML files and Python."""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from allotment.errors import ConfigError
from allotment.planning.named import NamedPlanner
from allotment.selection.named import SelectorName
from allotment.tasks.extraction import Rule
from allotment.tasks.rewards import Verifier

PlannerName = Literal[NamedPlanner, "oracle"]
MethodName = Literal["dynamic-pruning", "optpo", "reinforce-ada", "reinforce-ada-est", "dapo", "greso", "mopps"]
TrainedName = Literal[PlannerName, "vip-second-look", "vip-tokens", MethodName]
EstimatorName = Literal["rloo", "dr_grpo"]
MeasuredName = Literal[PlannerName, "uniform-2x", "neyman"]
RegimeName = Literal["scratchpad", "short", "countdown"]
ObjectiveName = Literal[
    "grpo",
    "dr-grpo",
    "rloo",
    "gdpo",
    "divergence-ppo",
    "jackpot",
    "flowrl",
    "capo",
    "on-policy-dpo",
    "representation-reward",
    "ml-irl",
]
RewardName = Literal["correctness", "format", "length"]
ActorName = Literal["current", "stale", "rounds", "quantised", "small"]
SketchName = Literal["exact", "last-block", "last-layer"]


def _json_object(words: list[str]) -> dict[str, Any]:
    value = json.loads(words[0])
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object: {words[0]}")
    return value


JSONObject = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=_json_object,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    ),
]
"""A table in TOML, a JSON object on the command line."""


CHOOSE_PROMPTS = {"dapo": 4, "mopps": 4, "greso": 2}
"""Planners that choose among the prompts, with how many are offered for each that is trained on."""


class Config(BaseModel):
    """Base of all configurations: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    @classmethod
    def from_values(cls, values: dict[str, Any], source: str) -> Self:
        """Make a config from a plain dict.

        Raises:
            ConfigError: a key is unknown (the nearest valid key is named) or a value is not allowed.
        """
        unknown = [key for key in values if key not in cls.model_fields]
        if unknown:
            near = difflib.get_close_matches(unknown[0], cls.model_fields, n=1, cutoff=0.0)
            raise ConfigError(
                f"unknown key in {source}",
                got=repr(unknown[0]),
                allowed=", ".join(cls.model_fields),
                fix=f"did you mean {near[0]!r}?",
            )
        try:
            return cls(**values)
        except ValidationError as error:
            raise explained(error, source) from error

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """Read a TOML file.

        Raises:
            ConfigError: the file is missing, is not TOML, or does not fit.
        """
        return cls.from_values(cls.toml_values(path), str(path))

    @staticmethod
    def toml_values(path: Path) -> dict[str, Any]:
        """The fields in a TOML file, unchecked.

        Raises:
            ConfigError: the file is missing or is not TOML.
        """
        try:
            return tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(
                f"cannot read {path}", got=error, allowed="a TOML file", fix="check the path and the syntax"
            ) from error

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigError: the file is missing, damaged, or does not fit.
        """
        return cls.from_values(cls.json_values(path), str(path))

    @staticmethod
    def json_values(path: Path) -> dict[str, Any]:
        """The fields in a JSON file, unchecked.

        Raises:
            ConfigError: the file is missing or holds no JSON object.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise TypeError(f"a JSON {type(values).__name__}")
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
            raise ConfigError(
                f"cannot read {path}", got=error, allowed="a JSON object", fix="is this a run directory?"
            ) from error
        return values

    def to_json(self) -> str:
        """All fields, readable."""
        return self.model_dump_json(indent=2) + "\n"


def explained(error: ValidationError, source: str) -> ConfigError:
    """The first complaint of a validation as a :class:`~allotment.errors.ConfigError`."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    return ConfigError(
        f"bad value in {source}" + (f" for {field}" if field else ""),
        got=repr(first["input"]) if field else "a combination that cannot be",
        allowed=first["msg"].removeprefix("Value error, "),
        fix="change the value; --help lists all fields",
    )


class RunConfig(Config):
    """What the runs of all trainers have in common."""

    seed: int = Field(0, ge=0)
    """Fixes prompts and sampling; runs of equal seed are paired."""
    steps: int = Field(100, ge=1)
    """Optimiser steps; one batch of prompts each."""
    prompts_per_step: int = Field(16, ge=1)
    """Prompts of a batch."""
    rollouts_per_prompt: int = Field(8, ge=2)
    """Mean number of rollouts of a prompt; the budget of a step is this times the prompts, spent exactly."""
    lower: int = Field(3, ge=2)
    """Least rollouts of a prompt."""
    upper: int = Field(32, ge=2)
    """Most rollouts of a prompt."""
    estimator: EstimatorName = "rloo"
    """Advantage that is computed and whose variance is priced."""
    evaluate_every: int = Field(10, ge=1)
    """Steps between evaluations."""
    checkpoint_every: int = Field(10, ge=1)
    """Steps between checkpoints."""

    @property
    def budget(self) -> int:
        """Rollouts of a step."""
        return self.prompts_per_step * self.rollouts_per_prompt

    @model_validator(mode="after")
    def _bounds_admit_the_mean(self) -> Self:
        _check_bounds(self.lower, self.rollouts_per_prompt, self.upper, self.estimator)
        return self


class TrainConfig(RunConfig):
    """Reinforcement learning of the lab's language model."""

    trainer: Literal["lab"] = "lab"
    """Who trains: the lab; or TRL, whose settings `allotment train --trainer trl --help` lists."""
    planner: TrainedName = "vip"
    """Who decides the number of rollouts of each prompt; oracle knows every success probability, for comparison."""
    planner_settings: JSONObject = Field(default_factory=dict)
    """Further settings of the planner, such as '{"exit": "positive"}'; docs/methods.md names them."""
    candidates: int | None = Field(None, ge=1)
    """Prompts offered to the planner, as a multiple of prompts_per_step; by default more than 1 only for planners that
    choose among prompts (dapo and mopps 4, greso 2)."""
    select: SelectorName | None = None
    """Which of the generated rollouts are trained on; all by default, or as the planner's method has it."""
    select_settings: JSONObject = Field(default_factory=dict)
    """Further settings of the selector, such as '{"keep": 4}'."""
    objective: tuple[ObjectiveName, ...] = ()
    """What is learnt from the rollouts; several names where they fill different places: advantages (rloo, dr-grpo,
    grpo, gdpo), the loss (divergence-ppo, flowrl, on-policy-dpo), gates on tokens (jackpot, capo), a learnt
    reward for the verifier's (representation-reward, ml-irl). By default the clipped surrogate with the estimator's
    advantages."""
    objective_settings: JSONObject = Field(default_factory=dict)
    """Further settings of the objectives by name, such as '{"divergence-ppo": {"delta": 0.15}}'."""
    updates: int = Field(1, ge=1)
    """Optimiser steps on the rollouts of a step."""
    rewards: tuple[RewardName, ...] = Field(("correctness",), min_length=1)
    """Rewards that advantages are made of; added up, or combined by gdpo. The planner is told correctness."""
    length_target: int = Field(10, ge=1)
    """Most tokens of a completion that the reward `length` accepts."""
    actor: ActorName = "current"
    """Who generates: the policy that is trained, one that has fallen behind it (stale, rounds), one with rounded
    weights, or a smaller one."""
    actor_settings: JSONObject = Field(default_factory=dict)
    """Further settings of the actor, such as '{"lag": 8}'."""
    regime: RegimeName = "scratchpad"
    """Form of a completion: free characters before the answer, or the answer alone; countdown is a task of its own,
    with many right answers to a prompt."""
    aggregation: Literal["prompt_mean", "sequence_mean", "token_mean"] = "prompt_mean"
    """How token losses become one number; see docs/weights.md before changing it."""
    learning_rate: float = Field(1e-4, gt=0, allow_inf_nan=False)
    """Learning rate of AdamW, constant."""
    clip_norm: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Largest norm of the gradient."""
    tokens_per_rollout: float = Field(9.6, gt=0, allow_inf_nan=False)
    """For vip-tokens: a step may use this times the rollouts of a step; 9.6 is what the scratchpad policy writes."""
    sketch: SketchName = "last-block"
    """Score sketches that vip-moments is told: of the gradient of one matrix, in the last block or the last of all, or
    of the whole gradient, slowly."""
    sketches: int = Field(16, ge=1, le=16)
    """Numbers of a sketch."""

    @model_validator(mode="after")
    def _rewards_are_different(self) -> Self:
        if len(set(self.rewards)) < len(self.rewards):
            raise ValueError(f"each reward once, got {', '.join(self.rewards)}")
        return self

    @property
    def asked_prompts(self) -> int:
        """Prompts that the planner is asked for at each step."""
        return self.prompts_per_step * (self.candidates or CHOOSE_PROMPTS.get(self.planner, 1))

    @property
    def task(self) -> str:
        """What is trained, in a word."""
        return self.regime

    @property
    def weighting(self) -> str:
        """Advantage and aggregation, in words."""
        return f"{self.estimator}, {self.aggregation.replace('_', ' ')}"


class TRLTrainConfig(RunConfig):
    """Reinforcement learning of any causal language model with TRL."""

    trainer: Literal["trl"] = "trl"
    """Who trains: TRL's GRPOTrainer, or its RLOOTrainer where the estimator is rloo."""
    model: str
    """Folder or hub name of a Hugging Face causal language model."""
    dataset: str
    """A .jsonl, .json, .parquet or .csv file with prompts and answers, or reasoning-gym:NAME."""
    planner: NamedPlanner = "vip"
    """Who decides the number of rollouts of each prompt."""
    estimator: EstimatorName = "dr_grpo"
    """dr_grpo: GRPOTrainer, loss dr_grpo, rewards not scaled; rloo: RLOOTrainer. Its variance is priced, also with
    on-policy-dpo, whose gradient begins as that of rloo."""
    objective: tuple[ObjectiveName, ...] = ()
    """on-policy-dpo: DPOTrainer on pairs of a prompt's rollouts, fresh in each step, against the policy of the start;
    by default the estimator's trainer. The others need the lab."""
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
    verifier: Verifier | None = None
    """How a completion is judged; reasoning-gym's own for its tasks, exact match for files."""
    extract: Rule | None = None
    """Where the answer stands in a completion; see docs/tasks.md."""
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

    @model_validator(mode="after")
    def _objective_is_for_trl(self) -> Self:
        if self.objective not in ((), ("on-policy-dpo",)):
            raise ValueError(
                f"on-policy-dpo or no objective with TRL, others with the lab: {', '.join(self.objective)}"
            )
        if self.updates > 1 and not self.objective:
            raise ValueError(f"more than one of updates only with the objective on-policy-dpo, got {self.updates}")
        return self

    @property
    def task(self) -> str:
        """What is trained, in a word."""
        return Path(self.model).name

    @property
    def weighting(self) -> str:
        """Advantage and aggregation, in words."""
        return f"{self.estimator}, prompt mean"


AnyTrainConfig = TrainConfig | TRLTrainConfig


def train_config_named(trainer: object) -> type[TrainConfig] | type[TRLTrainConfig]:
    """The configuration class of a trainer.

    Raises:
        ConfigError: there is no such trainer.
    """
    if trainer in ("lab", "trl"):
        return TRLTrainConfig if trainer == "trl" else TrainConfig
    raise ConfigError("unknown trainer", got=repr(trainer), allowed="lab, trl", fix="choose one of them")


class GradientVarianceConfig(Config):
    """Measurement of gradient variance at a fixed policy, per planner."""

    regime: RegimeName = "scratchpad"
    """Form of a completion: free characters before the answer, or the answer alone."""
    history: int = Field(32, ge=0)
    """Past rollouts of every prompt that the predictors have seen, in visits of 8 at most."""
    planners: tuple[MeasuredName, ...] = Field(
        ("uniform", "uniform-2x", "oracle", "neyman", "vip", "vip-moments", "vip-paper"), min_length=1
    )
    """Names as for training, and uniform-2x (twice the budget), neyman (knows the gradient moments)."""
    batches: int = Field(12, ge=2)
    """Disjoint batches of prompts; the standard error is over them."""
    prompts: int = Field(64, ge=2)
    """Prompts of a batch."""
    rollouts: int = Field(192, ge=16)
    """Rollouts of each prompt, from which the moments of its rewards and gradients are measured."""
    directions: int = Field(0, ge=0)
    """Random directions of the parameter space, along which gradients are measured; 0 takes all into account."""
    sketch: SketchName = "exact"
    """Score sketches that vip-moments sees in its history: of the whole gradient, or of that of one matrix."""
    sketches: int = Field(16, ge=1, le=16)
    """Numbers of a sketch: random directions, others than those above."""
    rollouts_per_prompt: int = Field(8, ge=3)
    """Mean number of rollouts that is allocated."""
    lower: int = Field(3, ge=2)
    """Least rollouts of a prompt."""
    upper: int = Field(32, ge=2)
    """Most rollouts of a prompt."""
    seed: int = Field(0, ge=0)
    """Fixes prompts, rollouts, directions and sketches."""

    @model_validator(mode="after")
    def _can_be_measured(self) -> Self:
        _check_bounds(self.lower, self.rollouts_per_prompt, self.upper, "rloo")
        if len(set(self.planners)) < len(self.planners):
            raise ValueError(f"each planner once, got {', '.join(self.planners)}")
        return self


def _check_bounds(lower: int, mean: int, upper: int, estimator: EstimatorName) -> None:
    least = 3 if estimator == "dr_grpo" else 2
    if not least <= lower <= mean <= upper:
        raise ValueError(
            f"{least} <= lower <= rollouts_per_prompt <= upper for {estimator}, got {lower}, {mean}, {upper}"
        )
