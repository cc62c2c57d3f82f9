"""Checks of the settings of an objective; each raises ConfigError that names the objective and the setting."""

from __future__ import annotations

from typing import get_args

from allotment.errors import ConfigError


def check_setting(objective: str, setting: str, value: object, is_allowed: bool, allowed: str) -> None:
    """Refuse a setting unless ``is_allowed``; ``allowed`` is for the message."""
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
