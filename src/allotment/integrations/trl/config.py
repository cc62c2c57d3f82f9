"""What Allotment adds to TRL's configurations; every field works in Python, on TRL's command line and in its YAML."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from transformers import TrainingArguments
from trl import GRPOConfig, RLOOConfig

from allotment.errors import ConfigError
from allotment.integrations.capabilities import TRL
from allotment.planning.contract import works_with

if TYPE_CHECKING:
    from allotment.planning import Planner
    from allotment.selection import Selector

    PlannerOrName: TypeAlias = str | Planner
    SelectorOrName: TypeAlias = str | Selector
else:  # what TRL's parser makes a flag of
    PlannerOrName = SelectorOrName = str


@dataclass
class AllotmentArguments:
    """The fields beside TRL's own. ``num_generations`` becomes the mean number of rollouts of a prompt.

    Raises:
        ConfigError: ``prompt_weighting`` or ``planner_kwargs`` is not one of the allowed.
    """

    planner: PlannerOrName = field(
        default="vip",
        metadata={
            "help": f"Who decides the number of rollouts of each prompt: {', '.join(works_with(TRL))}; in Python also "
            "a planner object, whose budget is the generation batch."
        },
    )
    planner_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Further arguments of a planner given by name, such as bounds (least and most rollouts of a "
            "prompt), estimator, seed. Defaults: bounds (3, the larger of 32 and 4 num_generations), estimator rloo "
            "for RLOO and vip-moments and dr_grpo for GRPO, TRL's seed."
        },
    )
    select: SelectorOrName | None = field(
        default=None,
        metadata={
            "help": "Which of the generated rollouts are trained on, and how each counts: a selector by name (pods, "
            "max-reward, random, completion-pruning), in Python also an object; all of them, or as the planner's "
            "method has it, if None."
        },
    )
    select_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further arguments of a selector given by name, such as keep."}
    )
    prompt_id_column: str | None = field(
        default=None,
        metadata={
            "help": "Column that names a prompt, int or str. Without one: a hash of all columns, so that rows are one "
            "prompt only if nothing tells them apart."
        },
    )
    prompt_weighting: Literal["prompt", "rollout"] = field(
        default="prompt",
        metadata={
            "help": "prompt: every prompt of a batch counts the same in the loss (advantages times mean(n) / n); "
            "rollout: every rollout does, so that prompts with more rollouts pull harder."
        },
    )
    success_threshold: float | None = field(
        default=None,
        metadata={"help": "A reward of at least this is a success to a planner given by name; 0.5 if None."},
    )
    success_reward: str | None = field(
        default=None,
        metadata={
            "help": "Name of the reward function whose value the planner is told, such as the verifier's where others "
            "judge format; the weighted sum of all if None."
        },
    )
    candidate_prompts: int | None = field(
        default=None,
        metadata={
            "help": "Prompts drawn for a generation batch, of which as many as usual, those of largest expected reward "
            "variance, get rollouts; the others get 0. A divisor of the generation batch size; None draws no more "
            "than are trained on."
        },
    )
    prompt_embeddings: str | None = field(
        default=None,
        metadata={
            "help": "What tells the predictor about prompts it has not seen: 'minilm' (the packaged model), the name "
            "or folder of a sentence-transformers model, or a .npy file with a row for each row of the data set."
        },
    )
    score_sketch: Literal["last-layer", "last-block"] | None = field(
        default=None,
        metadata={
            "help": "For vip-moments: the matrix whose gradient is sketched, the output matrix or that of the last "
            "attention; last-block if None. Costs one more forward pass over the rollouts."
        },
    )

    def __post_init__(self) -> None:
        if isinstance(self, GRPOConfig | RLOOConfig):
            super().__post_init__()  # type: ignore[misc]
        self.planner_kwargs = _table("planner_kwargs", self.planner_kwargs, '{"bounds": [3, 32]}')
        self.select_kwargs = _table("select_kwargs", self.select_kwargs, '{"keep": 4}')
        if self.prompt_weighting not in ("prompt", "rollout"):
            got = f"prompt_weighting={self.prompt_weighting!r}"
            raise ConfigError(
                "there is no such weighting", got=got, allowed="prompt, rollout", fix="choose one of them"
            )

    def to_dict(self) -> dict[str, Any]:
        """TRL's, which reporters write down as JSON: a planner object by the name of its class."""
        names = {"planner": self.planner, "select": self.select}
        named = {k: v if v is None or isinstance(v, str) else type(v).__name__ for k, v in names.items()}
        if isinstance(self, TrainingArguments):
            return {**super().to_dict(), **named}  # type: ignore[misc]
        return {**{entry.name: getattr(self, entry.name) for entry in fields(self)}, **named}


def _table(name: str, value: dict[str, Any] | str | None, example: str) -> dict[str, Any] | None:
    """Settings given as a dict, or as JSON."""
    try:
        return dict(json.loads(value)) if isinstance(value, str) else value
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name} are no settings", got=f"{name}={value!r}", allowed="a dict, or one as JSON", fix=f"write {example}"
        ) from error


@dataclass
class AllotmentGRPOConfig(AllotmentArguments, GRPOConfig):
    """TRL's ``GRPOConfig`` and :class:`AllotmentArguments`.

    VIP's price is the variance of advantages that are centred, not divided by a standard deviation: pass
    ``scale_rewards="none"`` for what it is made for; TRL's default is ``"group"``.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*GRPOConfig._VALID_DICT_FIELDS, "planner_kwargs", "select_kwargs"]


@dataclass
class AllotmentRLOOConfig(AllotmentArguments, RLOOConfig):
    """TRL's ``RLOOConfig`` and :class:`AllotmentArguments`."""

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*RLOOConfig._VALID_DICT_FIELDS, "planner_kwargs", "select_kwargs"]
