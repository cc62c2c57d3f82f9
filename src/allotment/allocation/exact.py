"""The problem of every split, its checks and results; and the exact split: the largest gains of the whole batch.

Minimise ``sum_q f_q(n_q)`` over integers with ``sum_q n_q = C`` and ``L_q <= n_q <= U_q`` (VIP, arXiv 2602.01601,
equations 5 and 6). With every ``f_q`` convex, the optimum takes the ``C - sum L`` largest of all gains
``f_q(n) - f_q(n + 1)`` (greedy of Gross 1956 and Fox 1966; here one selection from the table of gains instead of a
heap, as in Frederickson and Johnson 1982). No relaxation, no rounding.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from allotment.checks import check_vector
from allotment.errors import InfeasibleBudgetError, InvalidInputError
from allotment.pricing import Estimator, Price, WeightedPrice, get_estimator
from allotment.types import Allocation, FloatArray, IntArray

Bound = int | npt.ArrayLike
"""A bound for all prompts, or one per prompt [Q]."""


def check_bounds(
    budget: int, lower: Bound, upper: Bound, *, n_prompts: int, minimum_count: int
) -> tuple[int, IntArray, IntArray]:
    """The budget and both bounds as ``int, [Q], [Q]``; raises as :func:`check_interval` and :func:`check_budget`."""
    lower_Q, upper_Q = check_interval(lower, upper, n_prompts=n_prompts, minimum_count=minimum_count)
    return check_budget(budget, lower_Q, upper_Q), lower_Q, upper_Q


def check_budget(budget: int, lower_Q: IntArray, upper_Q: IntArray) -> int:
    """The budget as an int; InvalidInputError if it is none, InfeasibleBudgetError outside the sums of the bounds."""
    try:
        if isinstance(budget, bool | np.bool_):
            raise TypeError
        budget = operator.index(budget)
    except TypeError:
        raise InvalidInputError(
            "the budget is not an integer", got=repr(budget), allowed="a whole number of rollouts", fix="pass an int"
        ) from None
    n_prompts, least, most = len(lower_Q), int(lower_Q.sum()), int(upper_Q.sum())
    if not least <= budget <= most:
        raise InfeasibleBudgetError(
            "no allocation within the bounds spends the budget",
            got=f"budget {budget} for {n_prompts} prompts ({budget / n_prompts:.3g} per prompt)",
            allowed=f"{least} (sum of the lower bounds) to {most} (sum of the upper bounds)",
            fix="lower `lower`, or raise the budget, or take fewer prompts"
            if budget < least
            else "raise `upper`, or lower the budget, or take more prompts",
        )
    return budget


def check_interval(lower: Bound, upper: Bound, *, n_prompts: int, minimum_count: int) -> tuple[IntArray, IntArray]:
    """Both bounds as [Q].

    InvalidInputError: not integers, not one for all or one per prompt, lower above upper or below ``minimum_count``.
    """
    lower_Q, upper_Q = _per_prompt("lower", lower, n_prompts), _per_prompt("upper", upper, n_prompts)
    crossed_Q = lower_Q > upper_Q
    if crossed_Q.any():
        index = int(crossed_Q.argmax())
        raise InvalidInputError(
            "a lower bound is above its upper bound",
            got=f"lower {lower_Q[index]}, upper {upper_Q[index]} for prompt {index}",
            allowed="lower <= upper",
            fix="swap them, or widen the interval",
        )
    if (least := int(lower_Q.min())) < minimum_count:
        raise InvalidInputError(
            f"`lower` is {least}, but the variance is convex and falling only from n = {minimum_count}",
            got=f"lower = {least} at prompt {int(lower_Q.argmin())}",
            allowed=f"lower >= {minimum_count} (RLOO: 2, infinite at n = 1; Dr. GRPO: 3, whose gain from 2 to 3 "
            "rollouts, 0.028, is below that from 3 to 4, 0.035, so that taking the largest gains is not optimal)",
            fix=f"raise `lower` to {minimum_count}",
        )
    return lower_Q, upper_Q


def _per_prompt(name: str, bound: Bound, n_prompts: int) -> IntArray:
    array = np.asarray(bound)
    if array.dtype.kind not in "iu" or array.shape not in ((), (n_prompts,)):
        raise InvalidInputError(
            f"`{name}` is not a count of rollouts",
            got=f"{bound!r} (dtype {array.dtype}, shape {array.shape})",
            allowed=f"an integer, or {n_prompts} integers, one per prompt",
            fix=f"round `{name}` to whole rollouts",
        )
    return np.broadcast_to(array.astype(np.int64), (n_prompts,))


def tie_rank(n_prompts: int, tie_keys: npt.ArrayLike | None, seed: int | None) -> IntArray:
    """[Q] rank of each prompt among equals, 0 first: by ``tie_keys``, in a random order of ``seed``, or by position.

    InvalidInputError where both are given, or the keys are not Q distinct, comparable values.
    """
    if tie_keys is None:
        return np.arange(n_prompts) if seed is None else np.random.default_rng(seed).permutation(n_prompts)
    if seed is not None:
        raise InvalidInputError(
            "two rules for ties", got="tie_keys and seed", allowed="at most one", fix="drop one of them"
        )
    keys_Q = np.asarray(tie_keys)
    try:
        distinct, rank_Q = np.unique(keys_Q, return_inverse=True)
        fits = keys_Q.shape == distinct.shape == (n_prompts,)
    except TypeError:
        fits = False
    if not fits:
        raise InvalidInputError(
            "tie_keys do not order the prompts",
            got=f"an array of shape {keys_Q.shape}, or equal or incomparable keys",
            allowed=f"{n_prompts} distinct keys of one type",
            fix="pass the prompt ids, or a hash of each",
        )
    return rank_Q


NOT_A_UNIT = -1.0
"""Entry of the table of gains where the bounds of the prompt forbid the step; below every gain."""
ROUNDING = 1e-12
"""Increase of a gain, relative to the largest of its prompt, that is taken for rounding noise."""


class Limits(TypedDict, total=False):
    """The options that all splits share, by keyword."""

    lower: Bound
    """Fewest rollouts of a prompt, one number or [Q]; not below ``estimator.minimum_count``. Default 3."""
    upper: Bound
    """Most rollouts of a prompt, one number or [Q]. Default 32."""
    estimator: str | Estimator
    """``"rloo"``, ``"dr_grpo"`` or an :class:`~allotment.pricing.Estimator`. Default ``"rloo"``."""
    tie_keys: npt.ArrayLike | None
    """[Q] distinct, comparable keys, such as prompt ids: of equal gains the one first by key is taken first, and the
    result follows the prompts when the batch is reordered. Default: the first by position."""
    seed: int | None
    """Breaks ties by a random order of this seed instead."""


def allocate_exact(weights: npt.ArrayLike | Price, budget: int, **limits: Unpack[Limits]) -> Allocation:
    """The counts of least total variance: minimise ``sum_q a_q g(n_q)`` exactly, over integers, spending the budget.

    O(Q (U - L)) time and memory. Where gains are equal, the prompt with fewer rollouts comes first, then the one first
    by ``tie_keys``, ``seed`` or position. Optima are nested: no prompt loses a rollout when the budget grows.

    Args:
        weights: [Q] variance of each prompt's reward, finite, >= 0 (unit: ``p (1 - p)``, see
            :mod:`allotment.pricing.price`); or a :class:`~allotment.pricing.Price` for any other convex cost, which
            then stands in for ``estimator``. All zero: the budget is spent evenly.
        budget: C, rollouts to spend in total.
        **limits: ``lower=3``, ``upper=32``, ``estimator="rloo"``, ``tie_keys=None``, ``seed=None``; see
            :class:`Limits`.

    Raises:
        InvalidInputError: empty batch, a weight NaN, infinite or negative, a bound or budget that is not an integer,
            lower above upper or below where the estimator's variance is convex, a price that is not convex and
            falling, tie keys that do not order the prompts.
        InfeasibleBudgetError: the budget is below the sum of the lower bounds or above that of the upper bounds.
    """
    problem = Problem.of(weights, budget, **limits)
    room = problem.budget - int(problem.lower.sum())
    return problem.allocation(problem.lower + largest_gains(problem.gains, room, problem.rank))


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
    def of(cls, weights: npt.ArrayLike | Price, budget: int, **limits: Unpack[Limits]) -> Problem:
        """Check everything; arguments and errors of :func:`allocate_exact`."""
        problem = cls.without_budget(weights, **limits)
        return replace(problem, budget=check_budget(budget, problem.lower, problem.upper))

    @classmethod
    def without_budget(
        cls,
        weights: npt.ArrayLike | Price,
        *,
        lower: Bound = 3,
        upper: Bound = 32,
        estimator: str | Estimator = "rloo",
        tie_keys: npt.ArrayLike | None = None,
        seed: int | None = None,
    ) -> Problem:
        """The same with all the rollouts that the upper bounds admit, for budgets that are not counted in rollouts."""
        if isinstance(weights, Price):
            price = weights
            if len(price) == 0:
                check_vector("price", [])
        else:
            price = WeightedPrice(check_vector("weight", weights), get_estimator(estimator))
        lower_Q, upper_Q = check_interval(lower, upper, n_prompts=len(price), minimum_count=price.minimum_count)
        return cls(price, int(upper_Q.sum()), lower_Q, upper_Q, tie_rank(len(price), tie_keys, seed))

    @cached_property
    def first(self) -> int:
        """The count that column 0 of :attr:`gains` steps up from."""
        return int(self.lower.min())

    @cached_property
    def gains(self) -> FloatArray:
        """[Q, K] gain of the step from ``first + k`` to ``first + k + 1``; ``NOT_A_UNIT`` outside the bounds.

        Rows fall. Columns stop at the last step the budget can pay, plus one for the certificate. InvalidInputError
        where the price is not convex and falling within the bounds.
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
        inside_QK = (grid_K >= self.lower[:, None]) & (grid_K < reach_Q[:, None])
        return np.where(inside_QK, _falling(gains_QK, inside_QK, self.first), NOT_A_UNIT)

    def level_counts(self, is_paid: Callable[[IntArray], bool]) -> tuple[IntArray, IntArray]:
        """[Q] the largest equal count that is paid for, within the bounds; and whose next rollout is open, by rank."""
        low, high = self.first, int(self.upper.max())
        while low < high:
            level = (low + high + 1) // 2
            low, high = (level, high) if is_paid(np.clip(level, self.lower, self.upper)) else (low, level - 1)
        open_S = np.flatnonzero((self.lower <= low) & (self.upper > low))
        return np.clip(low, self.lower, self.upper), open_S[np.argsort(self.rank[open_S])]

    def uniform_counts(self) -> IntArray:
        """[Q] the budget split evenly within the bounds; what is left over goes by rank."""
        counts_Q, open_S = self.level_counts(lambda counts_Q: int(counts_Q.sum()) <= self.budget)
        counts_Q[open_S[: self.budget - int(counts_Q.sum())]] += 1
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


def _falling(gains_QK: FloatArray, inside_QK: npt.NDArray[np.bool_], first: int) -> FloatArray:
    """``gains_QK`` where rows fall and stay >= 0 within the bounds; rounding noise is taken out, more is refused."""
    wrong_QK = ~((gains_QK >= 0.0) & (gains_QK < np.inf))
    wrong_QK[:, 1:] |= gains_QK[:, 1:] > gains_QK[:, :-1]
    if not wrong_QK.any():
        return gains_QK
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
