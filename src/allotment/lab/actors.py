"""Who generates the rollouts: the policy that is trained, one that has fallen behind it, or a smaller one."""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from allotment.errors import ConfigError
from allotment.lab.checkpoint import (
    load_lab,
    load_optimizer,
    load_parameters,
    optimizer_state,
    parameters_state,
    shipped_policy,
)
from allotment.lab.config import TrainConfig
from allotment.lab.generation import Lab, Outputs, Rollouts
from allotment.lab.step_rows import Metrics
from allotment.learning import clipped_surrogate
from allotment.methods.objectives.jackpot import kl_divergence
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


class SmallActor(Actor):
    """The shipped small policy, with an optimiser of its own: the actor omega of Jackpot (arXiv 2602.06107).

    After each step of the trained policy theta it makes one step on the same trajectories, all of them:
    PPO's surrogate with the weight min(p_omega / p_inf, ``weight_cap``), p_inf as logged while drawing, plus
    ``distill`` times KL(p_theta || p_omega) over the vocabulary, theta as it is after its step and without gradient.
    Both are weighted as in the loss of the trained policy. 0 for ``learning_rate`` leaves the actor as it was.

    The weight of the distillation and the learning rate are not in the paper; 1 and 3e-4 are choices.
    """

    def __init__(
        self, trained: Lab, distill: float = 1.0, learning_rate: float = 3e-4, weight_cap: float = 2.0
    ) -> None:
        super().__init__(trained)
        check_actor(
            "small",
            f"distill={distill}, learning_rate={learning_rate}, weight_cap={weight_cap}",
            distill >= 0 and learning_rate >= 0 and weight_cap > 0,
            "distill and learning_rate >= 0, weight_cap > 0",
        )
        regime, path = trained.regime, shipped_policy(trained.regime.name, "small")
        check_actor("small", f"regime {regime.name}", path.exists(), "a regime with a small policy: scratchpad, short")
        self._own, self._distill, self._weight_cap = load_lab(regime, path), distill, weight_cap
        is_same = self._own.tokenizer.vocabulary == trained.tokenizer.vocabulary
        check_actor("small", "a trained policy with another vocabulary", is_same, "the shipped policies")
        self._optimizer = torch.optim.AdamW(self._own.policy.parameters(), lr=learning_rate)

    def lab(self) -> Lab:
        """The small policy."""
        return self._own

    def after_step(self, learnt: Learnt) -> Metrics:
        """One step of the small policy.

        Metrics: ``actor_kl``, the mean KL(p_theta || p_omega) over tokens before it; ``actor_loss``, surrogate and
        distillation together.
        """
        rollouts = learnt.rollouts
        given = (learnt.problems, rollouts.group_N, rollouts.tokens_NT, rollouts.mask_NT)
        with torch.no_grad():
            trained = self._trained.outputs(*given)
        own = self._own.outputs(*given)
        kl_NT = torch.where(rollouts.mask_NT, kl_divergence(trained.distribution_NTV, own.distribution_NTV), 0.0)
        loss = (learnt.weights_NT * (self._surrogate(own, learnt) + self._distill * kl_NT)).sum()
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._own.policy.parameters(), 1.0)
        self._optimizer.step()
        return {"actor_kl": (kl_NT.sum() / rollouts.mask_NT.sum()).item(), "actor_loss": loss.item()}

    def _surrogate(self, own: Outputs, learnt: Learnt) -> Tensor:
        """[N, T] the policy gradient of the actor on its own trajectories."""
        mask_NT, now_NT = learnt.rollouts.mask_NT, own.log_probs_NT.detach()
        values_NT = clipped_surrogate(own.log_probs_NT, now_NT, learnt.advantages_N, mask_NT).values_NT
        log_weight_NT = torch.where(mask_NT, now_NT - learnt.rollouts.log_probs_NT, 0.0)
        return values_NT * log_weight_NT.exp().clamp(max=self._weight_cap)

    def state_dict(self) -> State:
        """Parameters and moments of the optimiser."""
        return {"parameters": parameters_state(self._own.policy), "optimizer": optimizer_state(self._optimizer)}

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave."""
        load_parameters(self._own.policy, state["parameters"])
        load_optimizer(self._optimizer, state["optimizer"])


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
