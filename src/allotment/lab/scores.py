"""The score of a rollout, the gradient of its log-probability: along given directions, and in inner products.

Also the sketches of it that a planner is told: exact derivatives along random directions of the parameter space, which
cost a forward-mode pass each, and the part that lies in the output matrix, which costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap

from allotment.lab.generation import Lab, Rollouts, seeded_generator
from allotment.learning import SketchDirections
from allotment.tasks.mixture import Problem
from allotment.types import FloatArray

Direction = dict[str, Tensor]
Sketch = Callable[[Sequence[Problem], Rollouts], FloatArray]
"""[N, K] score sketch of rollouts of these problems."""


def random_direction(lab: Lab, *key: int) -> Direction:
    """A standard normal direction of the parameter space, a function of ``key``."""
    generator = seeded_generator(*key)
    return {name: torch.randn(p.shape, generator=generator) for name, p in lab.policy.named_parameters()}


def directional_scores(
    lab: Lab, problems: Sequence[Problem], rollouts: Rollouts, directions: Sequence[Direction]
) -> FloatArray:
    """[N, D] derivative of each rollout's log-probability along each direction, by forward-mode differentiation."""

    def log_prob(parameters: dict[str, Tensor]) -> Any:
        return _log_prob(lab, parameters, problems, rollouts.group_N, rollouts.tokens_NT, rollouts.mask_NT)

    with torch.no_grad():
        columns = [jvp(log_prob, (_parameters(lab),), (direction,))[1] for direction in directions]
    return np.asarray(torch.stack(columns, dim=1).double().numpy())


def score_products(lab: Lab, problem: Problem, rollouts: Rollouts) -> FloatArray:
    """[N, N] inner products of the gradients of the log-probabilities of N rollouts of one problem.

    Their means over random directions: ``E[(d . g_i) (d . g_j)] = g_i . g_j`` for a standard normal direction d.
    """
    alone = torch.zeros(1, dtype=torch.long)

    def log_prob(parameters: dict[str, Tensor], tokens_T: Tensor, mask_T: Tensor) -> Any:
        return _log_prob(lab, parameters, [problem], alone, tokens_T[None], mask_T[None])[0]

    gradients = vmap(grad(log_prob), in_dims=(None, 0, 0), chunk_size=64)  # bounds the memory
    flat = [g.flatten(1) for g in gradients(_parameters(lab), rollouts.tokens_NT, rollouts.mask_NT).values()]
    return np.asarray(sum(g @ g.T for g in flat).double().numpy())


def sketch_named(kind: Literal["exact", "last-layer"], lab: Lab, sketches: int, seed: int) -> Sketch:
    """A sketch of ``sketches`` numbers along directions of this seed, of the policy as it is when it is used."""
    if kind == "exact":
        directions = [random_direction(lab, seed, 5, k) for k in range(sketches)]
        return lambda problems, rollouts: directional_scores(lab, problems, rollouts, directions)
    size = lab.policy.size
    pairs = SketchDirections.random(sketches, size.vocabulary, size.width, seed=seed)
    return lambda problems, rollouts: lab.last_layer_scores(problems, rollouts, pairs)


class _LogProb(torch.nn.Module):
    """Rollout log-probabilities as a module, for ``functional_call``."""

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self.policy = lab.policy
        self.lab = lab

    def forward(self, problems: Sequence[Problem], group_N: Tensor, tokens_NT: Tensor, mask_NT: Tensor) -> Tensor:
        return self.lab.log_probs(problems, group_N, tokens_NT, mask_NT).sum(1)


def _log_prob(lab: Lab, parameters: dict[str, Tensor], *rollouts: Any) -> Any:
    """[N] log-probability of each rollout, as a function of the parameters."""
    return functional_call(_LogProb(lab), {f"policy.{name}": p for name, p in parameters.items()}, rollouts)


def _parameters(lab: Lab) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in lab.policy.named_parameters()}
