"""Who says how good a rollout is: the verifier, easier rewards by name beside it, or a reward that was learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from allotment.lab.combinations import declared
from allotment.lab.config import RewardName, TrainConfig
from allotment.lab.generation import Lab, Rollouts
from allotment.lab.objectives import judge_settings, made
from allotment.lab.step_rows import Metrics
from allotment.state import Stateful
from allotment.tasks.mixture import Mixture, Problem
from allotment.types import FloatArray


@dataclass(frozen=True)
class Judged:
    """What a judge says of N rollouts."""

    rewards_N: FloatArray
    """[N] finite; what advantages and preferences are made of."""
    successes_N: FloatArray
    """[N] 1.0 or 0.0: what the planner is told, and what is logged as success."""


class Judge(Stateful, Protocol):
    """A reward in the verifier's place. What it was fitted to before the run is its own business."""

    def judge(self, problems: Sequence[Problem], rollouts: Rollouts) -> Judged:
        """How good the rollouts are; ``group_N`` are rows of ``problems``."""
        ...

    def learn(self, problems: Sequence[Problem], rollouts: Rollouts) -> Metrics:
        """Its own step, after that of the policy, on the same rollouts; what there is to log."""
        ...


def make_judge(config: TrainConfig, lab: Lab, mixture: Mixture) -> Judge | None:
    """The judge of a configuration, None where it is the verifier; ConfigError on an unknown setting."""
    for name, entry in declared(config, "reward").items():
        settings = {name: judge_settings(config, name)}
        return made(name, entry.make, settings, lab=lab, mixture=mixture, seed=config.seed)  # type: ignore[no-any-return]
    return None


VOWELS = frozenset("aeiou")


def named_rewards(names: Sequence[RewardName], lab: Lab, rollouts: Rollouts, length_target: int) -> dict[str, Tensor]:
    """Each reward by its name, [N] in {0, 1}.

    ``correctness`` is the verified answer; ``format`` a completion that ends in time, has the regime's form, and has a
    vowel in its scratchpad; ``length`` at most ``length_target`` tokens, end token included.

    The form alone would be constant: the shipped policy keeps it in all but 1 of 3000 rollouts, and writes a vowel in
    two of three.
    """
    made = {
        "correctness": lambda: torch.from_numpy(rollouts.rewards_N).float(),
        "format": lambda: torch.tensor(_has_format(lab, rollouts)).float(),
        "length": lambda: (rollouts.mask_NT.sum(1) <= length_target).float(),
    }
    return {name: made[name]() for name in names}


def _has_format(lab: Lab, rollouts: Rollouts) -> list[bool]:
    free = lab.regime.scratchpad
    return [
        answer is not None and (not free or not VOWELS.isdisjoint(lab.tokenizer.decode(tokens[:free])))
        for answer, tokens in zip(rollouts.answers_N, rollouts.tokens_NT.tolist(), strict=True)
    ]
