"""Planners by name, from what a trainer offers and what a person sets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

from allotment.errors import ConfigError
from allotment.planning.planner import Planner
from allotment.registry import PLANNERS, PREDICTORS

_ABOUT_PROMPTS = ("embeddings", "ids", "features")


def make_planner(name: str, *, offered: Mapping[str, Any] | None = None, **settings: Any) -> Planner:
    """The planner of that name.

    Args:
        name: one of ``PLANNERS.names`` (:mod:`allotment.registry`, docs/methods.md).
        offered: what is known beside the settings, such as ``embeddings``, ``ids``, ``features``,
            ``success_threshold``; each reaches a planner whose constructor takes it. None values are no offer.
        settings: what its constructor takes; ``predictor`` may be the name of one (``PREDICTORS.names``).

    Raises:
        ConfigError: there is no planner or predictor of that name, something it needs is missing, or it does not know
            a setting.
        InvalidInputError: a setting is not allowed.
    """
    name = PLANNERS.canonical(name)
    entry = PLANNERS[name]
    offered = {key: value for key, value in (offered or {}).items() if value is not None}
    missing = [need for need in entry.needs if need not in offered and settings.get(need) is None]
    if missing:
        raise ConfigError(
            f"the planner {name!r} predicts from {' and '.join(missing).replace('_', ' ')} of the prompts",
            got=f"no {', '.join(missing)}",
            allowed=f"{missing[0].replace('_', ' ')} of every prompt",
            fix="give them, or use 'vip', which learns from each prompt's own record too",
        )
    if isinstance(settings.get("predictor"), str):
        settings["predictor"] = make_predictor(settings["predictor"], offered)
        offered = {key: value for key, value in offered.items() if key not in _ABOUT_PROMPTS}
    taken = parameters(entry.make)
    try:
        planner = entry.make(**{key: value for key, value in offered.items() if key in taken} | settings)
    except TypeError as error:
        raise ConfigError(
            f"the planner {name!r} cannot be made with these settings",
            got=error,
            allowed="the arguments of its class (docs/methods.md)",
            fix="correct the setting's name",
        ) from error
    planner.name = name
    return planner


def make_predictor(name: str, offered: Mapping[str, Any]) -> Any:
    """The predictor of that name, with the ``embeddings``, ``ids`` and ``features`` offered where it takes them.

    ConfigError where there is no predictor of that name, or it needs embeddings and none are offered.
    """
    entry = PREDICTORS[name]
    if entry.embeddings == "needed" and offered.get("embeddings") is None:
        raise ConfigError(
            f"the predictor {name!r} needs embeddings of the prompts",
            got="no embeddings",
            allowed=", ".join(other for other, e in PREDICTORS if e.embeddings != "needed"),
            fix="give embeddings, or choose one of these",
        )
    taken = parameters(entry.make)
    return entry.make(**{key: offered[key] for key in _ABOUT_PROMPTS if key in taken and offered.get(key) is not None})


def parameters(make: Callable[..., Any]) -> frozenset[str]:
    """The names of what a function or a class takes, those of ``**common: Unpack[...]`` too."""
    if isinstance(make, partial):
        return parameters(make.func)
    function: Any = getattr(make, "__init__") if isinstance(make, type) else make  # noqa: B009 (mypy: unsound access)
    names = set()
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            names.add(name)
        elif str(parameter.annotation).startswith("Unpack["):
            (common,) = get_args(eval(parameter.annotation, function.__globals__))
            names |= set(common.__annotations__)
    return frozenset(names)
