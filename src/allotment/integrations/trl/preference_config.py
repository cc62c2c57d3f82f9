"""The settings of rounds of on-policy DPO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, NoReturn

from trl import DPOConfig

from allotment.errors import ConfigError
from allotment.integrations.trl.config import AllotmentArguments

LEAST = {"prompts_per_round": 1, "num_generations": 2, "updates_per_round": 1, "max_completion_length": 1}
UNUSED = {"score_sketch": None, "candidate_prompts": None, "success_reward": None, "prompt_weighting": "prompt"}
MOVING = {"precompute_ref_log_probs": False, "sync_ref_model": False}


@dataclass
class AllotmentDPOConfig(AllotmentArguments, DPOConfig):
    """TRL's ``DPOConfig``, the planner's settings, and how rollouts become pairs.

    ``num_train_epochs`` counts rounds; ``max_steps``, ``save_steps``, ``logging_steps`` and ``eval_steps`` count
    optimiser steps, ``updates_per_round`` of them a round. A step trains on ``per_device_train_batch_size *
    gradient_accumulation_steps`` pairs, however many a round has.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*DPOConfig._VALID_DICT_FIELDS, "planner_kwargs"]

    prompts_per_round: int = field(default=16, metadata={"help": "Prompts that get rollouts in a round."})
    num_generations: int = field(default=8, metadata={"help": "Mean number of rollouts of a prompt."})
    updates_per_round: int = field(default=1, metadata={"help": "Optimiser steps on the pairs of a round."})
    pairs: Literal["all", "extreme"] = field(
        default="all", metadata={"help": "all: rollouts of a prompt with unequal rewards; extreme: best and worst."}
    )
    max_completion_length: int = field(default=256, metadata={"help": "Longest completion that is generated."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of sampling."})
    max_length: int | None = field(default=None, metadata={"help": "As in TRL; None: nothing is cut off."})

    def __post_init__(self) -> None:
        DPOConfig.__post_init__(self)
        super().__post_init__()
        for name, smallest in LEAST.items():
            if getattr(self, name) < smallest:
                refuse(name, getattr(self, name), f"a whole number >= {smallest}", "raise it")
        for name in ("max_steps", *(["save_steps"] if self.save_strategy == "steps" else [])):
            if getattr(self, name) > 0 and getattr(self, name) % self.updates_per_round:
                allowed = f"a multiple of updates_per_round = {self.updates_per_round}"
                refuse(name, getattr(self, name), allowed, "end with a round: its pairs are in no checkpoint")
        for name, value in (UNUSED | MOVING).items():
            if getattr(self, name) != value:
                why = "the reference is fixed, the pairs are new in each round" if name in MOVING else "leave it out"
                refuse(name, getattr(self, name), repr(value), why)


def refuse(what: str, got: object, allowed: str, fix: str) -> NoReturn:
    """A setting, or what was given, does not do."""
    raise ConfigError(f"preferences cannot be learnt with this: {what}", got=got, allowed=allowed, fix=fix)
