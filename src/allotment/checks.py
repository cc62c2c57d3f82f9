"""Checks of settings and vectors that many parts share."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

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
    """``value`` as a plain int of 64 bits: numpy's cannot be saved, and a float or bool is a mistake."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)
    if not is_whole or not -LARGEST <= value <= LARGEST:  # type: ignore[operator]
        raise InvalidInputError(
            f"`{name}` is not a whole number", got=shown(value), allowed="an int of 64 bits", fix=f"pass int({name})"
        )
    return int(value)  # type: ignore[call-overload, no-any-return]


LARGEST = 2**63 - 1


def pair_of_wholes(bounds: Any) -> tuple[int, int]:
    """``bounds`` as a pair of plain ints."""
    try:
        lower, upper = iter(()) if isinstance(bounds, Mapping | Set) else bounds
    except (TypeError, ValueError):
        raise InvalidInputError(
            "`bounds` is not a pair",
            got=shown(bounds),
            allowed="(least, most) rollouts of a prompt",
            fix="pass bounds=(3, 32)",
        ) from None
    return whole("lower bound", lower), whole("upper bound", upper)


def check_probabilities(success_probabilities: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """``success_probabilities`` as a non-empty float vector [Q], all in [0, 1]; raises as :func:`check_vector`."""
    return check_vector("success probability", success_probabilities, high=1.0)


def check_vector(what: str, values: npt.ArrayLike, *, high: float | None = None) -> npt.NDArray[np.float64]:
    """``values`` as a non-empty float vector [Q] whose entries are finite, >= 0 and (if given) <= ``high``.

    InvalidInputError where they are not; it names the first such index and its value.
    """
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"a {what} is not a number", got=error, allowed="real numbers", fix="pass a vector of floats"
        ) from error
    if vector.ndim != 1 or vector.size == 0:
        raise InvalidInputError(
            f"the batch needs one {what} per prompt",
            got=f"an array of shape {vector.shape}",
            allowed="a non-empty vector [Q]",
            fix="skip empty batches; pass one number per prompt",
        )
    bad_Q = ~(np.isfinite(vector) & (vector >= 0.0))
    if high is not None:
        bad_Q |= vector > high
    if bad_Q.any():
        index = int(bad_Q.argmax())
        raise InvalidInputError(
            f"the {what} of prompt {index} is outside its domain",
            got=f"{vector[index]} at index {index} ({int(bad_Q.sum())} such of {vector.size})",
            allowed="finite, >= 0" if high is None else f"in [0, {high:g}]",
            fix="look at the predictor or the file this number comes from",
        )
    return vector


def check_real(values: object, array: npt.NDArray[Any]) -> None:
    """Raise TypeError where an array of another kind than ints, floats and bools holds more than real numbers.

    numpy would read texts as numbers, drop the imaginary part, count the days of a date, and forget what is masked.
    ``values``: what ``array`` was made of.
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.getmaskarray(values).any():
        raise TypeError("some of them are masked")
    if array.dtype.kind not in "biufOV" or array.dtype.names:  # V: floats of other packages, such as bfloat16
        raise TypeError(f"an array of {array.dtype}")
    if array.dtype.kind == "O":
        strange = str | bytes | bytearray | complex | np.complexfloating | np.datetime64 | np.timedelta64
        for value in array.flat:
            if isinstance(value, strange):
                raise TypeError(f"{shown(value)} of type {type(value).__name__} among them")


def shown(value: object, longest: int = 200) -> str:
    """A value in an error text, cut; its type where it cannot be shown."""
    try:
        text = repr(value)
    except Exception:  # as of an int of more than 4,300 digits
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= longest else f"{text[:longest]}..."
