"""Split the budget: integers within bounds that sum to it exactly."""

from allotment.allocation.integer import allocate_exact

__all__ = ["allocate_exact"]
