"""Split the budget: integers within bounds that sum to it exactly."""

from allotment.allocation.dispatch import METHODS, Method, allocate
from allotment.allocation.exact import Limits, Problem, allocate_exact
from allotment.allocation.heuristics import inverse_accuracy, inverse_variance, uniform
from allotment.allocation.relaxed import RelaxedCounts, allocate_relaxed, relaxed_counts, round_down_and_fill
from allotment.allocation.tokens import TokenAllocation, allocate_tokens

__all__ = [
    "METHODS",
    "Limits",
    "Method",
    "Problem",
    "RelaxedCounts",
    "TokenAllocation",
    "allocate",
    "allocate_exact",
    "allocate_relaxed",
    "allocate_tokens",
    "inverse_accuracy",
    "inverse_variance",
    "relaxed_counts",
    "round_down_and_fill",
    "uniform",
]
