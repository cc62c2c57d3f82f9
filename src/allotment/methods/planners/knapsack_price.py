"""The value of a group in Knapsack RL (arXiv 2509.25849): whether it has a gradient, and what that gradient is worth.

``V(N, p) = (1 - p^N - (1 - p)^N) p (1 - p)^2``: the probability that N rewards are not all equal, times the paper's
information gain. The next rollout is worth

    V(N + 1) - V(N) = p (1 - p)^2 (p^N (1 - p) + (1 - p)^N p),

a sum of two geometric sequences that fall with N. So V is concave from N = 1 on, whatever p, and the largest gains are
the optimum of the knapsack. (From 0 to 1 it is not: neither no rollout nor a single one can have a gradient.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from allotment.types import FloatArray, IntArray


@dataclass(frozen=True)
class KnapsackPrice:
    """What is missing to the value of an endless group: a :class:`~allotment.pricing.Price`."""

    probability: FloatArray
    """[Q] success probability, in [0, 1]."""
    minimum_count: ClassVar[int] = 1
    """From there on V is concave."""

    def __len__(self) -> int:
        return len(self.probability)

    def information(self) -> FloatArray:
        """[Q] ``p (1 - p)^2``; largest at p = 1/3, 0 at 0 and 1."""
        return self.probability * (1 - self.probability) ** 2

    def gains(self, grid_K: IntArray) -> FloatArray:
        """``V(n + 1) - V(n)``, [Q, K]."""
        p_Q1 = self.probability[:, None]
        return self.information()[:, None] * (p_Q1**grid_K * (1 - p_Q1) + (1 - p_Q1) ** grid_K * p_Q1)

    def cost(self, counts_Q: IntArray) -> FloatArray:
        """``p (1 - p)^2 - V(n)``, [Q]."""
        return self.information() * (self.probability**counts_Q + (1 - self.probability) ** counts_Q)
