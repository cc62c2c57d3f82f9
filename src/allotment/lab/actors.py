"""Who generates the rollouts: the policy that is trained, or one that has fallen behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from allotment.config import TrainConfig
from allotment.errors import ConfigError, message
from allotment.lab.generation import Lab, Rollouts
from allotment.lab.step_rows import Metrics
from allotment.state import State, Stateful
from allotment.tasks.mixture import Problem


@dataclass(frozen=True)
class Learnt:
    """What the trained policy has just learnt from."""

    problems: list[Problem]
    rollouts: Rollouts
    """Those that were trained on."""
    advantages_N: Tensor
    weights_NT: Tensor


class Actor(Stateful, Protocol):
    """The policy that draws the rollouts of a step."""

    def lab(self) -> Lab:
        """Who draws the next rollouts."""
        ...

    def after_step(self, learnt: Learnt) -> Metrics:
        """The trained policy has made its updates of a step; what there is to log."""
        ...


class CurrentActor:
    """The trained policy itself: rollouts are on-policy."""

    def __init__(self, trained: Lab) -> None:
        self._trained = trained

    def lab(self) -> Lab:
        """The trained policy."""
        return self._trained

    def after_step(self, learnt: Learnt) -> Metrics:
        """Nothing lags."""
        return {}

    def state_dict(self) -> State:
        """Nothing of its own."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Nothing to restore."""


def make_actor(config: TrainConfig, trained: Lab) -> Actor:
    """The actor of a configuration.

    Raises:
        ConfigError: there is no such actor, or it does not know a setting.
    """
    makers: dict[str, Any] = {"current": CurrentActor}
    try:
        return makers[config.actor](trained, **config.actor_settings)  # type: ignore[no-any-return]
    except (KeyError, TypeError) as error:
        raise ConfigError(
            message(
                f"the actor {config.actor!r} cannot be made with these settings",
                got=error,
                allowed=", ".join(makers),
                fix="correct the setting's name",
            )
        ) from error
