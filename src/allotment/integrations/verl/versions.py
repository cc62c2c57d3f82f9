"""Which versions of verl this adapter fits, checked when it is imported."""

from __future__ import annotations

from allotment.integrations import versions

TESTED = "0.9.1"
"""The first with per-prompt counts in the trainer that is verl's default; a newer one is tried, with a warning."""


def check_verl() -> str | None:
    """None for the tested version, else what to warn of.

    Raises:
        MissingExtraError: verl is older.
    """
    reason = ", whose V1 trainer reads a number of rollouts for each prompt"
    return versions.check_version("verl", "verl", TESTED, TESTED, parts=3, reason=reason)


def check_methods(cls: type, names: tuple[str, ...]) -> None:
    """Refuse a class of verl's that lacks a method the adapter works through.

    Raises:
        MissingExtraError: a method is missing.
    """
    versions.check_methods(cls, names, package="verl", newest=TESTED, allowed=f"that of verl {TESTED}")
