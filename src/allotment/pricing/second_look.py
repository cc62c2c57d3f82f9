"""What the second round's rollouts of a prompt are worth, after the first round (docs/second_look.md).

A prompt has m rollouts from round 0 and gets k in round 1, where k may depend on what came back. The estimator with
weights fixed beforehand, as if k were its expected value e, is unbiased; its variance given round 0 falls with k as
``A / k + B / (k (k - 1))``, under the model of VIP (scores independent of rewards).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
        """The price after round 0.

        Args:
            posterior: belief about the Q prompts, round 0 included.
            successes: [Q] of round 0.
            trials: [Q] m, rollouts of round 0 that came back.
            expected: [Q] e, the rollouts of round 1 that the estimator's weights are made for, >= 1.
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
