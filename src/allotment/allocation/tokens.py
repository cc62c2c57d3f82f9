"""A token budget: rollouts of unequal cost.

Minimise ``sum_q f_q(n_q)`` with ``sum_q c_q n_q <= C`` and ``L_q <= n_q <= U_q``: an integer knapsack whose items come
in convex chains. Taking all steps ``f_q(n) - f_q(n + 1)`` in falling order of gain per cost solves the Lagrangian dual
exactly (Everett 1963); where the budget runs out inside a step the dual value is a lower bound of every feasible
allocation, so that the loss from whole rollouts is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import numpy as np
import numpy.typing as npt

from allotment.allocation.exact import NOT_A_UNIT, Limits, Problem
from allotment.checks import check_vector
from allotment.errors import InfeasibleBudgetError, InvalidInputError
from allotment.pricing import Price
from allotment.types import Allocation, FloatArray, IntArray

ROUNDING = 1e-12
"""Excess over the budget, relative to it, that is taken for the rounding of a sum."""


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
