"""What an objective declares: the place it fills, what else may stand beside it, how it is made; checks of settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from allotment.errors import ConfigError
from allotment.learning.advantages import AdvantageName

Place = Literal["advantages", "loss", "gate", "reward"]
"""Advantages of rollouts, the loss of a token, a factor on it, or the reward in the verifier's place."""


@dataclass(frozen=True)
class ObjectiveRow:
    """An objective in words: its row in docs/methods.md."""

    changes: str
    limit: str
    """Limit to a known baseline."""
    source: str
    deviations: str


@dataclass(frozen=True)
class ObjectiveEntry:
    """The declaration of an objective by name, beside its class."""

    place: Place
    """One objective of a run fills it; gates may be several."""
    make: Callable[..., Any] | None = None
    """Makes it from its settings and what it takes of ``width``, ``seed``, ``rewards``, ``lab``, ``mixture``; None for
    advantages of :mod:`allotment.learning.advantages`."""
    advantage: AdvantageName | None = None
    """The estimator that it is, or whose advantages its loss is made for."""
    whole: bool = False
    """Whether the loss is one of whole trajectories, beside which gates and token means have no meaning."""
    preferences: bool = False
    """Whether it trains on pairs of rollouts."""
    row: ObjectiveRow | None = None


def check_setting(objective: str, setting: str, value: object, is_allowed: bool, allowed: str) -> None:
    """Raise ConfigError, naming objective and setting, unless ``is_allowed``; ``allowed`` is for the message."""
    if not is_allowed:
        raise ConfigError(
            f"{objective} cannot have this {setting}", got=value, allowed=allowed, fix="correct the setting"
        )


def check_settings(objective: str, settings: object, **rules: tuple[bool, str]) -> None:
    """Refuse an attribute of ``settings`` whose rule, ``(is_allowed, allowed)``, does not hold."""
    for setting, (is_allowed, allowed) in rules.items():
        check_setting(objective, setting, getattr(settings, setting), is_allowed, allowed)


def check_choices(objective: str, settings: object, **names: object) -> None:
    """Refuse an attribute of ``settings`` that is not one of the values of its ``Literal``."""
    for setting, literal in names.items():
        value, known = getattr(settings, setting), get_args(literal)
        check_setting(objective, setting, repr(value), value in known, ", ".join(map(str, known)))


RLOO = ObjectiveEntry(
    "advantages",
    advantage="rloo",
    row=ObjectiveRow(
        "advantage: reward less the mean of the other rollouts of the prompt",
        "the default",
        "arXiv 2402.14740",
        "none",
    ),
)
DR_GRPO = ObjectiveEntry(
    "advantages",
    advantage="dr_grpo",
    row=ObjectiveRow(
        "advantage: reward less the mean of the group; `(n-1)/n` of RLOO's",
        "`rloo` for large groups",
        "arXiv 2503.20783",
        "lengths by `aggregation` ([weights](weights.md))",
    ),
)
GRPO = ObjectiveEntry(
    "advantages",
    advantage="grpo",
    row=ObjectiveRow(
        "advantage: standardised reward; weighs a prompt by about `1/sqrt(p(1-p))`",
        "`dr_grpo` for equal deviations",
        "arXiv 2402.03300",
        "epsilon 1e-4 (TRL)",
    ),
)
