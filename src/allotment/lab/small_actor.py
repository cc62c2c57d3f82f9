"""A small policy that generates for a larger one, and learns beside it from the same rollouts."""

from __future__ import annotations

import torch
from torch import Tensor

from allotment.lab.actor import Actor, Learnt, check_actor
from allotment.lab.checkpoint import (
    load_lab,
    load_optimizer,
    load_parameters,
    optimizer_state,
    parameters_state,
    shipped_policy,
)
from allotment.lab.generation import Lab, Outputs
from allotment.lab.step_rows import Metrics
from allotment.learning import clipped_surrogate
from allotment.methods.objectives.jackpot import kl_divergence
from allotment.state import State


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
