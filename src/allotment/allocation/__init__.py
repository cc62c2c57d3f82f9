"""Split the budget: integers within bounds that sum to it exactly."""

from typing import TYPE_CHECKING

from allotment.allocation.exact import Limits, Problem, allocate_exact
from allotment.lazy import lazily

if TYPE_CHECKING:
    from allotment.allocation.splits import (
        METHODS,
        Method,
        RelaxedCounts,
        TokenAllocation,
        allocate,
        allocate_relaxed,
        allocate_tokens,
        inverse_accuracy,
        inverse_variance,
        relaxed_counts,
        uniform,
    )

__getattr__ = lazily(
    __name__,
    {
        "splits": "METHODS Method RelaxedCounts TokenAllocation allocate allocate_relaxed allocate_tokens "
        "inverse_accuracy inverse_variance relaxed_counts uniform"
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
