"""Prices beside a weight times a curve: the rest of a step after a first look, gradient moments, a table.

**A second look** (docs/second_look.md). A prompt has m rollouts from round 0 and gets k in round 1, where k may depend
on what came back. The estimator with weights fixed beforehand, as if k were its expected value e, is unbiased; its
variance given round 0 falls with k as ``A / k + B / (k (k - 1))``, under the model of VIP (scores independent of
rewards).

**Gradient moments**: no assumption that score and reward are independent. The RLOO gradient of a prompt along one
direction is the sample covariance of rewards r and scores s. From n rollouts its variance is
``A / n + B / (n (n - 1))`` with ``A = E[(r - p)^2 (s - E s)^2] - Cov(r, s)^2`` and
``B = Var(r) Var(s) + Cov(r, s)^2`` (the variance of a sample covariance; Kendall and Stuart, vol. 1, ch. 13). For 0/1
rewards with success probability p, score variances V1 among successes and V0 among failures, and D2 the squared gap of
their means::

    A = p (1 - p) ((1 - p) V1 + p V0 + (1 - 2 p)^2 D2)
    B = p (1 - p) (p V1 + (1 - p) V0 + 2 p (1 - p) D2)

With V1 = V0 = V and D2 = 0 this is ``p (1 - p) V / (n - 1)``: VIP, proposition 4.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from allotment.errors import InvalidInputError
from allotment.prediction.posteriors import ScoreMoments
from allotment.types import FloatArray, IntArray, Posterior


@dataclass(frozen=True, eq=False)
class SecondLookPrice:
    """``f_q(k) = A_q / k + B_q / (k (k - 1))``, a :class:`~allotment.pricing.Price`; infinite at k = 1 where B > 0."""

    first: FloatArray
    """[Q] A, >= 0; unit: variance of a reward."""
    second: FloatArray
    """[Q] B, >= 0; same unit."""
    minimum_count: int = 1
    """One rollout of the second round."""

    @classmethod
    def of(cls, posterior: Posterior, successes: IntArray, trials: IntArray, expected: IntArray) -> SecondLookPrice:
        """The price after round 0, of which ``successes`` [Q] of m = ``trials`` [Q] came back.

        ``posterior`` includes round 0; the estimator's weights are made for e = ``expected`` [Q] rollouts, >= 1.
        """
        m_Q, e_Q = trials.astype(np.float64), expected.astype(np.float64)
        total_Q, others_Q = m_Q + e_Q, np.maximum(m_Q + e_Q - 1.0, 1.0)
        variance_Q, p_Q = posterior.expected_variance(), posterior.success_probability()
        unsure_Q = posterior.standard_deviation() ** 2
        rate_Q = np.where(m_Q > 0, successes / np.maximum(m_Q, 1.0), p_Q)
        error_Q = (rate_Q - p_Q) ** 2 + unsure_Q  # E[(rate - p)^2] of the baseline that round 0 gives round 1
        weight_Q, from_first_Q = e_Q / total_Q, m_Q / others_Q
        first_Q = weight_Q**2 * (variance_Q * (1.0 + m_Q / others_Q**2) + from_first_Q**2 * error_Q)
        second_Q = (weight_Q * (e_Q - 1.0) / others_Q) ** 2 * variance_Q
        return cls(first_Q, second_Q)

    def __len__(self) -> int:
        return len(self.first)

    def gains(self, grid_K: IntArray) -> FloatArray:
        """``f_q(k) - f_q(k + 1) = A / (k (k + 1)) + 2 B / ((k - 1) k (k + 1))``, [Q, K]."""
        k_K = grid_K.astype(np.float64)
        return self.first[:, None] / (k_K * (k_K + 1.0)) + _pairs(2.0 * self.second[:, None], (k_K**2 - 1.0) * k_K)

    def cost(self, counts_Q: IntArray) -> FloatArray:
        """``f_q(k_q)``, [Q]."""
        k_Q = counts_Q.astype(np.float64)
        return self.first / k_Q + _pairs(self.second, k_Q * (k_Q - 1.0))


def _pairs(amount: FloatArray, pairs: FloatArray) -> FloatArray:
    """``amount / pairs``, 0 / 0 being 0 and anything else over 0 infinite."""
    amount, pairs = np.broadcast_arrays(amount, pairs)
    return np.divide(amount, pairs, out=np.where(amount > 0.0, np.inf, 0.0), where=pairs > 0.0)


def gradient_moments_price(posterior: Posterior, moments: ScoreMoments) -> SecondLookPrice:
    """Expected variance of each prompt's RLOO gradient, given independent beliefs about p and about the scores."""
    pq_Q, ppq_Q, pqq_Q, ppqq_Q = (posterior.power_moment(i, j) for i, j in ((1, 1), (2, 1), (1, 2), (2, 2)))
    failure_Q, success_Q = moments.within_Q2.T
    uneven_Q = np.maximum(pq_Q - 4.0 * ppqq_Q, 0.0)  # E[p q (1 - 2 p)^2]
    first_Q = pqq_Q * success_Q + ppq_Q * failure_Q + uneven_Q * moments.gap_Q
    second_Q = ppq_Q * success_Q + pqq_Q * failure_Q + 2.0 * ppqq_Q * moments.gap_Q
    return SecondLookPrice(first_Q, second_Q, minimum_count=2)


@dataclass(frozen=True)
class TablePrice:
    """``f_q(n) = costs[q, n - minimum_count]``: any convex falling function, tabulated.

    Tables from differences carry rounding noise; :func:`allotment.allocation.allocate_exact` forgives increases of a
    gain up to 1e-12 of the largest gain of its prompt, and refuses larger ones.
    """

    costs: FloatArray
    """[Q, K] cost of n = ``minimum_count``, ``minimum_count`` + 1, ... rollouts."""
    minimum_count: int
    """The n of the first column."""

    def __post_init__(self) -> None:
        costs_QK = np.asarray(self.costs, dtype=np.float64)
        if costs_QK.ndim != 2:
            raise InvalidInputError(
                "a price table has one row per prompt and one column per count",
                got=f"an array of shape {costs_QK.shape}",
                allowed="[Q, K]",
                fix="tabulate f_q(n) for every n from `minimum_count` to the upper bound",
            )
        object.__setattr__(self, "costs", costs_QK)

    def __len__(self) -> int:
        return len(self.costs)

    def gains(self, grid_K: IntArray) -> FloatArray:
        """``f_q(n) - f_q(n + 1)``, [Q, K]; InvalidInputError if the table ends before the largest n + 1 of the grid."""
        columns_K = self._columns(grid_K, last=int(grid_K.max(initial=self.minimum_count - 1)) + 1)
        return self.costs[:, columns_K] - self.costs[:, columns_K + 1]

    def cost(self, counts_Q: IntArray) -> FloatArray:
        """``f_q(n_q)``, [Q]; InvalidInputError if a count is outside the table."""
        columns_Q = self._columns(counts_Q, last=int(counts_Q.max()))
        return self.costs[np.arange(len(self)), columns_Q]

    def _columns(self, counts: IntArray, *, last: int) -> IntArray:
        end = self.minimum_count + self.costs.shape[1] - 1
        first = int(counts.min(initial=last))
        if last > end or first < self.minimum_count:
            raise InvalidInputError(
                "the price table does not reach the counts asked for",
                got=f"counts {first} to {last}",
                allowed=f"{self.minimum_count} to {end}, the columns of the table",
                fix="tabulate up to the upper bound, or lower the upper bound",
            )
        return counts - self.minimum_count
