"""The other splits: the paper's relaxation and rounding, even or proportional counts, a token budget.

VIP (arXiv 2602.01601), theorems 5.1 (Dr. GRPO) and 5.2 (RLOO) and algorithm 2: the relaxation is exact; algorithm 2 is
close but not always optimal: rounding down can leave a prompt with many rollouts one more than the integer optimum
gives it, and filling never takes it back. The certificate of the result tells, and
:func:`~allotment.allocation.allocate_exact` costs less.

Appendix C.1: the paper's text gives the two proportional rules; its code solves linear programs instead, which send
every prompt to one of its bounds. Here they are proportional: counts ``s w_q``, clipped to the bounds, with the scale s
for which they sum to the budget, then integers by largest remainder.

A token budget: rollouts of unequal cost. Minimise ``sum_q f_q(n_q)`` with ``sum_q c_q n_q <= C`` and
``L_q <= n_q <= U_q``: an integer knapsack whose items come in convex chains. Taking all steps ``f_q(n) - f_q(n + 1)``
in falling order of gain per cost solves the Lagrangian dual exactly (Everett 1963); where the budget runs out inside a
step the dual value is a lower bound of every feasible allocation, so that the loss from whole rollouts is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Unpack, get_args

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from allotment.allocation.exact import NOT_A_UNIT, Limits, Problem, allocate_exact, largest_gains
from allotment.errors import InfeasibleBudgetError, InvalidInputError
from allotment.pricing import DR_GRPO, RLOO, Estimator, Price, WeightedPrice, check_vector, get_estimator
from allotment.pricing.price import bernoulli_weights, check_probabilities
from allotment.types import Allocation, FloatArray, IntArray

Method = Literal["exact", "relaxed", "uniform", "inverse-accuracy", "inverse-variance"]
"""How :func:`allocate` splits."""
METHODS: tuple[Method, ...] = get_args(Method)
"""All values of :data:`Method`."""
LevelCurve = Callable[[FloatArray], FloatArray]
"""Unbounded count of each prompt from ``weight / multiplier``; elementwise, continuous, not falling."""
ROUNDING = 1e-12
"""Excess over the budget, relative to it, that is taken for the rounding of a sum."""
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
        **limits: as the errors those of :func:`~allotment.allocation.allocate_exact`.

    Raises:
        InvalidInputError: a probability is NaN or outside [0, 1]; an unknown method.
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

    Arguments and errors are those of :func:`~allotment.allocation.allocate_exact`, without custom prices; there are no
    ties. InvalidInputError also where the estimator has no closed form.
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

    Arguments and errors are those of :func:`allocate`, and ``epsilon`` > 0, see :data:`EPSILON`; ``estimator`` is for
    the objective (weights ``p (1 - p)``) and the certificate only.
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


@dataclass(frozen=True, eq=False)
class TokenAllocation(Allocation):
    """An :class:`~allotment.types.Allocation` under a token budget; ``multiplier`` is in objective per token."""

    expected_tokens: float
    """Sum of count times predicted tokens of a rollout; at most :attr:`token_budget`."""
    token_budget: float
    """C, the tokens that may be spent."""
    lower_bound: float
    """No counts within the bounds and the budget have a smaller objective: the value of the Lagrangian dual."""

    @property
    def gap(self) -> float:
        """How far :attr:`objective` is above the optimum at most; 0.0 where the counts are proved optimal."""
        return self.objective - self.lower_bound

    @property
    def is_certified(self) -> bool:
        """Whether the lower bound proves the counts optimal."""
        return self.gap <= 0.0


def allocate_tokens(
    weights: npt.ArrayLike | Price, budget: float, costs: npt.ArrayLike, **limits: Unpack[Limits]
) -> TokenAllocation:
    """The counts of least total variance, nearly, whose expected tokens stay within ``budget``.

    Steps are taken in falling order of gain per token while they fit; then, in the same order, whatever still fits.
    The objective exceeds the optimum by at most :attr:`TokenAllocation.gap`, which is at most the gain of one rollout.
    With equal costs c the counts are those of :func:`~allotment.allocation.allocate_exact` for ``floor(budget / c)``
    rollouts, ties included. O(Q (U - L) log) time.

    Args:
        weights: [Q] or a :class:`~allotment.pricing.Price`, as for :func:`~allotment.allocation.allocate_exact`.
        budget: C, tokens to spend at most; more than the upper bounds can use is left over.
        costs: [Q] predicted tokens of one rollout of each prompt, finite, > 0.
        **limits: see :class:`~allotment.allocation.Limits`.

    Raises:
        InvalidInputError: a cost or the budget is not a positive, finite number; else as
            :func:`~allotment.allocation.allocate_exact`.
        InfeasibleBudgetError: the budget does not pay for the lower bounds; names the least that does.
    """
    problem = Problem.without_budget(weights, **limits)
    costs_Q = _check_costs(costs, len(problem.price))
    if isinstance(budget, bool) or not isinstance(budget, int | float | np.number) or not 0.0 < budget < np.inf:
        raise InvalidInputError(
            "the token budget is not a number", got=repr(budget), allowed="> 0, finite", fix="pass the tokens"
        )
    budget = float(budget)
    spare = budget - float((costs_Q * problem.lower).sum())
    if spare < -ROUNDING * budget:
        raise InfeasibleBudgetError(
            "the token budget does not pay for the lower bounds",
            got=f"{budget:g} tokens for {len(problem.price)} prompts",
            allowed=f"at least {budget - spare:g} predicted tokens ({int(problem.lower.sum())} rollouts)",
            fix="raise the budget, lower `lower`, or take fewer prompts",
        )
    relative_Q = costs_Q / costs_Q.min()  # equal costs: exactly 1, so that the order of the gains stays as it is
    gains_QK = np.where(problem.gains == NOT_A_UNIT, NOT_A_UNIT, problem.gains / relative_Q[:, None])
    steps_S = _in_order(gains_QK, problem.rank)
    prefix_Q, taken = _fitting(steps_S, costs_Q, spare + ROUNDING * budget)
    bound = float(problem.price.cost(problem.lower + prefix_Q).sum())
    if taken < len(steps_S):  # the step at which the budget ran out prices what is left
        left = max(spare - float((costs_Q * prefix_Q).sum()), 0.0)
        row = steps_S[taken]
        price = gains_QK[row, problem.lower[row] - problem.first + prefix_Q[row]] / costs_Q.min()
        bound -= float(price) * left
    more_Q = _fill(steps_S[taken:], costs_Q, spare + ROUNDING * budget - float((costs_Q * prefix_Q).sum()))
    return _result(problem, problem.lower + prefix_Q + more_Q, costs_Q, budget, bound)


def _in_order(gains_QK: FloatArray, rank_Q: IntArray) -> IntArray:
    """[S] the prompt of every step, by falling gain; among equals by column, then by rank, as in the exact split."""
    rows_Q = np.argsort(rank_Q)
    flat_KQ = gains_QK[rows_Q].T.ravel()
    order = np.argsort(-flat_KQ)
    if (np.diff(flat_KQ[order]) == 0.0).any():
        order = np.argsort(-flat_KQ, kind="stable")  # five times as slow on 15,000 steps, and needed for ties alone
    return rows_Q[order[: int((flat_KQ != NOT_A_UNIT).sum())] % len(rank_Q)]


def _fitting(steps_S: IntArray, costs_Q: FloatArray, room: float) -> tuple[IntArray, int]:
    """[Q] how many steps of each prompt are among the first that fit into ``room`` together, and how many that are."""
    taken = int(np.searchsorted(np.cumsum(costs_Q[steps_S]), room, side="right"))
    return np.bincount(steps_S[:taken], minlength=len(costs_Q)), taken


def _fill(steps_S: IntArray, costs_Q: FloatArray, room: float) -> IntArray:
    """[Q] further steps, in order, of the prompts whose next rollout still fits."""
    total_Q = np.zeros(len(costs_Q), dtype=np.int64)
    while len(steps_S := steps_S[costs_Q[steps_S] <= room]):
        more_Q, taken = _fitting(steps_S, costs_Q, room)
        total_Q += more_Q
        room -= float((costs_Q * more_Q).sum())
        steps_S = steps_S[taken:]
    return total_Q


def _result(problem: Problem, counts_Q: IntArray, costs_Q: FloatArray, budget: float, bound: float) -> TokenAllocation:
    room = budget * (1 + ROUNDING)
    even_Q, open_S = problem.level_counts(lambda counts_Q: float((costs_Q * counts_Q).sum()) <= room)
    even_Q = even_Q + _fitting(open_S, costs_Q, room - float((costs_Q * even_Q).sum()))[0]  # left over: by rank
    counts_Q.setflags(write=False)
    objective = float(problem.price.cost(counts_Q).sum())
    return TokenAllocation(
        counts_Q,
        objective,
        uniform_objective=float(problem.price.cost(even_Q).sum()),
        multiplier=problem.multiplier(counts_Q, costs_Q),
        expected_tokens=float((costs_Q * counts_Q).sum()),
        token_budget=budget,
        lower_bound=min(bound, objective),  # apart from rounding it never is above
    )


def _check_costs(costs: npt.ArrayLike, n_prompts: int) -> FloatArray:
    costs_Q = check_vector("cost", costs)
    if costs_Q.shape != (n_prompts,) or not (costs_Q > 0.0).all():
        raise InvalidInputError(
            "the costs do not fit the prompts",
            got=f"{len(costs_Q)} costs for {n_prompts} prompts, the least {costs_Q.min():g}",
            allowed="one number > 0 per prompt",
            fix="pass the predicted tokens of one rollout of each prompt",
        )
    return costs_Q
