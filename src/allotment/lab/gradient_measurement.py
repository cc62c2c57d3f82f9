"""The moments of prompts' gradients, measured from many rollouts of the lab's policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from allotment.lab.config import GradientVarianceConfig
from allotment.lab.generation import Lab, seeded_generator
from allotment.lab.gradient_moments import BaselineMoments, Moments
from allotment.lab.scores import random_directions, scores
from allotment.tasks.mixture import Problem
from allotment.types import FloatArray


@dataclass(frozen=True, eq=False)
class Measured:
    """Prompts with the moments of both halves of their rollouts: who plans by one half is judged by the other."""

    ids: tuple[str, ...]
    """[Q] the prompts."""
    halves: tuple[Moments, Moments]
    baseline_halves: tuple[BaselineMoments, BaselineMoments]
    gradients_QD: npt.NDArray[np.float32]
    """[Q, D] estimate of the gradient of each success probability, from both halves."""

    @classmethod
    def joined(cls, parts: Sequence[Measured]) -> Measured:
        """The prompts of all parts."""
        first, second = (Moments.joined([part.halves[h] for part in parts]) for h in (0, 1))
        one, other = (BaselineMoments.joined([part.baseline_halves[h] for part in parts]) for h in (0, 1))
        ids = tuple(i for part in parts for i in part.ids)
        return cls(ids, (first, second), (one, other), np.concatenate([part.gradients_QD for part in parts]))

    def products(self) -> FloatArray:
        """[Q, Q] inner products of the prompts' gradients; unbiased, on the diagonal too."""
        products_QQ = (self.gradients_QD @ self.gradients_QD.T).astype(np.float64)
        np.fill_diagonal(products_QQ, self.baseline_halves[0].squared_gradient)
        return products_QQ


def measured(lab: Lab, problems: Sequence[Problem], config: GradientVarianceConfig, batch: int) -> Measured:
    """The moments of a batch of problems, from ``config.rollouts`` rollouts each."""
    directions_PD = random_directions(lab, config.directions, config.seed, 2) if config.directions else None
    p_Q = lab.success_probability(problems)
    parts = []
    for row, (rewards_N, scores_NP) in enumerate(_rollouts(lab, problems, config, batch)):
        scores_ND = scores_NP if directions_PD is None else scores_NP @ directions_PD
        parts.append(of_prompt(problems[row].id, float(p_Q[row]), rewards_N, scores_ND))
    return Measured.joined(parts)


def _rollouts(
    lab: Lab, problems: Sequence[Problem], config: GradientVarianceConfig, batch: int
) -> Iterator[tuple[FloatArray, Tensor]]:
    """Rewards [N] and scores [N, P] of each problem."""
    for first in range(0, len(problems), 16):  # bounds the memory
        part = problems[first : first + 16]
        counts = np.full(len(part), config.rollouts)
        rollouts = lab.rollouts(part, counts, seeded_generator(config.seed, 1, batch, first))
        for row, problem in enumerate(part):
            own = rollouts.of_prompt(row)
            yield own.rewards_N, scores(lab, problem, own)


def of_prompt(prompt: str, probability: float, rewards_N: FloatArray, scores_ND: Tensor) -> Measured:
    """The moments of one prompt from the rewards and scores of its rollouts."""
    middle = len(rewards_N) // 2
    parts = [(rewards_N[part], scores_ND[part]) for part in (slice(None, middle), slice(middle, None))]
    first, second = (Moments.of(r_N[None], s_ND[None].numpy()) for r_N, s_ND in parts)
    gradients = [torch.from_numpy(r_N - probability).to(s_ND.dtype) @ s_ND / len(r_N) for r_N, s_ND in parts]
    squared = float(gradients[0].double() @ gradients[1].double())  # of two halves, so that noise adds nothing
    one, other = (BaselineMoments.of(probability, r_N, s_ND.numpy(), squared) for r_N, s_ND in parts)
    mean_1D = ((gradients[0] + gradients[1]) / 2).float()[None].numpy()
    return Measured((prompt,), (first, second), (one, other), mean_1D)
