"""The price of a batch: what its prompts' counts cost in variance.

Any object with the three members of :class:`Price` can be allocated exactly. :class:`WeightedPrice` is the common
separable case ``a_q g(n)``; :class:`TablePrice` takes any convex falling ``f_q(n)``, tabulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from allotment.errors import InvalidInputError
from allotment.pricing.estimator import Estimator
from allotment.types import FloatArray, IntArray


@runtime_checkable
class Price(Protocol):
    """``f_q(n)`` for the Q prompts of a batch; each f_q convex and falling from ``minimum_count`` on."""

    @property
    def minimum_count(self) -> int:
        """Smallest n at which every ``f_q`` is defined, convex and falling."""
        ...

    def __len__(self) -> int:
        """Q, the number of prompts."""
        ...

    def gains(self, grid_K: IntArray) -> FloatArray:
        """``f_q(n) - f_q(n + 1)`` for every n of the grid, [Q, K]; >= 0 and falling along K."""
        ...

    def cost(self, counts_Q: IntArray) -> FloatArray:
        """``f_q(n_q)``, [Q]."""
        ...


@dataclass(frozen=True)
class WeightedPrice:
    """``f_q(n) = a_q g(n)``: one weight per prompt, one curve for all."""

    weights: FloatArray
    """[Q] weight of each prompt, finite, >= 0; unit: variance of a reward."""
    estimator: Estimator
    """The curve g."""

    @property
    def minimum_count(self) -> int:
        """That of the estimator."""
        return self.estimator.minimum_count

    def __len__(self) -> int:
        return len(self.weights)

    def gains(self, grid_K: IntArray) -> FloatArray:
        """``a_q (g(n) - g(n + 1))``, [Q, K]."""
        return self.weights[:, None] * self.estimator.gain(grid_K)

    def cost(self, counts_Q: IntArray) -> FloatArray:
        """``a_q g(n_q)``, [Q]."""
        return self.weights * self.estimator.variance(counts_Q)


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
