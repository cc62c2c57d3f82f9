"""What a rollout is worth: the variance that n rollouts of a prompt leave, and the price of a batch made from it.

The estimator of a prompt is ``G = (1/n) sum_j A_j Z_j``: rewards R_j, advantages A_j, scores Z_j projected to a scalar.
Under assumption 4.1 of VIP (arXiv 2602.01601: R and Z independent, each i.i.d. over the rollouts of a prompt)
``Var(G) = Var(Z) Var(R) g(n)``, and an :class:`Estimator` is the curve ``g``. ``Var(R)`` is the prompt's weight, for a
0/1 reward ``p (1 - p)``, between 0 and 1/4 (the paper's rewards are -1/+1, four times that; for real-valued rewards see
propositions E.1, E.2); ``Var(Z)`` is taken equal for all prompts and left out: a common factor moves no rollout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from allotment.checks import check_probabilities, shown
from allotment.errors import InvalidInputError
from allotment.types import FloatArray, IntArray, Posterior

Curve = Callable[[npt.ArrayLike], FloatArray]


@dataclass(frozen=True)
class Estimator:
    """How the variance of one prompt's estimator falls with its number of rollouts."""

    name: str
    """The name it is looked up by."""
    minimum_count: int
    """Smallest n from which ``variance`` is convex and decreasing; lower bounds must not lie below it."""
    variance: Curve
    """``g(n)``, any shape, n >= ``minimum_count``; unit: ``Var(R) Var(Z)``."""
    gain: Curve
    """``g(n) - g(n + 1)``, what the rollout after the n-th is worth. From ``minimum_count`` on it falls with n, in
    floating point too: a closed form, not a difference."""
    usual_lower: int = 3
    """Least rollouts of a prompt where nobody names it."""
    believes: bool = False
    """Whether rollouts are compared with a belief too; the curve is then that of a belief without uncertainty, and
    :class:`~allotment.pricing.ShrinkagePrice` the price with it."""


def _rloo_variance(counts: npt.ArrayLike) -> FloatArray:
    return 1.0 / (_floats(counts) - 1.0)


def _rloo_gain(counts: npt.ArrayLike) -> FloatArray:
    n = _floats(counts)
    return 1.0 / (n * (n - 1.0))


def _dr_grpo_variance(counts: npt.ArrayLike) -> FloatArray:
    n = _floats(counts)
    return (n - 1.0) / (n * n)


def _dr_grpo_gain(counts: npt.ArrayLike) -> FloatArray:
    n = _floats(counts)
    both = n * (n + 1.0)
    return (both - 2.0 * n - 1.0) / (both * both)


def _mean_variance(counts: npt.ArrayLike) -> FloatArray:
    return 1.0 / _floats(counts)


def _mean_gain(counts: npt.ArrayLike) -> FloatArray:
    n = _floats(counts)
    return 1.0 / (n * (n + 1.0))


def _floats(counts: npt.ArrayLike) -> FloatArray:
    return np.asarray(counts, dtype=np.float64)


RLOO = Estimator("rloo", 2, _rloo_variance, _rloo_gain)
"""Leave-one-out baseline: ``g(n) = 1 / (n - 1)`` (VIP, proposition 4.3)."""

DR_GRPO = Estimator("dr_grpo", 3, _dr_grpo_variance, _dr_grpo_gain)
"""Group-mean baseline, no division by the standard deviation: ``g(n) = (n - 1) / n^2`` (VIP, proposition 4.2).

Convex only from n = 3: the gain of the third rollout (1/36) is smaller than that of the fourth (5/144).
"""

SHRINKAGE = Estimator("shrinkage", 1, _mean_variance, _mean_gain, usual_lower=1, believes=True)
"""A belief mixed with the other rollouts (:mod:`allotment.pricing.shrinkage`); ``1 / n`` if it is certain."""

ESTIMATORS = {estimator.name: estimator for estimator in (RLOO, DR_GRPO, SHRINKAGE)}
"""All estimators by name."""


def get_estimator(estimator: str | Estimator) -> Estimator:
    """The estimator of that name (``"dr-grpo"`` is ``"dr_grpo"``), or the one given; InvalidInputError if unknown."""
    if isinstance(estimator, Estimator):
        return estimator
    found = ESTIMATORS.get(estimator.replace("-", "_").lower()) if isinstance(estimator, str) else None
    if found is None:
        allowed = ", ".join(map(repr, ESTIMATORS)) + ", or an Estimator"
        fix = "name the estimator whose advantages the trainer computes"
        raise InvalidInputError("unknown estimator", got=shown(estimator), allowed=allowed, fix=fix)
    return found


@runtime_checkable
class Price(Protocol):
    """``f_q(n)`` for the Q prompts of a batch: whatever has these members can be allocated exactly."""

    @property
    def minimum_count(self) -> int:
        """Smallest n at which every ``f_q`` is defined, convex and falling."""
        ...

    def __len__(self) -> int:
        """Q, the number of prompts."""
        ...

    def gains(self, grid_K: IntArray) -> FloatArray:
        """``f_q(n) - f_q(n + 1)`` for every n of the grid, [Q, K]; >= 0 and falling along K."""
        ...

    def cost(self, counts_Q: IntArray) -> FloatArray:
        """``f_q(n_q)``, [Q]."""
        ...


@dataclass(frozen=True)
class WeightedPrice:
    """The price ``f_q(n) = a_q g(n)``: one weight per prompt, one curve for all."""

    weights: FloatArray
    """[Q] weight of each prompt, finite, >= 0; unit: variance of a reward."""
    estimator: Estimator
    """The curve g."""

    @property
    def minimum_count(self) -> int:
        """That of the estimator."""
        return self.estimator.minimum_count

    def __len__(self) -> int:
        return len(self.weights)

    def gains(self, grid_K: IntArray) -> FloatArray:
        """``a_q (g(n) - g(n + 1))``, [Q, K]."""
        return self.weights[:, None] * self.estimator.gain(grid_K)

    def cost(self, counts_Q: IntArray) -> FloatArray:
        """``a_q g(n_q)``, [Q]."""
        return self.weights * self.estimator.variance(counts_Q)


def posterior_weights(posterior: Posterior, *, plug_in: bool = False) -> FloatArray:
    """Weight of each prompt, [Q], in [0, 1/4].

    By default ``E[p (1 - p)]`` under the posterior: uncertainty about p is priced. With ``plug_in`` it is
    ``p (1 - p)`` at ``p = sigmoid(mean)``, the paper's choice (VIP, section 5.1).
    """
    return bernoulli_weights(posterior.plug_in_probability()) if plug_in else posterior.expected_variance()


def bernoulli_weights(success_probabilities: npt.ArrayLike) -> FloatArray:
    """``p (1 - p)`` of each prompt, [Q]; raises as :func:`check_probabilities`."""
    p_Q = check_probabilities(success_probabilities)
    return p_Q * (1.0 - p_Q)
