"""Split the budget: integers within bounds that sum to it exactly."""

from typing import TYPE_CHECKING

from allotment.allocation.exact import Limits, Problem, allocate_exact
from allotment.lazy import lazily

if TYPE_CHECKING:
    from allotment.allocation.dispatch import METHODS, Method, allocate
    from allotment.allocation.heuristics import inverse_accuracy, inverse_variance, uniform
    from allotment.allocation.relaxed import RelaxedCounts, allocate_relaxed, relaxed_counts
    from allotment.allocation.tokens import TokenAllocation, allocate_tokens

__getattr__ = lazily(
    __name__,
    {
        "dispatch": "METHODS Method allocate",
        "heuristics": "inverse_accuracy inverse_variance uniform",
        "relaxed": "RelaxedCounts allocate_relaxed relaxed_counts",
        "tokens": "TokenAllocation allocate_tokens",
    },
)

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
    "uniform",
]
