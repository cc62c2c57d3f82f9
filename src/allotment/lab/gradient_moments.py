"""How much the estimate of a prompt's gradient varies, from moments of its rewards and scores.

A rollout has a reward r, 0 or 1, and a score s, the gradient of its log-probability, whose mean is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from allotment.types import FloatArray, IntArray


class _Columns:
    """Arrays of which each has an entry for every prompt."""

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The prompts of all parts."""
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def take(self, rows: IntArray) -> Self:
        """Some of the prompts."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Moments(_Columns):
    """Central moments of (reward, score) per prompt, averaged over directions of the score."""

    mu22: FloatArray
    """[Q] ``E[(r - E r)^2 (s - E s)^2]``."""
    squared_covariance: FloatArray
    """[Q] ``Cov(r, s)^2``: the squared gradient."""
    variances: FloatArray
    """[Q] ``Var(r) Var(s)``."""

    @classmethod
    def of(cls, rewards_QN: FloatArray, scores_QND: npt.NDArray[np.floating[Any]]) -> Moments:
        """Sample moments from N rollouts of each of Q prompts along D directions."""
        r_QN = rewards_QN - rewards_QN.mean(1, keepdims=True)
        s_QND = scores_QND - scores_QND.mean(1, keepdims=True)
        squares_QN = np.einsum("qnd,qnd->qn", s_QND, s_QND) / s_QND.shape[2]
        covariance_QD = np.einsum("qn,qnd->qd", r_QN, s_QND) / r_QN.shape[1]
        return cls((r_QN**2 * squares_QN).mean(1), (covariance_QD**2).mean(1), (r_QN**2).mean(1) * squares_QN.mean(1))

    def variance(self, counts: IntArray) -> FloatArray:
        """Variance of the sample covariance of n independent pairs, for counts that broadcast against [Q].

        ``mu22 / n - (n - 2) / (n (n - 1)) Cov^2 + Var(r) Var(s) / (n (n - 1))``. Where r and s are independent this is
        ``Var(r) Var(s) / (n - 1)``: the model of VIP (proposition 4.3).
        """
        n = counts.astype(np.float64)
        return self.mu22 / n + (self.variances - (n - 2) * self.squared_covariance) / (n * (n - 1))


@dataclass(frozen=True)
class BaselineMoments(_Columns):
    """What the variance takes with a baseline that mixes a belief and the other rollouts; unbiased estimates."""

    probability: FloatArray
    """[Q] p, the success probability."""
    successes: FloatArray
    """[Q] ``E[r |s|^2]``."""
    failures: FloatArray
    """[Q] ``E[(1 - r) |s|^2]``."""
    squared_gradient: FloatArray
    """[Q] ``|g|^2``, ``g = E[(r - p) s]``; below 0 where noise has it so."""

    @classmethod
    def of(
        cls, probability: float, rewards_N: FloatArray, scores_ND: npt.NDArray[np.floating[Any]], squared: float
    ) -> BaselineMoments:
        """Of one prompt, from N of its rollouts and its squared gradient."""
        return cls.of_squares(probability, rewards_N, np.einsum("nd,nd->n", scores_ND, scores_ND), squared)

    @classmethod
    def of_squares(cls, probability: float, rewards_N: FloatArray, squares_N: FloatArray, squared: float) -> Self:
        """The same from the squared norms [N] of the scores."""
        squares_N = squares_N.astype(np.float64)
        sizes = (np.mean(rewards_N * squares_N), np.mean((1 - rewards_N) * squares_N))
        return cls(*(np.array([value]) for value in (probability, *sizes, squared)))

    def variance(self, counts: IntArray, baselines: FloatArray | None, shares: FloatArray | None) -> FloatArray:
        """[Q] variance of the mean of ``(r_i - w m - (1 - w) mean_{j != i} r_j) s_i`` over n rollouts (trace).

        ``(1 / n) (E[(r - b)^2 |s|^2] - |g|^2 + (1 - w)^2 (p (1 - p) E|s|^2 + |g|^2) / (n - 1))``, ``b = w m + (1 - w)
        p``. The cross term of the two parts is zero because scores have mean zero.

        Args:
            counts: [Q] n, from 1; from 2 where there are no baselines.
            baselines: [Q] m; None for w = 0, which is RLOO.
            shares: [Q] w; 1 if None, and for a group of one.
        """
        p_Q, n_Q = self.probability, counts.astype(np.float64)
        m_Q, w_Q = (p_Q, np.zeros_like(p_Q)) if baselines is None else (baselines, shares)
        w_Q = np.ones_like(p_Q) if w_Q is None else w_Q
        w_Q = w_Q if baselines is None else np.where(counts == 1, 1.0, w_Q)
        b_Q = w_Q * m_Q + (1 - w_Q) * p_Q
        own_Q = (1 - b_Q) ** 2 * self.successes + b_Q**2 * self.failures - self.squared_gradient
        others_Q = p_Q * (1 - p_Q) * (self.successes + self.failures) + self.squared_gradient
        left_Q = np.divide((1 - w_Q) ** 2 * others_Q, n_Q - 1, out=np.zeros_like(p_Q), where=w_Q < 1)
        return np.asarray((own_Q + left_Q) / n_Q, dtype=np.float64)
