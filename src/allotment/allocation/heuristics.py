"""Splits without an optimum: even, or in proportion to a rule.

VIP (arXiv 2602.01601), appendix C.1: the paper's text gives the two proportional rules; its code solves linear programs
instead, which send every prompt to one of its bounds. Here they are proportional: counts ``s w_q``, clipped to the
bounds, with the scale s for which they sum to the budget, then integers by largest remainder.
"""

from __future__ import annotations

from typing import Unpack

import numpy as np
import numpy.typing as npt

from allotment.allocation.exact import Limits, Problem
from allotment.allocation.level import LevelCurve, clipped_to_budget
from allotment.checks import check_probabilities
from allotment.errors import InvalidInputError
from allotment.pricing import Price
from allotment.types import Allocation

EPSILON = 0.01
"""Default epsilon of the proportional rules; the paper names none. A prompt that always succeeds weighs 1/101 of one
that never does (inverse accuracy); one of certain outcome weighs 26 times one at p = 1/2 (inverse variance)."""
REMAINDER_DIGITS = 9
"""Remainders that agree to this many decimals are equal: rounding noise does not break ties."""


def uniform(weights: int | npt.ArrayLike | Price, budget: int, **limits: Unpack[Limits]) -> Allocation:
    """The budget split evenly within the bounds; what is left over goes one each, in the order of ties.

    Arguments and errors are those of :func:`~allotment.allocation.allocate_exact`; ``weights`` [Q] and ``estimator``
    count for the objective and the certificate only, and a number of prompts stands for weights of 1.
    """
    if isinstance(weights, int | np.integer):
        weights = np.ones(max(int(weights), 0))
    problem = Problem.of(weights, budget, **limits)
    return problem.allocation(problem.uniform_counts())


def inverse_accuracy(
    success_probabilities: npt.ArrayLike, budget: int, *, epsilon: float = EPSILON, **limits: Unpack[Limits]
) -> Allocation:
    """Counts in proportion to ``1 - p + epsilon``, p [Q]: the harder, the more (VIP, appendix C.1).

    Arguments and errors are those of :func:`~allotment.allocation.allocate`, and ``epsilon`` > 0, see :data:`EPSILON`;
    ``estimator`` is for the objective (weights ``p (1 - p)``) and the certificate only.
    """
    return _in_proportion(lambda p_Q: 1.0 - p_Q + epsilon, epsilon, success_probabilities, budget, limits)


def inverse_variance(
    success_probabilities: npt.ArrayLike, budget: int, *, epsilon: float = EPSILON, **limits: Unpack[Limits]
) -> Allocation:
    """Counts in proportion to ``1 / (p (1 - p) + epsilon)``, p [Q]: the surer, the more (VIP, appendix C.1).

    Arguments and errors are those of :func:`inverse_accuracy`.
    """
    return _in_proportion(
        lambda p_Q: 1.0 / (p_Q * (1.0 - p_Q) + epsilon), epsilon, success_probabilities, budget, limits
    )


def _in_proportion(
    share: LevelCurve, epsilon: float, success_probabilities: npt.ArrayLike, budget: int, limits: Limits
) -> Allocation:
    """Integers near ``clip(s share(p), lower, upper)`` that sum to the budget, by largest remainder."""
    p_Q = check_probabilities(success_probabilities)
    problem = Problem.of(p_Q * (1.0 - p_Q), budget, **limits)
    if not 0.0 < epsilon < np.inf:
        raise InvalidInputError(
            "epsilon is not a positive number", got=repr(epsilon), allowed="> 0, finite", fix=f"try {EPSILON}"
        )
    exact_Q = np.round(clipped_to_budget(share(p_Q), problem, lambda ratio_Q: ratio_Q)[0], REMAINDER_DIGITS)
    counts_Q = np.floor(exact_Q).astype(np.int64)
    order_Q = np.lexsort((problem.rank, counts_Q - exact_Q))
    counts_Q[order_Q[: problem.budget - int(counts_Q.sum())]] += 1
    return problem.allocation(counts_Q)
