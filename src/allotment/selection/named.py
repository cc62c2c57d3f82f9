"""Selectors by name, for command lines and configuration files."""

from __future__ import annotations

from typing import Any, Literal, get_args

from allotment.errors import ConfigError
from allotment.methods.selectors.completion_pruning import CompletionPruning
from allotment.methods.selectors.contextual_bandit import ContextualBandit
from allotment.methods.selectors.pods import PODS
from allotment.methods.selectors.subsets import MaxReward, RandomSubset
from allotment.selection.base import Selector

SelectorName = Literal["pods", "max-reward", "random", "completion-pruning", "contextual-bandit"]
NAMES: tuple[SelectorName, ...] = get_args(SelectorName)


def make_selector(name: str, **settings: Any) -> Selector:
    """The selector of that name.

    Args:
        name: one of :data:`NAMES`.
        settings: what its constructor takes.

    Raises:
        ConfigError: there is no selector of that name, or it does not know a setting.
        InvalidInputError: a setting is not allowed.
    """
    if name not in NAMES:
        raise ConfigError("unknown selector", got=repr(name), allowed=", ".join(NAMES), fix="choose one of them")
    constructors: dict[str, Any] = {
        "pods": PODS,
        "max-reward": MaxReward,
        "random": RandomSubset,
        "completion-pruning": CompletionPruning,
        "contextual-bandit": ContextualBandit,
    }
    try:
        return constructors[name](**settings)  # type: ignore[no-any-return]
    except TypeError as error:
        raise ConfigError(
            f"the selector {name!r} cannot be made with these settings",
            got=error,
            allowed="the arguments of its class in allotment.selection",
            fix="correct the setting's name",
        ) from error
