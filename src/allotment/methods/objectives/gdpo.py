"""GDPO: several rewards, each standardised within its group before they are added up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from allotment.errors import InvalidInputError
from allotment.learning.advantages import grpo_advantages
from allotment.learning.groups import group
from allotment.learning.objective import ObjectiveEntry, ObjectiveRow, check_setting

Whitening = Literal["rollouts", "tokens", "none"]


@dataclass(frozen=True)
class GDPO:
    """Group reward-decoupled normalisation (arXiv 2601.05242).

    Each reward is standardised within each group, the results are added with their weights, and the sum is standardised
    over the batch. A reward that is constant within a group says nothing there. One reward and one group is GRPO, up to
    a scale. Two rewards whose sum is constant in a group cancel there, as in GRPO; three in general do not.

    Sources that disagree: the last step is over rollouts in the paper and in TRL, over tokens in verl; see ``whiten``
    and ``epsilon``. What becomes of a condition that is not met (0, as here) stands in the paper alone.
    """

    rewards: tuple[str, ...] = ()
    """The rewards of every batch, by name; if given, a batch with others is refused."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Of each reward by name, on standardised values; 1 where none is given."""
    conditions: Mapping[str, str] = field(default_factory=dict)
    """``{"length": "correctness"}``: the first reward is 0 where the second does not reach ``threshold``."""
    threshold: float = 1.0
    """Of the conditions, in units of the reward that is asked about."""
    whiten: Whitening = "rollouts"
    """Over what the sum is standardised at last; training fails now and then without, says the paper. Over rollouts
    the mean of the sum is 0 as it is, and groups without signal stay at 0. Over tokens long rollouts count more, the
    mean is not 0, and such groups are moved off 0 with the others."""
    epsilon: float = 1e-4
    """Added to every standard deviation (TRL; verl 1e-6; the paper has none in the groups). Over tokens the last step
    has verl's 1e-8 under the root instead."""

    def __post_init__(self) -> None:
        check_setting(
            "gdpo", "whitening", repr(self.whiten), self.whiten in get_args(Whitening), str(get_args(Whitening))
        )
        check_setting("gdpo", "epsilon", self.epsilon, 0 < self.epsilon < math.inf, "> 0")
        for name, weight in self.weights.items():
            check_setting("gdpo", "weight", f"{name}: {weight}", math.isfinite(weight), "finite numbers")
        if self.rewards:
            self._check_settings(self.rewards)

    def advantages(self, rewards: Mapping[str, Tensor], group_ids_N: Tensor, lengths_N: Tensor | None = None) -> Tensor:
        """[N] advantages from named rewards [N] each, within groups [N]; no gradient.

        ``lengths_N``: [N] tokens of each rollout, for whitening over tokens.

        Raises:
            ConfigError: a weight or a condition names no reward.
            InvalidInputError: the rewards are not those of the settings, or one of them is not a finite number for each
                rollout; or the lengths are missing.
        """
        self._check(rewards, group_ids_N)
        parts = [
            self.weights.get(name, 1.0) * grpo_advantages(self._conditioned(name, rewards), group_ids_N, self.epsilon)
            for name in rewards
        ]
        total_N = torch.stack(parts).sum(0)
        if self.whiten == "none":
            return total_N
        if self.whiten == "rollouts":
            deviation = total_N.square().sum().div(max(len(total_N) - 1, 1)).sqrt()
            return total_N / (deviation + self.epsilon)
        if lengths_N is None:
            allowed, fix = "the tokens of each rollout", "pass lengths_N, or whiten over rollouts"
            raise InvalidInputError("Whitening over tokens.", got="no lengths", allowed=allowed, fix=fix)
        return _whitened_over_tokens(total_N, lengths_N.to(total_N.dtype))

    def _conditioned(self, name: str, rewards: Mapping[str, Tensor]) -> Tensor:
        """[N] the reward, 0 where its condition is not met."""
        if name not in self.conditions:
            return rewards[name]
        return torch.where(rewards[self.conditions[name]] >= self.threshold, rewards[name], 0.0)

    def _check(self, rewards: Mapping[str, Tensor], group_ids_N: Tensor) -> None:
        if not rewards or (self.rewards and set(rewards) != set(self.rewards)):
            raise InvalidInputError(
                "The rewards are not those of the settings." if rewards else "There is no reward.",
                got=", ".join(rewards) or "none",
                allowed=", ".join(self.rewards) or "at least one named reward",
                fix="score every rollout with the same named rewards at every step",
            )
        self._check_settings(tuple(rewards))
        shape = (len(group(group_ids_N).index_N),)
        for name, reward_N in rewards.items():
            is_bad_N = ~torch.isfinite(reward_N)
            if tuple(reward_N.shape) != shape or is_bad_N.any():
                raise InvalidInputError(
                    f"The reward {name!r} cannot be used.",
                    got=f"shape {tuple(reward_N.shape)}, {int(is_bad_N.sum())} not finite",
                    allowed=f"a finite number for each of {shape[0]} rollouts",
                    fix="score a failed verification 0, or leave the rollout out",
                )

    def _check_settings(self, names: tuple[str, ...]) -> None:
        for given in (self.weights, self.conditions, self.conditions.values()):
            for name in given:
                check_setting(
                    "gdpo", "reward in its weights or conditions", repr(name), name in names, ", ".join(names)
                )


def _whitened_over_tokens(values_N: Tensor, lengths_N: Tensor) -> Tensor:
    """[N] the values, with mean 0 and variance 1 over tokens; verl's ``masked_whiten``."""
    tokens = lengths_N.sum().clamp(min=2)
    centred_N = values_N - (lengths_N * values_N).sum() / tokens
    return centred_N / ((lengths_N * centred_N.square()).sum() / (tokens - 1) + 1e-8).sqrt()


ENTRY = ObjectiveEntry(
    "advantages",
    GDPO,
    row=ObjectiveRow(
        "several rewards: each standardised in its group, added with weights, standardised over the batch; conditioned "
        "rewards",
        "one reward and one group: `grpo` up to a scale",
        "arXiv 2601.05242; TRL, verl",
        "epsilon 1e-4 (TRL; verl 1e-6); no mean is subtracted over rollouts (it is 0); over tokens by name as in verl; "
        "one threshold for all conditions",
    ),
)
