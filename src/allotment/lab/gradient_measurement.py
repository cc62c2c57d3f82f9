"""The moments of prompts' gradients, measured from many rollouts of the lab's policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from allotment.lab.config import GradientVarianceConfig
from allotment.lab.generation import Lab, Rollouts, seeded_generator
from allotment.lab.gradient_moments import BaselineMoments, Moments
from allotment.lab.layered_scores import LayeredScores
from allotment.lab.recurrent_policy import RecurrentPolicy
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
    is_layered = isinstance(lab.policy, RecurrentPolicy) and directions_PD is None
    parts = []
    for row, own in enumerate(_rollouts(lab, problems, config, batch)):
        problem, p = problems[row], float(p_Q[row])
        if is_layered:
            parts.append(of_layers(problem.id, p, own.rewards_N, LayeredScores.of(lab, problem, own)))
            continue
        scores_NP = scores(lab, problem, own)
        scores_ND = scores_NP if directions_PD is None else scores_NP @ directions_PD
        parts.append(of_prompt(problem.id, p, own.rewards_N, scores_ND))
    return Measured.joined(parts)


def _rollouts(lab: Lab, problems: Sequence[Problem], config: GradientVarianceConfig, batch: int) -> Iterator[Rollouts]:
    """Those of each problem."""
    for first in range(0, len(problems), 16):  # bounds the memory
        part = problems[first : first + 16]
        counts = np.full(len(part), config.rollouts)
        rollouts = lab.rollouts(part, counts, seeded_generator(config.seed, 1, batch, first))
        yield from (rollouts.of_prompt(row) for row in range(len(part)))


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


def of_layers(prompt: str, probability: float, rewards_N: FloatArray, scores: LayeredScores) -> Measured:
    """The same in all P parameters, from scores that are not written out."""
    middle = len(rewards_N) // 2
    halves = (slice(None, middle), slice(middle, None))
    weights_KN = np.zeros((4, len(rewards_N)))
    for half, part in enumerate(halves):
        r_N = rewards_N[part]
        weights_KN[half, part] = 1 / len(r_N)
        weights_KN[2 + half, part] = (r_N - r_N.mean()) / len(r_N)
    summed_KP = scores.sums(torch.from_numpy(weights_KN).float())
    means_2P, covariances_2P = summed_KP[:2], summed_KP[2:]
    squares_N, beside_N2 = scores.squares().double().numpy(), scores.products(means_2P).double().numpy()
    moments, gradients = [], []
    for half, part in enumerate(halves):
        r_N = rewards_N[part] - rewards_N[part].mean()
        about_N = squares_N[part] - 2 * beside_N2[part, half] + float(means_2P[half].double().square().sum())
        sizes = ((r_N**2 * about_N).mean(), float(covariances_2P[half].double().square().sum()))
        per_direction = (*sizes, (r_N**2).mean() * about_N.mean())
        moments.append(Moments(*(np.array([value / summed_KP.shape[1]]) for value in per_direction)))
        gradients.append(covariances_2P[half] + float(rewards_N[part].mean() - probability) * means_2P[half])
    squared = float(gradients[0].double() @ gradients[1].double())
    one, other = (BaselineMoments.of_squares(probability, rewards_N[p], squares_N[p], squared) for p in halves)
    mean_1P = ((gradients[0] + gradients[1]) / 2)[None].numpy()
    return Measured((prompt,), (moments[0], moments[1]), (one, other), mean_1P)
