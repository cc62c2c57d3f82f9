"""What a reward function of one's own gives back: a number, or None, for each completion."""

from __future__ import annotations

import inspect
from functools import partial
from numbers import Real
from typing import Any

import numpy as np

from allotment.errors import RewardMismatchError
from allotment.trainers.trl.own_rewards import RewardFunction, name_of


class Checked(partial):  # type: ignore[type-arg]
    """A reward function, asynchronous or not, whose rewards are checked. TRL, and whoever reads its code or arguments,
    sees the function itself.
    """

    def __new__(cls, function: RewardFunction) -> Checked:
        """Of one function."""
        made = super().__new__(cls, function)
        made.__name__ = name_of(function)  # type: ignore[attr-defined]
        return made

    def __call__(self, /, *args: Any, **keywords: Any) -> Any:
        """The rewards of ``completions``; RewardMismatchError where they are none."""
        came, count = super().__call__(*args, **keywords), len(keywords["completions"])
        if inspect.isawaitable(came):
            return _later(came, name_of(self), count)
        return checked_rewards(came, name_of(self), count)


async def _later(came: Any, name: str, count: int) -> Any:
    return checked_rewards(await came, name, count)


def checked_rewards(came: Any, name: str, count: int) -> Any:
    """Rewards as they came; RewardMismatchError unless they are ``count`` numbers or None."""
    values = came.tolist() if hasattr(came, "tolist") else came
    if not isinstance(values, list | tuple):
        raise _refused(name, f"{type(came).__name__}: {str(came)[:80]}", count)
    if len(values) != count:
        raise _refused(name, f"{len(values)} rewards for {count} completions", count)
    for value in values:
        if value is not None and not isinstance(value, Real | np.number) and not _is_scalar(value):
            raise _refused(name, f"{value!r:.80} of type {type(value).__name__} among them", count)
    return came


def _is_scalar(value: Any) -> bool:
    """Whether it is a tensor or array of one number."""
    return hasattr(value, "item") and getattr(value, "ndim", None) == 0


def _refused(name: str, got: str, count: int) -> RewardMismatchError:
    return RewardMismatchError(
        f"the reward function {name} gave no reward for each completion",
        got=got,
        allowed=f"a list of {count} numbers, one for each entry of completions in its order; None where there is none",
        fix=f"return one for each of completions in {name}",
    )
