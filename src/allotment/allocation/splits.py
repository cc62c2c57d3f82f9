"""The other splits: the paper's relaxation and rounding, even counts, and counts in proportion to a weight.

VIP (arXiv 2602.01601), theorems 5.1 (Dr. GRPO) and 5.2 (RLOO) and algorithm 2: the relaxation is exact; algorithm 2 is
close but not always optimal: rounding down can leave a prompt with many rollouts one more than the integer optimum
gives it, and filling never takes it back. The certificate of the result tells, and
:func:`~allotment.allocation.allocate_exact` costs less.

Appendix C.1: the paper's text gives the two proportional rules; its code solves linear programs instead, which send
every prompt to one of its bounds. Here they are proportional: counts ``s w_q``, clipped to the bounds, with the scale s
for which they sum to the budget, then integers by largest remainder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Unpack, get_args

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from allotment.allocation.exact import Limits, Problem, allocate_exact, largest_gains
from allotment.errors import InvalidInputError
from allotment.pricing import DR_GRPO, RLOO, Estimator, Price, WeightedPrice, check_vector, get_estimator
from allotment.pricing.price import bernoulli_weights, check_probabilities
from allotment.types import Allocation, FloatArray, IntArray

Method = Literal["exact", "relaxed", "uniform", "inverse-accuracy", "inverse-variance"]
"""How :func:`allocate` splits."""
METHODS: tuple[Method, ...] = get_args(Method)
"""All values of :data:`Method`."""
LevelCurve = Callable[[FloatArray], FloatArray]
"""Unbounded count of each prompt from ``weight / multiplier``; elementwise, continuous, not falling."""
NEARLY_WHOLE = 1e-9
"""A count this far below an integer is that integer: the root finder's rounding is not rounded down."""
NEGLIGIBLE = 1e-200
"""Weights below this share of the largest count as zero."""
EPSILON = 0.01
"""Default epsilon of the proportional rules; the paper names none. A prompt that always succeeds weighs 1/101 of one
that never does (inverse accuracy); one of certain outcome weighs 26 times one at p = 1/2 (inverse variance)."""
REMAINDER_DIGITS = 9
"""Remainders that agree to this many decimals are equal: rounding noise does not break ties."""


def allocate(
    success_probabilities: npt.ArrayLike, budget: int, *, method: Method = "exact", **limits: Unpack[Limits]
) -> Allocation:
    """Split ``budget`` rollouts over prompts of known (or predicted) success probability.

    The weight of a prompt is ``p (1 - p)``. To price uncertainty or real-valued rewards pass weights of your own to
    :func:`~allotment.allocation.allocate_exact`.

    Args:
        success_probabilities: [Q] in [0, 1].
        budget: C, rollouts to spend in total; exactly this many are.
        method: one of :data:`METHODS`.
        **limits: ``lower=3``, ``upper=32``, ``estimator="rloo"``, ``tie_keys=None``, ``seed=None``; see
            :class:`~allotment.allocation.Limits`.

    Raises:
        InvalidInputError: a probability is NaN or outside [0, 1]; an unknown method; else as
            :func:`~allotment.allocation.allocate_exact`.
        InfeasibleBudgetError: the budget is outside the sums of the bounds.
    """
    if method not in METHODS:
        raise InvalidInputError(
            "unknown method", got=repr(method), allowed=", ".join(METHODS), fix="use exact, the optimum"
        )
    if method == "inverse-accuracy":
        return inverse_accuracy(success_probabilities, budget, **limits)
    if method == "inverse-variance":
        return inverse_variance(success_probabilities, budget, **limits)
    split = {"exact": allocate_exact, "relaxed": allocate_relaxed, "uniform": uniform}[method]
    return split(bernoulli_weights(success_probabilities), budget, **limits)


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
    """Minimise ``sum_q a_q g(n_q)`` over real-valued counts within the bounds that sum to the budget.

    VIP, theorems 5.1 and 5.2: the closed form of the estimator, clipped to the bounds, at the multiplier where the sum
    is the budget. Zero weights are the limit of equal tiny ones: at their lower bounds until all others are at their
    upper bounds, then even. At either end of the feasible budgets the multiplier is not unique; one is returned.

    Arguments are those of :func:`~allotment.allocation.allocate_exact`, without custom prices; there are no ties.

    Raises:
        InvalidInputError: as :func:`~allotment.allocation.allocate_exact`; or an estimator without a closed form.
        InfeasibleBudgetError: the budget is outside the sums of the bounds.
    """
    return _relaxed(weights, budget, limits)[1]


