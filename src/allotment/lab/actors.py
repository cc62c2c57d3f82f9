"""Who generates the rollouts: the policy that is trained, one that has fallen behind it, or a smaller one."""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor

from allotment.errors import ConfigError
from allotment.lab.actor import Actor, Learnt, check_actor
from allotment.lab.checkpoint import load_parameters, parameters_state
from allotment.lab.config import TrainConfig
from allotment.lab.generation import Lab
from allotment.lab.small_actor import SmallActor
from allotment.lab.step_rows import Metrics
from allotment.state import State


class StaleActor(Actor):
    """The trained policy of ``lag`` steps ago; before that many steps are made, that of the start."""

    def __init__(self, trained: Lab, lag: int = 8) -> None:
        super().__init__(trained)
        check_actor("stale", f"lag={lag}", lag >= 0, "lag >= 0")
        self._copy = deepcopy(trained)
        self._versions = deque([parameters_state(trained.policy)], maxlen=lag + 1)

    def lab(self) -> Lab:
        """The oldest policy that is kept."""
        load_parameters(self._copy.policy, self._versions[0])
        return self._copy

    def after_step(self, learnt: Learnt) -> Metrics:
        """Keeps a copy of the trained policy."""
        self._versions.append(parameters_state(self._trained.policy))
        return {}

    def state_dict(self) -> State:
        """Parameters of every policy that is kept, oldest first."""
        return {"versions": {str(i): version for i, version in enumerate(self._versions)}}

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave."""
        versions = state["versions"]
        self._versions.clear()
        self._versions.extend(versions[str(i)] for i in range(len(versions)))


class RoundsActor(Actor):
    """The trained policy as it was at the start of a round of ``steps`` steps: fresh rollouts of an old policy.

    Together with a preference loss these are the rounds of on-policy DPO; one round that is longer than the run is
    offline DPO, whose comparisons are all of the initial policy.
    """

    def __init__(self, trained: Lab, steps: int = 30) -> None:
        super().__init__(trained)
        check_actor("rounds", f"steps={steps}", steps >= 1, "steps >= 1")
        self._copy, self._steps, self._done = deepcopy(trained), steps, 0

    def lab(self) -> Lab:
        """The policy of the start of this round."""
        return self._copy

    def after_step(self, learnt: Learnt) -> Metrics:
        """Starts a new round where one is over."""
        self._done += 1
        if self._done % self._steps == 0:
            load_parameters(self._copy.policy, parameters_state(self._trained.policy))
        return {}

    def state_dict(self) -> State:
        """Parameters of the round's policy, and steps done."""
        return {"parameters": parameters_state(self._copy.policy), "done": self._done}

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave."""
        load_parameters(self._copy.policy, state["parameters"])
        self._done = state["done"]


class QuantisedActor(Actor):
    """The trained policy with every matrix rounded to ``bits`` bits; biases and norms are left as they are.

    A weight becomes the nearest of ``2**bits - 1`` equidistant values around 0, the outermost of which is the largest
    weight of its row or tensor. 32 bits are no rounding.
    """

    def __init__(self, trained: Lab, bits: int = 4, per: Literal["row", "tensor"] = "row") -> None:
        super().__init__(trained)
        is_allowed = 2 <= bits <= 32 and per in ("row", "tensor")
        check_actor("quantised", f"bits={bits}, per={per!r}", is_allowed, "bits from 2 to 32, per row or tensor")
        self._copy, self._bits, self._per_row = deepcopy(trained), bits, per == "row"

    @torch.no_grad()
    def lab(self) -> Lab:
        """The trained policy as it is now, rounded."""
        for own, trained in zip(self._copy.policy.parameters(), self._trained.policy.parameters(), strict=True):
            own.copy_(trained if trained.ndim < 2 else rounded(trained, self._bits, per_row=self._per_row))
        return self._copy


def rounded(weight: Tensor, bits: int, *, per_row: bool) -> Tensor:
    """The matrix with its entries rounded, symmetrically around 0; see :class:`QuantisedActor`."""
    if bits == 32:
        return weight
    largest = weight.abs().amax(1, keepdim=True) if per_row else weight.abs().max()
    steps: int = 2 ** (bits - 1) - 1
    spacing = (largest / steps).clamp(min=torch.finfo(weight.dtype).tiny)
    return (weight / spacing).round() * spacing


def make_actor(config: TrainConfig, trained: Lab) -> Actor:
    """The actor of a configuration. Raises ConfigError: there is no such actor, or it does not know a setting."""
    makers: dict[str, Any] = {
        "current": Actor,
        "stale": StaleActor,
        "rounds": RoundsActor,
        "quantised": QuantisedActor,
        "small": SmallActor,
    }
    try:
        return makers[config.actor](trained, **config.actor_settings)  # type: ignore[no-any-return]
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"the actor {config.actor!r} cannot be made with these settings",
            got=error,
            allowed=", ".join(makers),
            fix="correct the setting's name",
        ) from error
