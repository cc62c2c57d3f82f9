"""Optimiser steps of the lab's policy on verified rollouts, by the objective of the run."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor

from allotment.errors import ConfigError
from allotment.lab.checkpoint import load_optimizer, load_parameters, optimizer_state, parameters_state
from allotment.lab.config import TrainConfig
from allotment.lab.generation import Lab, Rollouts
from allotment.lab.objectives import make_objective
from allotment.lab.step_rows import Metrics
from allotment.learning.record import HeadMoments, TokenRecord
from allotment.state import State
from allotment.tasks.mixture import Problem

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


class Learner:
    """The optimiser of a run, and the objective it follows."""

    def __init__(self, lab: Lab, config: TrainConfig) -> None:
        self.lab, self.config = lab, config
        self.objective = make_objective(config, lab)
        if "head_moments" in self.objective.needs and config.optimizer != "adamw":
            raise ConfigError(
                "an objective foresees the step of AdamW",
                got=f"objective {' '.join(config.objective)}, optimizer {config.optimizer}",
                allowed="optimizer adamw",
                fix="leave --optimizer out",
            )
        parameters = [{"params": list(lab.policy.parameters())}]
        if self.objective.module is not None:
            parameters.append({"params": list(self.objective.module.parameters())})
        self.optimizer = OPTIMIZERS[config.optimizer](parameters, lr=config.learning_rate)
        self._reference = deepcopy(lab) if "reference" in self.objective.needs else None

    def update(self, problems: list[Problem], rollouts: Rollouts, advantages_N: Tensor, weights_NT: Tensor) -> Metrics:
        """The optimiser steps of one batch; rows whose gradient is 0 are left out of the backward pass.

        ``advantages_N``: [N]. ``weights_NT``: [N, T] weight of every token in the loss. The metrics are those of the
        last update.
        """
        live_N = (advantages_N != 0) | self.objective.needs_every_row
        metrics: Metrics = {}
        old_NT: Tensor | None = None
        rows, advantages_N, weights_NT = rollouts.take(live_N), advantages_N[live_N], weights_NT[live_N]
        for _ in range(self.config.updates):
            loss = torch.zeros(())
            self.optimizer.zero_grad()
            if len(rows):
                record = self._record(problems, rows, advantages_N, old_NT)
                old_NT = record.old_log_probs_NT
                values_NT, metrics = self._token_losses(record)
                loss = (weights_NT * values_NT).sum()
                loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(self.lab.policy.parameters(), self.config.clip_norm)
            self.optimizer.step()
        return {"loss": loss.item(), "gradient_norm": norm.item(), **metrics}

    def _token_losses(self, record: TokenRecord) -> tuple[Tensor, Metrics]:
        """[N, T] losses times the factors of all gates, and what there is to log of them."""
        token_loss = self.objective.loss.loss(record)
        values_NT, metrics = token_loss.values_NT, {}
        if self.config.objective or self.config.updates > 1:
            metrics = {name: value.item() for name, value in token_loss.metrics.items()}
        for name, gate in self.objective.gates.items():
            factors = gate.factors(record)
            values_NT = values_NT * factors.values_NT
            metrics |= {f"{name}_{key}": value.item() for key, value in factors.metrics.items()}
        return values_NT, metrics

    def _record(
        self, problems: list[Problem], rollouts: Rollouts, advantages_N: Tensor, old_NT: Tensor | None
    ) -> TokenRecord:
        needs, mask_NT = self.objective.needs, rollouts.mask_NT
        given = (problems, rollouts.group_N, rollouts.tokens_NT, mask_NT)
        outputs = self.lab.outputs(*given)
        reference_NT = None
        if self._reference is not None:
            with torch.no_grad():
                reference_NT = self._reference.log_probs(*given)
        is_whole, is_hidden = "distributions" in needs, "hidden" in needs
        return TokenRecord(
            log_probs_NT=outputs.log_probs_NT,
            old_log_probs_NT=outputs.log_probs_NT.detach() if old_NT is None else old_NT,
            advantages_N=advantages_N,
            mask_NT=mask_NT,
            group_ids_N=rollouts.group_N,
            rollout_log_probs_NT=rollouts.log_probs_NT,
            reference_log_probs_NT=reference_NT,
            distribution_NTV=outputs.distribution_NTV if is_whole else None,
            rollout_distribution_NTV=rollouts.distribution_NTV if is_whole else None,
            tokens_NT=rollouts.tokens_NT if is_whole or is_hidden else None,
            uniforms_NT=rollouts.uniforms_NT,
            hidden_NTH=outputs.hidden_NTH.detach() if is_hidden else None,
            prompt_hidden_NH=self.lab.prompt_hidden(problems)[rollouts.group_N] if "prompt_hidden" in needs else None,
            head=self._head() if "head_moments" in needs else None,
        )

    def _head(self) -> HeadMoments:
        weight_VH = self.lab.policy.head.weight
        state, group = self.optimizer.state.get(weight_VH, {}), self.optimizer.param_groups[0]
        return HeadMoments(
            weight_VH=weight_VH.detach(),
            first_VH=state.get("exp_avg", torch.zeros_like(weight_VH)).clone(),
            second_VH=state.get("exp_avg_sq", torch.zeros_like(weight_VH)).clone(),
            steps=int(state["step"]) if "step" in state else 0,
            learning_rate=group["lr"],
            betas=group["betas"],
            epsilon=group["eps"],
        )

    def state_dict(self) -> State:
        """Optimiser moments, and what is trained beside the policy."""
        module = self.objective.module
        return {
            "optimizer": optimizer_state(self.optimizer),
            **({} if module is None else {"objective": parameters_state(module)}),
        }

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave."""
        load_optimizer(self.optimizer, state["optimizer"])
        if self.objective.module is not None:
            load_parameters(self.objective.module, state["objective"])
