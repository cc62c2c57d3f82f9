"""Splits to compare with: even, and in proportion to a weight (VIP, arXiv 2602.01601, appendix C.1).

The paper's text gives the two proportional rules; its code solves linear programs instead, which send every prompt to
one of its bounds. Here they are proportional: counts ``s w_q``, clipped to the bounds, with the scale s for which they
sum to the budget, then integers by largest remainder.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from allotment.allocation.bounds import Bound
from allotment.allocation.level import clipped_to_budget
from allotment.allocation.problem import Problem
from allotment.errors import InvalidInputError
from allotment.pricing import Estimator, Price, bernoulli_weights, check_probabilities
from allotment.types import Allocation, FloatArray, IntArray

EPSILON = 0.01
"""Default epsilon of the proportional rules; the paper names none. A prompt that always succeeds weighs 1/101 of one
that never does (inverse accuracy); one of certain outcome weighs 26 times one at p = 1/2 (inverse variance)."""

REMAINDER_DIGITS = 9
"""Remainders that agree to this many decimals are equal: rounding noise does not break ties."""


def uniform(
    weights: int | npt.ArrayLike | Price,
    budget: int,
    *,
    lower: Bound = 3,
    upper: Bound = 32,
    estimator: str | Estimator = "rloo",
    tie_keys: npt.ArrayLike | None = None,
    seed: int | None = None,
) -> Allocation:
    """The budget split evenly within the bounds; what is left over goes one each, in the order of ties.

    Args:
        weights: as for :func:`~allotment.allocation.allocate_exact`, for the objective only; or the number of prompts,
            for weights of 1.
        budget: C.
        lower: L, one number or [Q].
        upper: U, one number or [Q].
        estimator: for the objective and the certificate only.
        tie_keys: [Q] see :func:`~allotment.allocation.allocate_exact`.
        seed: see :func:`~allotment.allocation.allocate_exact`.

    Raises:
        InvalidInputError: as :func:`~allotment.allocation.allocate_exact`.
        InfeasibleBudgetError: the budget is outside the sums of the bounds.
    """
    if isinstance(weights, int | np.integer):
        weights = np.ones(max(int(weights), 0))
    problem = Problem.of(weights, budget, lower=lower, upper=upper, estimator=estimator, tie_keys=tie_keys, seed=seed)
    return problem.allocation(problem.uniform_counts())


def inverse_accuracy(
    success_probabilities: npt.ArrayLike,
    budget: int,
    *,
    lower: Bound = 3,
    upper: Bound = 32,
    estimator: str | Estimator = "rloo",
    epsilon: float = EPSILON,
    tie_keys: npt.ArrayLike | None = None,
    seed: int | None = None,
) -> Allocation:
    """Counts in proportion to ``1 - p + epsilon``: the harder, the more (VIP, appendix C.1).

    Args:
        success_probabilities: [Q] in [0, 1].
        budget: C.
        lower: L, one number or [Q].
        upper: U, one number or [Q].
        estimator: for the objective (weights ``p (1 - p)``) and the certificate only.
        epsilon: > 0; see :data:`EPSILON`.
        tie_keys: [Q] see :func:`~allotment.allocation.allocate_exact`.
        seed: see :func:`~allotment.allocation.allocate_exact`.

    Raises:
        InvalidInputError: as :func:`~allotment.allocation.allocate_exact`; a probability outside [0, 1]; epsilon <= 0.
        InfeasibleBudgetError: the budget is outside the sums of the bounds.
    """
    variance_Q = bernoulli_weights(success_probabilities)
    problem = Problem.of(
        variance_Q, budget, lower=lower, upper=upper, estimator=estimator, tie_keys=tie_keys, seed=seed
    )
    share_Q = 1.0 - check_probabilities(success_probabilities) + _check_epsilon(epsilon)
    return problem.allocation(_proportional(problem, share_Q))


def inverse_variance(
    success_probabilities: npt.ArrayLike,
    budget: int,
    *,
    lower: Bound = 3,
    upper: Bound = 32,
    estimator: str | Estimator = "rloo",
    epsilon: float = EPSILON,
    tie_keys: npt.ArrayLike | None = None,
    seed: int | None = None,
) -> Allocation:
    """Counts in proportion to ``1 / (p (1 - p) + epsilon)``: the surer, the more (VIP, appendix C.1).

    Arguments and errors are those of :func:`inverse_accuracy`.
    """
    variance_Q = bernoulli_weights(success_probabilities)
    problem = Problem.of(
        variance_Q, budget, lower=lower, upper=upper, estimator=estimator, tie_keys=tie_keys, seed=seed
    )
    return problem.allocation(_proportional(problem, 1.0 / (variance_Q + _check_epsilon(epsilon))))


def _proportional(problem: Problem, share_Q: FloatArray) -> IntArray:
    """[Q] integers near ``clip(s share, lower, upper)`` that sum to the budget, by largest remainder."""
    exact_Q, _ = clipped_to_budget(share_Q, problem.budget, problem.lower, problem.upper, lambda ratio_Q: ratio_Q)
    exact_Q = np.round(exact_Q, REMAINDER_DIGITS)
    counts_Q = np.floor(exact_Q).astype(np.int64)
    left = problem.budget - int(counts_Q.sum())
    order_Q = np.lexsort((problem.rank, counts_Q - exact_Q))
    counts_Q[order_Q[:left]] += 1
    return counts_Q


def _check_epsilon(epsilon: float) -> float:
    if not 0.0 < epsilon < np.inf:
        raise InvalidInputError(
            "epsilon is not a positive number", got=repr(epsilon), allowed="> 0, finite", fix=f"try {EPSILON}"
        )
    return epsilon
