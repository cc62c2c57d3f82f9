"""One place that decides whether a budget and its bounds make sense."""

from __future__ import annotations

import operator

import numpy as np
import numpy.typing as npt

from allotment.errors import InfeasibleBudgetError, InvalidInputError
from allotment.types import IntArray

Bound = int | npt.ArrayLike
"""A bound for all prompts, or one per prompt [Q]."""


def check_bounds(
    budget: int, lower: Bound, upper: Bound, *, n_prompts: int, minimum_count: int
) -> tuple[int, IntArray, IntArray]:
    """The budget and both bounds as ``int, [Q], [Q]``.

    Raises:
        InvalidInputError: not integers, of another length than the batch, lower above upper, or lower below
            ``minimum_count``.
        InfeasibleBudgetError: the budget is outside [sum of lower, sum of upper].
    """
    budget = _check_budget(budget)
    lower_Q, upper_Q = check_interval(lower, upper, n_prompts=n_prompts, minimum_count=minimum_count)
    least, most = int(lower_Q.sum()), int(upper_Q.sum())
    if not least <= budget <= most:
        raise InfeasibleBudgetError(
            "no allocation within the bounds spends the budget",
            got=f"budget {budget} for {n_prompts} prompts ({budget / n_prompts:.3g} per prompt)",
            allowed=f"{least} (sum of the lower bounds) to {most} (sum of the upper bounds)",
            fix="lower `lower`, or raise the budget, or take fewer prompts"
            if budget < least
            else "raise `upper`, or lower the budget, or take more prompts",
        )
    return budget, lower_Q, upper_Q


def check_interval(lower: Bound, upper: Bound, *, n_prompts: int, minimum_count: int) -> tuple[IntArray, IntArray]:
    """Both bounds as [Q].

    Raises:
        InvalidInputError: as :func:`check_bounds`.
    """
    lower_Q = _check_bound("lower", lower, n_prompts)
    upper_Q = _check_bound("upper", upper, n_prompts)
    _check_order(lower_Q, upper_Q)
    _check_convex(lower_Q, minimum_count)
    return lower_Q, upper_Q


def tie_rank(n_prompts: int, tie_keys: npt.ArrayLike | None, seed: int | None) -> IntArray:
    """[Q] rank of each prompt among equals, 0 first: by ``tie_keys``, in a random order of ``seed``, or by position.

    Raises:
        InvalidInputError: both are given, or the keys are not Q distinct, comparable values.
    """
    if tie_keys is None:
        return np.arange(n_prompts) if seed is None else np.random.default_rng(seed).permutation(n_prompts)
    if seed is not None:
        raise InvalidInputError(
            "two rules for ties", got="tie_keys and seed", allowed="at most one", fix="drop one of them"
        )
    keys_Q = np.asarray(tie_keys)
    try:
        distinct = keys_Q.shape == (n_prompts,) and len(np.unique(keys_Q)) == n_prompts
        order_Q = np.argsort(keys_Q)
    except TypeError:
        distinct = False
    if not distinct:
        raise InvalidInputError(
            "tie_keys do not order the prompts",
            got=f"an array of shape {keys_Q.shape}, or equal or incomparable keys",
            allowed=f"{n_prompts} distinct keys of one type",
            fix="pass the prompt ids, or a hash of each",
        )
    rank_Q = np.empty(n_prompts, dtype=np.int64)
    rank_Q[order_Q] = np.arange(n_prompts)
    return rank_Q


def _check_budget(budget: int) -> int:
    try:
        if isinstance(budget, bool | np.bool_):
            raise TypeError
        return operator.index(budget)
    except TypeError:
        raise InvalidInputError(
            "the budget is not an integer", got=repr(budget), allowed="a whole number of rollouts", fix="pass an int"
        ) from None


def _check_bound(name: str, bound: Bound, n_prompts: int) -> IntArray:
    array = np.asarray(bound)
    if array.dtype.kind not in "iu" or array.shape not in ((), (n_prompts,)):
        raise InvalidInputError(
            f"`{name}` is not a count of rollouts",
            got=f"{bound!r} (dtype {array.dtype}, shape {array.shape})",
            allowed=f"an integer, or {n_prompts} integers, one per prompt",
            fix=f"round `{name}` to whole rollouts",
        )
    return np.broadcast_to(array.astype(np.int64), (n_prompts,))


def _check_order(lower_Q: IntArray, upper_Q: IntArray) -> None:
    crossed_Q = lower_Q > upper_Q
    if crossed_Q.any():
        index = int(crossed_Q.argmax())
        raise InvalidInputError(
            "a lower bound is above its upper bound",
            got=f"lower {lower_Q[index]}, upper {upper_Q[index]} for prompt {index}",
            allowed="lower <= upper",
            fix="swap them, or widen the interval",
        )


def _check_convex(lower_Q: IntArray, minimum_count: int) -> None:
    if (least := int(lower_Q.min())) < minimum_count:
        raise InvalidInputError(
            f"`lower` is {least}, but the variance is convex and falling only from n = {minimum_count}",
            got=f"lower = {least} at prompt {int(lower_Q.argmin())}",
            allowed=f"lower >= {minimum_count} (RLOO: 2, infinite at n = 1; Dr. GRPO: 3, whose gain from 2 to 3 "
            "rollouts, 0.028, is below that from 3 to 4, 0.035, so that taking the largest gains is not optimal)",
            fix=f"raise `lower` to {minimum_count}",
        )