def allocate_relaxed(weights: npt.ArrayLike, budget: int, **limits: Unpack[Limits]) -> Allocation:
    """The paper's integers (VIP, algorithm 2), from :func:`relaxed_counts`, with its arguments and errors.

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
    return problem, RelaxedCounts(*_clipped_to_budget(price.weights, problem, CLOSED_FORMS[estimator]))


def uniform(weights: int | npt.ArrayLike | Price, budget: int, **limits: Unpack[Limits]) -> Allocation:
    """The budget split evenly within the bounds; what is left over goes one each, in the order of ties.

    Arguments and errors are those of :func:`~allotment.allocation.allocate_exact`; ``weights`` and ``estimator`` count
    for the objective and the certificate only, and a number of prompts stands for weights of 1.
    """
    if isinstance(weights, int | np.integer):
        weights = np.ones(max(int(weights), 0))
    problem = Problem.of(weights, budget, **limits)
    return problem.allocation(problem.uniform_counts())


def inverse_accuracy(
    success_probabilities: npt.ArrayLike, budget: int, *, epsilon: float = EPSILON, **limits: Unpack[Limits]
) -> Allocation:
    """Counts in proportion to ``1 - p + epsilon``: the harder, the more (VIP, appendix C.1).

    Args:
        success_probabilities: [Q] in [0, 1].
        budget: C, rollouts to spend in total.
        epsilon: > 0; see :data:`EPSILON`.
        **limits: see :class:`~allotment.allocation.Limits`; ``estimator`` is for the objective (weights ``p (1 - p)``)
            and the certificate only.

    Raises:
        InvalidInputError: as :func:`~allotment.allocation.allocate_exact`; a probability outside [0, 1]; epsilon <= 0.
        InfeasibleBudgetError: the budget is outside the sums of the bounds.
    """
    return _in_proportion(lambda p_Q: 1.0 - p_Q + epsilon, epsilon, success_probabilities, budget, limits)


def inverse_variance(
    success_probabilities: npt.ArrayLike, budget: int, *, epsilon: float = EPSILON, **limits: Unpack[Limits]
) -> Allocation:
    """Counts in proportion to ``1 / (p (1 - p) + epsilon)``: the surer, the more (VIP, appendix C.1).

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
    exact_Q = np.round(_clipped_to_budget(share(p_Q), problem, lambda ratio_Q: ratio_Q)[0], REMAINDER_DIGITS)
    counts_Q = np.floor(exact_Q).astype(np.int64)
    order_Q = np.lexsort((problem.rank, counts_Q - exact_Q))
    counts_Q[order_Q[: problem.budget - int(counts_Q.sum())]] += 1
    return problem.allocation(counts_Q)


def _clipped_to_budget(weights_Q: FloatArray, problem: Problem, curve: LevelCurve) -> tuple[FloatArray, float]:
    """``clip(curve(w / multiplier), lower, upper)`` with the multiplier for which the sum is the budget; and that.

    Zero weights are the limit of equal, ever smaller ones: they stay at their lower bounds until all other prompts
    are at their upper bounds, then share what is left evenly, and the multiplier is 0.0.
    """
    lower_Q, upper_Q, top = problem.lower, problem.upper, float(weights_Q.max())
    free_Q = positive_Q = weights_Q > NEGLIGIBLE * top
    zeros_share = problem.budget > int(np.where(positive_Q, upper_Q, lower_Q).sum()) or not positive_Q.any()
    if zeros_share:
        free_Q, weights_Q, top, curve = ~positive_Q, np.ones(len(weights_Q)), 1.0, lambda ratio_Q: ratio_Q
    counts_Q = (upper_Q if zeros_share else lower_Q).astype(np.float64)
    left = problem.budget - int(counts_Q[~free_Q].sum())
    counts_Q[free_Q], multiplier = _level(weights_Q[free_Q] / top, left, lower_Q[free_Q], upper_Q[free_Q], curve)
    return counts_Q, 0.0 if zeros_share else multiplier * top


def _level(
    weights_Q: FloatArray, budget: int, lower_Q: IntArray, upper_Q: IntArray, curve: LevelCurve
) -> tuple[FloatArray, float]:
    """The same for positive weights, by root finding on the logarithm of the multiplier."""

    def counts(log_multiplier: float) -> FloatArray:
        return np.asarray(np.clip(curve(weights_Q * np.exp(-log_multiplier)), lower_Q, upper_Q), dtype=np.float64)

    def excess(log_multiplier: float) -> float:
        return float(counts(log_multiplier).sum()) - budget

    low, high = float(np.log(weights_Q.min())), float(np.log(weights_Q.max()))
    step = 1.0
    while excess(low) < 0.0:  # the smaller the multiplier, the larger the counts
        low, step = low - step, 2.0 * step
    step = 1.0
    while excess(high) > 0.0:
        high, step = high + step, 2.0 * step
    root = float(brentq(excess, low, high, xtol=1e-15, rtol=1e-15)) if high > low else low
    return counts(root), float(np.exp(root))
