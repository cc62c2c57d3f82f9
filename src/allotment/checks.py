"""Checks of settings that many parts share."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

from allotment.errors import InvalidInputError


def check_setting(name: str, value: object, is_allowed: bool, allowed: str) -> None:
    """Raise :class:`InvalidInputError` naming the hyper-parameter unless ``is_allowed``."""
    if not is_allowed:
        raise InvalidInputError(
            f"{name} is outside its range", got=value, allowed=allowed, fix=f"choose another {name}"
        )


def check_choice(setting: str, name: object, names: object) -> None:
    """Raise :class:`~allotment.errors.InvalidInputError` unless ``name`` is one of the ``Literal`` ``names``."""
    check_setting(setting, repr(name), name in get_args(names), ", ".join(get_args(names)))


def check_whole(setting: str, value: object, least: int) -> None:
    """Raise :class:`~allotment.errors.InvalidInputError` unless ``value`` is an int from ``least`` on."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    check_setting(setting, value, is_whole and value >= least, f"a whole number >= {least}")  # type: ignore[operator]


def whole(name: str, value: object) -> int:
    """``value`` as a plain int: numpy's cannot be saved, and a float or bool is a mistake."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InvalidInputError(
            f"`{name}` is not a whole number", got=repr(value), allowed="an int", fix=f"pass int({name})"
        )
    return int(value)


def pair_of_wholes(bounds: Any) -> tuple[int, int]:
    """``bounds`` as a pair of plain ints."""
    try:
        lower, upper = bounds
    except (TypeError, ValueError):
        raise InvalidInputError(
            "`bounds` is not a pair",
            got=repr(bounds),
            allowed="(least, most) rollouts of a prompt",
            fix="pass bounds=(3, 32)",
        ) from None
    return whole("lower bound", lower), whole("upper bound", upper)
