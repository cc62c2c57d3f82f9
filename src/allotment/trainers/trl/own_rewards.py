"""Reward functions of one's own, named on the command line as ``module:function`` or ``file.py:function``."""

from __future__ import annotations

import difflib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from allotment.errors import ConfigError

RewardFunction = Callable[..., Any]
FORMS = "module:function, or path/to/file.py:function"
BY_TRL = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""What TRL hands to every reward function beside the columns of the data set."""


def load_reward(named: str) -> RewardFunction:
    """The function that ``module:function`` or ``path.py:function`` names; modules of the current folder count too.

    Raises:
        ConfigError: it is not of this form, there is no such module or file, it cannot be imported, it has no such
            function, or what has the name cannot be called.
    """
    place, colon, name = named.rpartition(":")
    if not (colon and place and name.isidentifier()):
        raise _refused(
            "a reward function is not named as one", repr(named), FORMS, "write the place, a colon, the name"
        )
    module = _from_file(Path(place), named) if place.endswith(".py") else _from_module(place, named)
    here = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    own = [key for key in here if not isinstance(vars(module)[key], type)]
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, own, n=1)
        fix = f"did you mean {place}:{near[0]}?" if near else "name one of them"
        raise _refused(f"{place} has no such function", name, ", ".join(own) or "nothing: it has none", fix)
    found: Any = getattr(module, name)
    if not callable(found) or isinstance(found, type):
        kind = f"{name}, a class" if isinstance(found, type) else f"{name}, of type {type(found).__name__}"
        fix = "name a function, or an object of the class that can be called"
        raise _refused("a reward function cannot be called", kind, ", ".join(own) or "a function", fix)
    function: RewardFunction = found
    return function


def check_columns(function: RewardFunction, named: str, columns: Sequence[str], *, tells_groups: bool) -> None:
    """Refuse a function that TRL cannot call with these columns of the data set: ConfigError.

    ``tells_groups``: whether functions that name ``group_ids`` are told them.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a built-in function, which says nothing of itself
        return
    handed = [*BY_TRL, *(column for column in columns if column not in ("prompt", "completion"))]
    handed += ["group_ids"] if tells_groups and "group_ids" in signature.parameters else []
    try:
        signature.bind(**dict.fromkeys(handed))
    except TypeError as error:
        raise _refused(
            f"the reward function {named} cannot be called as TRL calls reward functions",
            f"{error}: def {named.rpartition(':')[2]}{signature}",
            f"(completions, **columns): by name are passed {', '.join(handed)}",
            "take **columns for what is not read; further columns of a file are named in --reward-columns",
        ) from error


def check_names(names: Sequence[str]) -> None:
    """Refuse two reward functions of one name, which TRL's log could not tell apart: ConfigError."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        fix = "leave one out, or give a function another name"
        raise _refused("two reward functions of one name", ", ".join(twice), "each name once", fix)


def name_of(function: RewardFunction) -> str:
    """As TRL names it."""
    return str(getattr(function, "__name__", type(function).__name__))


def _from_file(path: Path, named: str) -> ModuleType:
    if not path.is_file():
        raise _refused(f"there is no file {path}", repr(named), FORMS, f"check the path, seen from {os.getcwd()}")
    key = f"allotment_reward_{path.stem}_{abs(hash(path.resolve())):x}"
    spec = spec_from_file_location(key, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[key] = module  # dataclasses and pickles of the file look there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[key]
        raise _not_imported(place=str(path), error=error) from error
    return module


def _from_module(place: str, named: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise _not_imported(place, error) from error
        fix = "check the name, start in the folder of the module, or name its file"
        raise _refused(f"there is no module {error.name!r}", repr(named), FORMS, fix) from error
    except Exception as error:
        raise _not_imported(place, error) from error


def _not_imported(place: str, error: Exception) -> ConfigError:
    got = f"{type(error).__name__}: {error}"
    return _refused(f"{place} cannot be imported", got, "a module that imports without an error", "mend it")


def _refused(wrong: str, got: str, allowed: str, fix: str) -> ConfigError:
    return ConfigError(wrong, got=got, allowed=allowed, fix=fix)
