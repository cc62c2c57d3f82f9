"""Exact splits of several budgets of one step at once: optima are nested, so one order of the gains holds them all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from allotment.allocation.exact import Problem, check_budget
from allotment.pricing import Price
from allotment.types import IntArray


def nested_counts(price: Price, budgets: Sequence[int], lower: int, upper: int, tie_keys: IntArray) -> IntArray:
    """[G, B] what :func:`~allotment.allocation.allocate_exact` gives the B prompts at each of G >= 1 budgets.

    Raises as it does: a budget that the bounds do not admit, a price that is not convex.
    """
    problem = Problem.without_budget(price, lower=lower, upper=upper, tie_keys=tie_keys)
    for budget in {min(budgets), max(budgets)}:
        check_budget(budget, problem.lower, problem.upper)
    rooms = [budget - int(problem.lower.sum()) for budget in budgets]
    counts_GB = np.tile(problem.lower, (len(budgets), 1))
    if lower == upper:
        return counts_GB
    by_rank_B = np.argsort(problem.rank)
    gains_KB = problem.gains[by_rank_B].T  # equal gains stand by column, then by rank
    order = np.argsort(-gains_KB, axis=None, kind="stable")[: max(rooms)]
    row = by_rank_B[order % len(price)]
    for counts_B, room in zip(counts_GB, rooms, strict=True):
        counts_B += np.bincount(row[:room], minlength=len(price))
    return counts_GB
