"""The baseline of least variance, learnt as a function of the belief (docs/joint.md)."""

from __future__ import annotations

import numpy as np

from allotment.state import State, array_from_state, check_state
from allotment.types import FloatArray, IntArray, Posterior

FORGETTING = 0.98
"""Factor by which what was seen counts less with every step."""
_TERMS = 4
_PRIOR = 8.0
"""Rollouts that the belief itself, c(m) = m, weighs for each coefficient."""


class ScoreWeighted:
    """c(m), a cubic in the believed success probability m, in place of m as the baseline.

    One rollout's noise is least against ``E[r |s|^2] / E[|s|^2]``: where a failure's score is larger than a success's,
    that is below p. It is learnt by least squares of success on m, each rollout weighted by the squared size of its
    sketched score. What is learnt is of earlier steps, so the estimate stays unbiased.

    Source: the optimal baseline (Greensmith et al. 2004; OBLR-PO, arXiv 2511.23310); as a function of a belief, ours.
    """

    KIND = "ScoreWeighted"

    def __init__(self) -> None:
        self._squares_44 = np.zeros((_TERMS, _TERMS))
        self._products_4 = np.zeros(_TERMS)

    def predict(self, probability: FloatArray) -> FloatArray:
        """[Q] c(m) of each m, in [0, 1]; m while nothing is known."""
        own_44 = self._squares_44 + _PRIOR * np.eye(_TERMS)
        change_4 = np.linalg.solve(own_44, self._products_4)
        return np.clip(probability + _powers(probability) @ change_4, 0.0, 1.0)

    def observe(self, posterior: Posterior, successes_N: FloatArray, rows_N: IntArray, scores_NK: FloatArray) -> None:
        """Learn from N rollouts; arguments as those of ``GradientSize.observe``."""
        size_N = (scores_NK**2).sum(axis=1)
        if not size_N.any():
            return
        m_N = posterior.success_probability()[rows_N]
        order = np.lexsort((size_N, successes_N, m_N))  # the last bits of a sum depend on its order
        weight_N, m_N = (size_N / size_N.mean())[order], m_N[order]
        powers_N4 = _powers(m_N)
        weighted_N4 = weight_N[:, None] * powers_N4
        self._squares_44 = FORGETTING * self._squares_44 + weighted_N4.T @ powers_N4
        self._products_4 = FORGETTING * self._products_4 + weighted_N4.T @ (successes_N[order] - m_N)

    def state_dict(self) -> State:
        """The sums."""
        return {"kind": self.KIND, "squares": self._squares_44.copy(), "products": self._products_4.copy()}

    def load_state_dict(self, state: State) -> None:
        """See :class:`~allotment.state.Stateful`."""
        check_state(state, self.KIND, ("squares", "products"))
        squares_44 = array_from_state(state, "squares", (_TERMS, _TERMS))
        self._products_4, self._squares_44 = array_from_state(state, "products", (_TERMS,)), squares_44


def _powers(probability: FloatArray) -> FloatArray:
    """[Q, 4] of 2 m - 1, in [-1, 1]."""
    return np.vander(2.0 * probability - 1.0, _TERMS, increasing=True)
