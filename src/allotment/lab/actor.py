"""What generates rollouts in the lab: the contract of an actor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from allotment.lab.generation import Lab, Rollouts
from allotment.lab.step_rows import Metrics
from allotment.state import Stateful
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
