"""Who says how good a rollout is: the verifier, or a reward that was learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from allotment.lab.combinations import declared
from allotment.lab.config import TrainConfig
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
