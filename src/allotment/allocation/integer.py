"""The exact split: the largest marginal gains of the whole batch.

With every ``f_q`` convex, the optimum takes the ``C - sum L`` largest of all gains ``f_q(n) - f_q(n + 1)`` (greedy of
Gross 1956 and Fox 1966; here one selection from the table of gains instead of a heap, as in Frederickson and Johnson
1982). No relaxation, no rounding.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from allotment.allocation.bounds import Bound
from allotment.allocation.problem import Problem
from allotment.pricing import Estimator, Price
from allotment.types import Allocation, FloatArray, IntArray


def allocate_exact(
    weights: npt.ArrayLike | Price,
    budget: int,
    *,
    lower: Bound = 3,
    upper: Bound = 32,
    estimator: str | Estimator = "rloo",
    tie_keys: npt.ArrayLike | None = None,
    seed: int | None = None,
) -> Allocation:
    """The counts of least total variance: minimise ``sum_q a_q g(n_q)`` exactly, over integers, spending the budget.

    VIP (arXiv 2602.01601), equations 5 and 6, without its relaxation. O(Q (U - L)) time and memory. Where gains are
    equal, the prompt with fewer rollouts comes first, then the one first by ``tie_keys``, by ``seed`` or by position.
    Optima are nested: no prompt loses a rollout when the budget grows.

    Args:
        weights: [Q] variance of each prompt's reward, finite, >= 0 (unit: ``p (1 - p)``, see
            :mod:`allotment.pricing.weights`); or a :class:`~allotment.pricing.Price` for any other convex cost, which
            then stands in for ``estimator``. All zero: the budget is spent evenly.
        budget: C, rollouts to spend in total.
        lower: fewest rollouts of a prompt, one number or [Q]; not below ``estimator.minimum_count``.
        upper: most rollouts of a prompt, one number or [Q].
        estimator: ``"rloo"``, ``"dr_grpo"`` or an :class:`~allotment.pricing.Estimator`.
        tie_keys: [Q] distinct, comparable keys, such as prompt ids; the result then follows the prompts when the batch
            is reordered.
        seed: breaks ties by a random order of this seed instead.

    Raises:
        InvalidInputError: empty batch, a weight NaN, infinite or negative, a bound or budget that is not an integer,
            lower above upper or below where the estimator's variance is convex, a price that is not convex and
            falling, tie keys that do not order the prompts.
        InfeasibleBudgetError: the budget is below the sum of the lower bounds or above that of the upper bounds.
    """
    problem = Problem.of(weights, budget, lower=lower, upper=upper, estimator=estimator, tie_keys=tie_keys, seed=seed)
    room = problem.budget - int(problem.lower.sum())
    return problem.allocation(problem.lower + largest_gains(problem.gains, room, problem.rank))


def largest_gains(gains_QK: FloatArray, n_units: int, rank_Q: IntArray) -> IntArray:
    """[Q] how many of the ``n_units`` largest entries of ``gains_QK`` lie in each row.

    Equal entries are taken by column, then by ``rank_Q``; so where rows fall, what is taken of a row is its beginning
    (after entries that are never taken because they are below all others).
    """
    if n_units == 0:
        return np.zeros(len(gains_QK), dtype=np.int64)
    place = gains_QK.size - n_units
    threshold = np.partition(gains_QK, place, axis=None)[place]
    taken_Q: IntArray = np.count_nonzero(gains_QK > threshold, axis=1)
    tied_QK = gains_QK == threshold
    left = n_units - int(taken_Q.sum())
    filled_K = np.cumsum(np.count_nonzero(tied_QK, axis=0))
    column = int(np.searchsorted(filled_K, left))  # the column in which the units run out
    taken_Q += np.count_nonzero(tied_QK[:, :column], axis=1)
    if column:
        left -= int(filled_K[column - 1])
    rows = np.flatnonzero(tied_QK[:, column])
    taken_Q[rows[np.argsort(rank_Q[rows])[:left]]] += 1
    return taken_Q
