"""The paper's split: the relaxation in closed form, then integers by rounding.

VIP (arXiv 2602.01601), theorems 5.1 (Dr. GRPO) and 5.2 (RLOO) and algorithm 2: the relaxation is exact; algorithm 2 is
close but not always optimal: rounding down can leave a prompt with many rollouts one more than the integer optimum
gives it, and filling never takes it back. The certificate of the result tells, and
:func:`~allotment.allocation.allocate_exact` costs less.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np
import numpy.typing as npt

from allotment.allocation.exact import Limits, Problem, largest_gains
from allotment.allocation.level import LevelCurve, clipped_to_budget
from allotment.checks import check_vector
from allotment.errors import InvalidInputError
from allotment.pricing import DR_GRPO, RLOO, Estimator, WeightedPrice, get_estimator
from allotment.types import Allocation, FloatArray

NEARLY_WHOLE = 1e-9
"""A count this far below an integer is that integer: the root finder's rounding is not rounded down."""


@dataclass(frozen=True)
class RelaxedCounts:
    """The optimum of the relaxation."""

    counts: FloatArray
    """[Q] real-valued counts within the bounds; sums to the budget."""
    multiplier: float
    """Lagrange multiplier of the budget, >= 0: ``-a_q g'(n_q)`` of every prompt strictly between its bounds."""


def _rloo_count(ratio_Q: FloatArray) -> FloatArray:
    """``n`` with ``a / (n - 1)^2 = multiplier``, from ``ratio = a / multiplier`` (theorem 5.2)."""
    return 1.0 + np.sqrt(ratio_Q)


def _dr_grpo_count(ratio_Q: FloatArray) -> FloatArray:
    """Largest root of ``n^3 - t n + 2 t``, ``t = a / multiplier`` (theorem 5.1); at most 3 where t <= 27."""
    angle_Q = np.arccos(-np.minimum(np.sqrt(27.0 / ratio_Q), 1.0)) / 3.0
    return 2.0 * np.sqrt(ratio_Q / 3.0) * np.cos(angle_Q)


CLOSED_FORMS: dict[Estimator, LevelCurve] = {RLOO: _rloo_count, DR_GRPO: _dr_grpo_count}
"""The count at which the marginal gain of a prompt is the multiplier, from ``a / multiplier``."""


def relaxed_counts(weights: npt.ArrayLike, budget: int, **limits: Unpack[Limits]) -> RelaxedCounts:
    """Minimise ``sum_q a_q g(n_q)``, a [Q], over real-valued counts within the bounds that sum to the budget.

    VIP, theorems 5.1 and 5.2: the closed form of the estimator, clipped to the bounds, at the multiplier where the sum
    is the budget. Zero weights are the limit of equal tiny ones: at their lower bounds until all others are at their
    upper bounds, then even. At either end of the feasible budgets the multiplier is not unique; one is returned.

    Arguments and errors are those of :func:`~allotment.allocation.allocate_exact`, without custom prices; there are no
    ties. InvalidInputError also where the estimator has no closed form.
    """
    return _relaxed(weights, budget, limits)[1]


def allocate_relaxed(weights: npt.ArrayLike, budget: int, **limits: Unpack[Limits]) -> Allocation:
    """The paper's integers (VIP, algorithm 2), from :func:`relaxed_counts`, with its arguments, errors; [Q].

    Every count is rounded down, then raised by 1 where the variance falls most, until the budget is spent.
    """
    problem, relaxed = _relaxed(weights, budget, limits)
    floor_Q = np.floor(relaxed.counts + NEARLY_WHOLE).astype(np.int64)
    gains_QK = replace(problem, lower=floor_Q).gains
    return problem.allocation(floor_Q + largest_gains(gains_QK, budget - int(floor_Q.sum()), problem.rank))


def _relaxed(weights: npt.ArrayLike, budget: int, limits: Limits) -> tuple[Problem, RelaxedCounts]:
    estimator = get_estimator(limits.get("estimator", "rloo"))
    if estimator not in CLOSED_FORMS:
        raise InvalidInputError(
            "the relaxation has no closed form for this estimator",
            got=repr(estimator.name),
            allowed=", ".join(repr(known.name) for known in CLOSED_FORMS),
            fix="use allocate_exact, which takes any convex variance",
        )
    price = WeightedPrice(check_vector("weight", weights), estimator)
    problem = Problem.of(price, budget, **limits)
    return problem, RelaxedCounts(*clipped_to_budget(price.weights, problem, CLOSED_FORMS[estimator]))
