"""Verifiers and reward functions of a run: which, how each weighs, and which of them says what a success is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from allotment.errors import ConfigError
from allotment.tasks.datasets import Row
from allotment.tasks.rewards import Reward, make_reward
from allotment.trainers.trl.config import TRLTrainConfig
from allotment.trainers.trl.own_rewards import RewardFunction, check_columns, check_names, load_reward, name_of
from allotment.trainers.trl.returned import Checked


@dataclass(frozen=True)
class Judging:
    """The reward functions of a run."""

    functions: tuple[RewardFunction, ...]
    """Verifiers first."""
    success: str | None
    """Name of the function whose value is a success or not; None for the weighted sum."""

    def close(self) -> None:
        """Let go of what verifiers hold."""
        for function in self.functions:
            if isinstance(function, Reward):
                function.close()

    def reported(self, evaluated: str, logs: dict[str, Any]) -> Any:
        """The success of one evaluation in what TRL logs."""
        if self.success is not None:
            return logs[f"eval_rewards/{self.success}/mean"]
        return logs.get(f"eval_{evaluated}_reward", logs.get("eval_reward"))


def judging_of(config: TRLTrainConfig, rows: Sequence[Row]) -> Judging:
    """The verifiers and reward functions that a configuration names, checked against the columns of the data set.

    Raises:
        ConfigError: one cannot be found or called, two have one name, weights are too few or too many, or there is none
            of the name in ``success_reward``.
    """
    own = [load_reward(named) for named in config.reward]
    for function, named in zip(own, config.reward, strict=True):
        check_columns(function, named, list(rows[0]), tells_groups=not config.prefers)
    wanted: list[Any] = [*config.verifier] or ([] if own else [None])
    verifiers = [make_reward(name, source=config.dataset, rule=config.extract) for name in wanted]
    functions: tuple[RewardFunction, ...] = (*verifiers, *map(Checked, own))
    names = [name_of(function) for function in functions]
    check_names(names)
    _check_weights(config.reward_weights, names)
    success = config.success_reward
    if success is None and verifiers and len(functions) > 1 and not config.prefers:
        success = name_of(verifiers[0])
    if success is not None and success not in names:
        raise ConfigError(
            "there is no reward function of that name",
            got=f"success_reward {success!r}",
            allowed=", ".join(names),
            fix="name one of them",
        )
    return Judging(functions, success)


def _check_weights(weights: Sequence[float], names: Sequence[str]) -> None:
    if weights and len(weights) != len(names):
        raise ConfigError(
            "reward_weights do not fit the reward functions",
            got=f"{len(weights)} weights for {', '.join(names)}",
            allowed=f"{len(names)} numbers, in this order: verifiers first",
            fix="give each its weight, or leave them out for 1 each",
        )
