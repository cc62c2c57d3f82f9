"""The problem every allocator solves: minimise ``sum_q f_q(n_q)``, ``sum_q n_q = C``, ``L_q <= n_q <= U_q``, integers.

VIP (arXiv 2602.01601), equations 5 and 6. Inputs are checked here, once; results are made here, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from allotment.allocation.bounds import Bound, check_bounds, check_interval, tie_rank
from allotment.errors import InvalidInputError
from allotment.pricing import Estimator, Price, WeightedPrice, check_vector, get_estimator
from allotment.types import Allocation, FloatArray, IntArray

NOT_A_UNIT = -1.0
"""Entry of the table of gains where the bounds of the prompt forbid the step; below every gain."""
ROUNDING = 1e-12
"""Increase of a gain, relative to the largest of its prompt, that is taken for rounding noise."""


@dataclass(frozen=True)
class Problem:
    """A checked problem; make it with :meth:`of`."""

    price: Price
    """What the counts cost."""
    budget: int
    """C, rollouts to spend, all of them."""
    lower: IntArray
    """[Q] fewest rollouts of each prompt."""
    upper: IntArray
    """[Q] most rollouts of each prompt."""
    rank: IntArray
    """[Q] place of each prompt among equals, a permutation of 0..Q-1."""

    @classmethod
    def of(
        cls,
        weights: npt.ArrayLike | Price,
        budget: int,
        *,
        lower: Bound,
        upper: Bound,
        estimator: str | Estimator,
        tie_keys: npt.ArrayLike | None,
        seed: int | None,
    ) -> Problem:
        """Check everything; raises what :func:`allotment.allocation.allocate_exact` documents."""
        price = _price(weights, estimator)
        budget, lower_Q, upper_Q = check_bounds(
            budget, lower, upper, n_prompts=len(price), minimum_count=price.minimum_count
        )
        return cls(price, budget, lower_Q, upper_Q, tie_rank(len(price), tie_keys, seed))

    @classmethod
    def without_budget(
        cls,
        weights: npt.ArrayLike | Price,
        *,
        lower: Bound,
        upper: Bound,
        estimator: str | Estimator,
        tie_keys: npt.ArrayLike | None,
        seed: int | None,
    ) -> Problem:
        """The same with all the rollouts that the upper bounds admit, for budgets that are not counted in rollouts."""
        price = _price(weights, estimator)
        lower_Q, upper_Q = check_interval(lower, upper, n_prompts=len(price), minimum_count=price.minimum_count)
        return cls(price, int(upper_Q.sum()), lower_Q, upper_Q, tie_rank(len(price), tie_keys, seed))

    @cached_property
    def first(self) -> int:
        """The count that column 0 of :attr:`gains` steps up from."""
        return int(self.lower.min())

    @cached_property
    def gains(self) -> FloatArray:
        """[Q, K] gain of the step from ``first + k`` to ``first + k + 1``; ``NOT_A_UNIT`` outside the bounds.

        Rows fall. Columns stop at the last step the budget can pay, plus one for the certificate.

        Raises:
            InvalidInputError: the price is not convex and falling within the bounds.
        """
        reach_Q = np.minimum(self.upper, self.lower + (self.budget - int(self.lower.sum()) + 1))
        grid_K = np.arange(self.first, int(reach_Q.max()))
        gains_QK = np.asarray(self.price.gains(grid_K), dtype=np.float64)
        if gains_QK.shape != (len(self.lower), len(grid_K)):
            raise InvalidInputError(
                "the gains of the price have the wrong shape",
                got=gains_QK.shape,
                allowed=f"[Q, K] = {len(self.lower), len(grid_K)}",
                fix="return one row per prompt and one column per count of the grid",
            )
        if int(self.lower.max()) == self.first and int(reach_Q.min()) == int(reach_Q.max()):
            return _falling(gains_QK, None, self.first)
        inside_QK = (grid_K >= self.lower[:, None]) & (grid_K < reach_Q[:, None])
        return np.where(inside_QK, _falling(gains_QK, inside_QK, self.first), NOT_A_UNIT)

    def uniform_counts(self) -> IntArray:
        """[Q] the budget split evenly within the bounds; what is left over goes by rank."""
        low, high = self.first, int(self.upper.max())
        while low < high:  # the largest level that the budget pays for
            level = (low + high + 1) // 2
            if int(np.clip(level, self.lower, self.upper).sum()) <= self.budget:
                low = level
            else:
                high = level - 1
        counts_Q: IntArray = np.clip(low, self.lower, self.upper)
        left = self.budget - int(counts_Q.sum())
        if left:
            open_Q = np.flatnonzero((self.lower <= low) & (self.upper > low))
            counts_Q[open_Q[np.argsort(self.rank[open_Q])[:left]]] += 1
        return counts_Q

    def multiplier(self, counts_Q: IntArray, costs_Q: npt.ArrayLike = 1.0) -> tuple[float, float]:
        """The certificate of :class:`~allotment.types.Allocation`: (largest next gain, smallest last gain) per cost."""
        costs_Q = np.broadcast_to(costs_Q, counts_Q.shape)
        columns_Q = counts_Q - self.first
        rising_Q = np.flatnonzero(counts_Q < self.upper)
        falling_Q = np.flatnonzero(counts_Q > self.lower)
        next_gain = (self.gains[rising_Q, columns_Q[rising_Q]] / costs_Q[rising_Q]).max(initial=0.0)
        last_gain = (self.gains[falling_Q, columns_Q[falling_Q] - 1] / costs_Q[falling_Q]).min(initial=np.inf)
        return float(next_gain), float(last_gain)

    def allocation(self, counts_Q: IntArray) -> Allocation:
        """The result that ``counts_Q`` [Q] achieve."""
        uniform = float(self.price.cost(self.uniform_counts()).sum())
        counts_Q.setflags(write=False)
        return Allocation(counts_Q, float(self.price.cost(counts_Q).sum()), uniform, self.multiplier(counts_Q))


def _price(weights: npt.ArrayLike | Price, estimator: str | Estimator) -> Price:
    if not isinstance(weights, Price):
        return WeightedPrice(check_vector("weight", weights), get_estimator(estimator))
    if len(weights) == 0:
        check_vector("price", [])
    return weights


def _falling(gains_QK: FloatArray, inside_QK: npt.NDArray[np.bool_] | None, first: int) -> FloatArray:
    """``gains_QK`` as it is where rows fall and stay >= 0 within the bounds; with rounding noise taken out if need be.

    Raises:
        InvalidInputError: more than rounding noise is wrong.
    """
    wrong_QK = ~((gains_QK >= 0.0) & (gains_QK < np.inf))
    wrong_QK[:, 1:] |= gains_QK[:, 1:] > gains_QK[:, :-1]
    if not wrong_QK.any():
        return gains_QK
    inside_QK = np.ones_like(wrong_QK) if inside_QK is None else inside_QK
    slack_Q1 = ROUNDING * np.where(inside_QK, gains_QK, 0.0).max(axis=1, keepdims=True)
    clean_QK = np.minimum.accumulate(np.where(inside_QK, np.maximum(gains_QK, 0.0), np.inf), axis=1)
    close_QK = (gains_QK >= -slack_Q1) & (gains_QK <= clean_QK + slack_Q1)
    bad_QK = inside_QK & ~(close_QK & (gains_QK < np.inf))
    if bad_QK.any():
        prompt, column = (int(index) for index in np.argwhere(bad_QK)[0])
        got = f"gain {gains_QK[prompt, column]:.6g} from {first + column} to {first + column + 1} rollouts"
        if column:
            got += f", after {gains_QK[prompt, column - 1]:.6g} for the rollout before"
        raise InvalidInputError(
            f"the price of prompt {prompt} is not convex and falling within its bounds",
            got=got,
            allowed="gains f(n) - f(n + 1) that are finite, >= 0 and never grow with n",
            fix="raise `lower` to where the price is convex, or use its lower convex envelope",
        )
    return clean_QK
