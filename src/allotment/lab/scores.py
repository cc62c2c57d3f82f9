"""The score of a rollout, the gradient of its log-probability: whole, and in sketches that a planner can be told.

A sketch is exact, the derivatives along random directions of the parameter space, which takes each rollout's gradient;
or of the part that lies in one matrix: the output matrix, which costs next to nothing, or one of the last block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from allotment.lab.config import SketchName
from allotment.lab.generation import Lab, Rollouts, seeded_generator
from allotment.learning import SketchDirections
from allotment.tasks.mixture import Problem
from allotment.types import FloatArray

Sketch = Callable[[Sequence[Problem], Rollouts], FloatArray]
"""[N, K] score sketch of rollouts of these problems."""


def scores(lab: Lab, problem: Problem, rollouts: Rollouts) -> Tensor:
    """[N, P] gradient of the log-probability of N rollouts of one problem in all P parameters."""
    alone, module = torch.zeros(1, dtype=torch.long), _LogProb(lab)

    def log_prob(parameters: dict[str, Tensor], tokens_T: Tensor, mask_T: Tensor) -> Any:
        return functional_call(module, parameters, ([problem], alone, tokens_T[None], mask_T[None]))[0]

    parameters = {f"policy.{name}": p.detach() for name, p in lab.policy.named_parameters()}
    gradients = vmap(grad(log_prob), in_dims=(None, 0, 0), chunk_size=64)  # bounds the memory
    return torch.cat(
        [g.flatten(1) for g in gradients(parameters, rollouts.tokens_NT, rollouts.mask_NT).values()], dim=1
    )


def random_directions(lab: Lab, count: int, *key: int) -> Tensor:
    """[P, count] standard normal directions of the parameter space, a function of ``key``."""
    size = sum(p.numel() for p in lab.policy.parameters())
    return torch.randn(size, count, generator=seeded_generator(*key))


def directional_scores(lab: Lab, problems: Sequence[Problem], rollouts: Rollouts, directions_PD: Tensor) -> FloatArray:
    """[N, D] derivative of each rollout's log-probability along each direction."""
    scores_ND = np.empty((len(rollouts), directions_PD.shape[1]))
    for row, problem in enumerate(problems):
        own = rollouts.of_prompt(row)
        if len(own):
            scores_ND[(rollouts.group_N == row).numpy()] = (scores(lab, problem, own) @ directions_PD).numpy()
    return scores_ND


def sketch_named(kind: SketchName, lab: Lab, sketches: int, seed: int) -> Sketch:
    """A sketch of ``sketches`` numbers along directions of this seed, of the policy as it is when it is used."""
    if kind == "exact":
        directions_PK = random_directions(lab, sketches, seed, 5)
        return lambda problems, rollouts: directional_scores(lab, problems, rollouts, directions_PK)
    layer = lab.policy.head if kind == "last-layer" else lab.policy.sketched
    made = lab.last_layer_scores if kind == "last-layer" else lab.last_block_scores
    pairs = SketchDirections.random(sketches, layer.out_features, layer.in_features, seed=seed)
    return lambda problems, rollouts: made(problems, rollouts, pairs)


class _LogProb(torch.nn.Module):
    """Rollout log-probabilities as a module, for ``functional_call``."""

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self.policy = lab.policy
        self.lab = lab

    def forward(self, problems: Sequence[Problem], group_N: Tensor, tokens_NT: Tensor, mask_NT: Tensor) -> Tensor:
        return self.lab.log_probs(problems, group_N, tokens_NT, mask_NT).sum(1)
