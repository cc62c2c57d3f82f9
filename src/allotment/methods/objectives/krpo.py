"""KRPO: a Kalman filter over the rewards of a group as its baseline; the filter sees a reward before it is compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from allotment.learning.advantages import rloo_advantages
from allotment.learning.groups import Groups, group
from allotment.learning.objective import ObjectiveEntry, ObjectiveRow, check_settings
from allotment.types import FloatArray


@dataclass(frozen=True)
class KRPO:
    """Kalman filter enhanced GRPO (arXiv 2505.07527): ``(r_i - x_i) / (sqrt(P_i) + epsilon)``.

    x_i and P_i are mean and variance of the filter after rewards 1 to i of the group, in the order of the rows; every
    group starts anew. Biased: x_i holds the own reward with the gain K_i, so ``r_i - x_i = (1 - K_i) (r_i - x_{i-1})``.
    K and P depend on places alone, so a prompt with n rollouts weighs :meth:`weight` (n), whatever its p: 8.4, 14.9 and
    23.2 at n = 4, 8 and 16, roughly sqrt(n), of which the first rollout has next to nothing. At equal counts that is a
    factor of the learning rate; a planner that moves rollouts moves the objective with them. And as the baseline of a
    rollout is made of those before it, an order that depends on rewards or lengths (who came back first) biases more.

    Default settings are those of the released code.
    """

    process: float = 1e-5
    """Variance that the mean reward is taken to gain from one rollout to the next."""
    measurement: float = 1e-2
    """Variance of a reward about its mean, as the filter has it; that of a 0/1 reward is up to 1/4."""
    mean: float = 0.0
    variance: float = 1.0
    """Mean and variance of the mean reward before the first rollout."""
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        positive = {name: (0 < getattr(self, name) < math.inf, "> 0") for name in ("measurement", "variance")}
        not_negative = {name: (0 <= getattr(self, name) < math.inf, ">= 0") for name in ("process", "epsilon")}
        check_settings("krpo", self, **positive, **not_negative, mean=(math.isfinite(self.mean), "a finite number"))

    def advantages(self, rewards: Mapping[str, Tensor], group_ids_N: Tensor, lengths_N: Tensor | None = None) -> Tensor:
        """[N] advantages of the sum of the named rewards [N] each, within groups [N]; no gradient.

        Raises:
            InvalidInputError: a reward is not finite, or shapes do not fit.
        """
        total_N = torch.stack(list(rewards.values())).sum(0)
        result_N = torch.zeros_like(rloo_advantages(total_N, group_ids_N))  # which checks
        groups = group(group_ids_N)
        places_N = _places(groups)
        gains_I, scales_I = self.filter(int(groups.sizes_Q.max()))
        x_Q = total_N.new_full((len(groups),), self.mean, dtype=torch.float64)
        for place, (gain, scale) in enumerate(zip(gains_I.tolist(), scales_I.tolist(), strict=True)):
            rows = (places_N == place).nonzero()[:, 0]
            index, r = groups.index_N[rows], total_N.detach()[rows].double()
            x_Q[index] += gain * (r - x_Q[index])
            result_N[rows] = ((r - x_Q[index]) / scale).to(result_N)
        return result_N

    def filter(self, rollouts: int) -> tuple[FloatArray, FloatArray]:
        """[I] the gain at each place of a group, and what advantages are divided by."""
        gains_I, scales_I, variance = np.empty(rollouts), np.empty(rollouts), self.variance
        for place in range(rollouts):
            predicted = variance + self.process
            gains_I[place] = predicted / (predicted + self.measurement)
            variance = (1 - gains_I[place]) * predicted
            scales_I[place] = math.sqrt(variance) + self.epsilon
        return gains_I, scales_I

    def weight(self, rollouts: int) -> float:
        """The expected step of a prompt with so many rollouts, relative to RLOO's."""
        gains_I, scales_I = self.filter(rollouts)
        return float(((1 - gains_I) / scales_I).mean())


def _places(groups: Groups) -> Tensor:
    """[N] the place of each rollout in its group, in the order of the rows."""
    order_N = torch.argsort(groups.index_N, stable=True)
    starts_Q = torch.cumsum(groups.sizes_Q, 0) - groups.sizes_Q
    places_N = torch.empty_like(order_N)
    places_N[order_N] = torch.arange(len(order_N), device=order_N.device) - starts_Q[groups.index_N[order_N]]
    return places_N


ENTRY = ObjectiveEntry(
    "advantages",
    KRPO,
    row=ObjectiveRow(
        "advantage: reward less a Kalman filter's mean of the group so far, the own reward among it, over its standard "
        "deviation: biased, a prompt weighs about `sqrt(n)`",
        "none; at equal counts a factor of `rloo`, with more noise",
        "arXiv 2505.07527; code billhhh/KRPO_LLMs_RL",
        "none; the order of a group is that of its rows",
    ),
)
