"""Whether a budget, its bounds and the order among equals make sense: decided in this file alone."""

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
    """The budget and both bounds as ``int, [Q], [Q]``; raises as :func:`check_interval` and :func:`check_budget`."""
    lower_Q, upper_Q = check_interval(lower, upper, n_prompts=n_prompts, minimum_count=minimum_count)
    return check_budget(budget, lower_Q, upper_Q), lower_Q, upper_Q


def check_budget(budget: int, lower_Q: IntArray, upper_Q: IntArray) -> int:
    """The budget as an int.

    Raises:
        InvalidInputError: it is not an integer.
        InfeasibleBudgetError: it is outside [sum of lower, sum of upper].
    """
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

    Raises:
        InvalidInputError: not integers, not one for all or one per prompt, lower above upper or below
            ``minimum_count``.
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
