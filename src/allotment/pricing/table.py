"""A price from a table: any convex falling ``f_q(n)``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from allotment.errors import InvalidInputError
from allotment.types import FloatArray, IntArray


@dataclass(frozen=True)
class TablePrice:
    """``f_q(n) = costs[q, n - minimum_count]``: any convex falling function, tabulated.

    Tables from differences carry rounding noise; :func:`allotment.allocation.allocate_exact` forgives increases of a
    gain up to 1e-12 of the largest gain of its prompt, and refuses larger ones.
    """

    costs: FloatArray
    """[Q, K] cost of n = ``minimum_count``, ``minimum_count`` + 1, ... rollouts."""
    minimum_count: int
    """The n of the first column."""

    def __post_init__(self) -> None:
        costs_QK = np.asarray(self.costs, dtype=np.float64)
        if costs_QK.ndim != 2:
            raise InvalidInputError(
                "a price table has one row per prompt and one column per count",
                got=f"an array of shape {costs_QK.shape}",
                allowed="[Q, K]",
                fix="tabulate f_q(n) for every n from `minimum_count` to the upper bound",
            )
        object.__setattr__(self, "costs", costs_QK)

    def __len__(self) -> int:
        return len(self.costs)

    def gains(self, grid_K: IntArray) -> FloatArray:
        """``f_q(n) - f_q(n + 1)``, [Q, K].

        Raises:
            InvalidInputError: the table ends before the largest n + 1 of the grid.
        """
        columns_K = self._columns(grid_K, last=int(grid_K.max(initial=self.minimum_count - 1)) + 1)
        return self.costs[:, columns_K] - self.costs[:, columns_K + 1]

    def cost(self, counts_Q: IntArray) -> FloatArray:
        """``f_q(n_q)``, [Q].

        Raises:
            InvalidInputError: a count is outside the table.
        """
        columns_Q = self._columns(counts_Q, last=int(counts_Q.max()))
        return self.costs[np.arange(len(self)), columns_Q]

    def _columns(self, counts: npt.NDArray[np.int64], *, last: int) -> IntArray:
        end = self.minimum_count + self.costs.shape[1] - 1
        first = int(counts.min(initial=last))
        if last > end or first < self.minimum_count:
            raise InvalidInputError(
                "the price table does not reach the counts asked for",
                got=f"counts {first} to {last}",
                allowed=f"{self.minimum_count} to {end}, the columns of the table",
                fix="tabulate up to the upper bound, or lower the upper bound",
            )
        return counts - self.minimum_count
