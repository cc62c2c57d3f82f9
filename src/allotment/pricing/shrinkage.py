"""The price of the shrinkage baseline: a belief about the prompt, mixed with its other rollouts (docs/joint.md).

A prompt has success probability p; before the step it is believed to have mean m and variance v, and its reward the
expected variance ``a = E[p (1 - p)]``. A rollout of n is compared with ``w m + (1 - w) (mean of the other n - 1)``.
That is unbiased for every n >= 1, and the variance of the prompt's gradient, in units of the size of its scores, is::

    V(n) = (1 / n) (a + w^2 v + (1 - w)^2 a / (n - 1))      least at  w = a / (a + (n - 1) v)
    V(n) = (1 / n) (a + a v / (a + (n - 1) v))

v to infinity gives ``a / (n - 1)``, RLOO; v = 0 gives ``a / n``; n = 1 gives ``a + v``. Rewards that are not 0/1 have
the same price, with the mean and the variance of the belief about their mean, and their expected variance for a.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from allotment.pricing.price import Price, WeightedPrice
from allotment.types import FloatArray, IntArray, Posterior


@dataclass(frozen=True, eq=False)
class ShrinkagePrice:
    """``f_q(n) = (a_q + a_q v_q / (a_q + (n - 1) v_q)) / n``, a :class:`~allotment.pricing.Price` from n = 1 on."""

    variance: FloatArray
    """[Q] a, the expected variance of a reward, >= 0."""
    uncertainty: FloatArray
    """[Q] v, the variance of the belief about the mean reward, >= 0."""
    minimum_count: int = 1
    """A group of one is compared with the belief."""

    @classmethod
    def of(cls, posterior: Posterior) -> ShrinkagePrice:
        """The price under a belief about success probabilities."""
        return cls.of_moments(posterior.success_probability(), posterior.expected_variance())

    @classmethod
    def of_moments(cls, mean_Q: FloatArray, variance_Q: FloatArray) -> ShrinkagePrice:
        """The price under a belief whose ``E[p]`` and ``E[p (1 - p)]`` these are, both [Q]."""
        return cls(variance_Q, np.maximum(mean_Q * (1.0 - mean_Q) - variance_Q, 0.0))

    def __len__(self) -> int:
        return len(self.variance)

    def gains(self, grid_K: IntArray) -> FloatArray:
        """``f_q(n) - f_q(n + 1)``, [Q, K], as a sum of terms >= 0."""
        n_K, a_Q1, v_Q1 = grid_K.astype(np.float64), self.variance[:, None], self.uncertainty[:, None]
        now_QK, later_QK = (_baseline_error(a_Q1, v_Q1, n) for n in (n_K, n_K + 1.0))
        return (a_Q1 + later_QK + (n_K + 1.0) * (now_QK - later_QK)) / (n_K * (n_K + 1.0))

    def cost(self, counts_Q: IntArray) -> FloatArray:
        """``f_q(n_q)``, [Q]."""
        n_Q = counts_Q.astype(np.float64)
        return (self.variance + _baseline_error(self.variance, self.uncertainty, n_Q)) / n_Q

    def shares(self, counts_Q: IntArray) -> FloatArray:
        """w, [Q] in [0, 1]: the weight of the belief against the other rollouts; 1 for a group of one."""
        return _share(self.variance, self.uncertainty, counts_Q.astype(np.float64))


def _share(a: FloatArray, v: FloatArray, n: FloatArray) -> FloatArray:
    """``a / (a + (n - 1) v)``; 1 where nothing is unsure."""
    a, whole = np.broadcast_arrays(a, a + (n - 1.0) * v)
    return np.asarray(np.divide(a, whole, out=np.ones(whole.shape), where=whole > 0.0), dtype=np.float64)


def _baseline_error(a: FloatArray, v: FloatArray, n: FloatArray) -> FloatArray:
    """``a v / (a + (n - 1) v)``, the mean squared error of the baseline; v at n = 1."""
    return v * _share(a, v, n)


def taken(price: Price, rows: IntArray, factors: FloatArray) -> Price:
    """The price of some prompts, each one's variance multiplied by a factor; [P] both.

    Of prices that are proportional to their columns [Q]: :class:`~allotment.pricing.WeightedPrice` and this one.
    """
    assert isinstance(price, WeightedPrice | ShrinkagePrice)
    columns: dict[str, Any] = {
        name: column[rows] * factors for name, column in vars(price).items() if isinstance(column, np.ndarray)
    }
    return replace(price, **columns)
