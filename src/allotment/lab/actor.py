"""What generates rollouts in the lab: what an actor is, and the plainest one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from allotment.errors import ConfigError
from allotment.lab.generation import Lab, Rollouts
from allotment.lab.step_rows import Metrics
from allotment.state import State
from allotment.tasks.mixture import Problem


@dataclass(frozen=True)
class Learnt:
    """What the trained policy has just learnt from."""

    problems: list[Problem]
    rollouts: Rollouts
    """Those that were trained on."""
    advantages_N: Tensor
    weights_NT: Tensor


class Actor:
    """The policy that draws the rollouts of a step; this one is the trained policy itself: rollouts are on-policy."""

    def __init__(self, trained: Lab) -> None:
        self._trained = trained

    def lab(self) -> Lab:
        """Who draws the next rollouts."""
        return self._trained

    def after_step(self, learnt: Learnt) -> Metrics:
        """The trained policy has made its updates of a step; what there is to log."""
        return {}

    def state_dict(self) -> State:
        """What the actor has of its own."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave."""


def check_actor(actor: str, got: str, is_allowed: bool, allowed: str) -> None:
    """Raise :class:`~allotment.errors.ConfigError` unless the settings are allowed."""
    if not is_allowed:
        wrong = f"the actor {actor!r} cannot be made with these settings"
        raise ConfigError(wrong, got=got, allowed=allowed, fix="correct --actor-settings")
