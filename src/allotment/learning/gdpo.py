"""GDPO: several rewards, each standardised within its group before they are added up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from allotment.errors import ConfigError, InvalidInputError, message
from allotment.learning.advantages import grpo_advantages


@dataclass(frozen=True)
class GDPO:
    """Group reward-decoupled normalisation (arXiv 2601.05242).

    Each reward is standardised within each group, the results are added with their weights, and the sum is standardised
    over the batch. A reward that is constant within a group says nothing there. One reward and one group is GRPO, up to
    a scale. The batch is over rollouts, as the paper and TRL have it (verl: over tokens).
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    """Of each reward by name, on standardised values; 1 where none is given."""
    conditions: Mapping[str, str] = field(default_factory=dict)
    """``{"length": "correctness"}``: the first reward counts only where the second reaches ``threshold``."""
    threshold: float = 1.0
    """Of the conditions, in units of the reward that is asked about."""
    whiten: bool = True
    """Whether the sum is standardised over the batch; training fails now and then without, says the paper."""
    epsilon: float = 1e-4
    """Added to every standard deviation (TRL; verl 1e-6; the paper has none in the groups)."""

    def advantages(self, rewards: Mapping[str, Tensor], group_ids_N: Tensor) -> Tensor:
        """[N] advantages from named rewards [N] each, within groups [N]; no gradient.

        Raises:
            ConfigError: a weight or a condition names no reward.
            InvalidInputError: there is no reward, or one is not finite.
        """
        self._check(rewards)
        total_N = torch.zeros(len(group_ids_N))
        for name, reward_N in rewards.items():
            if name in self.conditions:
                reward_N = torch.where(rewards[self.conditions[name]] >= self.threshold, reward_N, 0.0)
            try:
                own_N = grpo_advantages(reward_N, group_ids_N, self.epsilon)
            except InvalidInputError as error:
                raise InvalidInputError(f"In the reward {name!r}: {error}") from error
            total_N = total_N.to(own_N.dtype) + self.weights.get(name, 1.0) * own_N
        if not self.whiten:
            return total_N
        centred_N = total_N - total_N.mean()
        deviation = centred_N.square().sum().div(max(len(centred_N) - 1, 1)).sqrt()
        return centred_N / (deviation + self.epsilon)

    def _check(self, rewards: Mapping[str, Tensor]) -> None:
        if not rewards:
            raise InvalidInputError(
                message("There is no reward.", got="none", allowed="at least one named reward", fix="pass them by name")
            )
        named = [*self.weights, *self.conditions, *self.conditions.values()]
        strange = next((name for name in named if name not in rewards), None)
        if strange is not None:
            raise ConfigError(
                message(
                    "GDPO's settings name a reward that is not there.",
                    got=repr(strange),
                    allowed=", ".join(rewards),
                    fix="name rewards that every rollout has, the same at every step",
                )
            )
