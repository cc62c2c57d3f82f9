"""Which versions of verl this adapter fits, checked when it is imported."""

from __future__ import annotations

from importlib.metadata import version

from packaging.version import Version

from allotment.errors import MissingExtraError

TESTED = Version("0.9.1")
"""The first with per-prompt counts in the trainer that is verl's default; a newer one is tried, with a warning."""


def check_verl() -> str | None:
    """None for the tested version, else what to warn of.

    Raises:
        MissingExtraError: verl is older.
    """
    installed = Version(version("verl"))
    if installed < TESTED:
        raise MissingExtraError(
            "this version of verl is too old",
            got=f"verl {installed}",
            allowed=f"verl {TESTED}, whose V1 trainer reads a number of rollouts for each prompt",
            fix=f"pip install 'verl=={TESTED}'",
        )
    if installed.release[:3] > TESTED.release[:3]:
        return f"verl {installed} is newer than {TESTED}, the newest that Allotment was tested with"
    return None


def check_methods(cls: type, names: tuple[str, ...]) -> None:
    """Refuse a class of verl's that lacks a method the adapter works through.

    Raises:
        MissingExtraError: a method is missing.
    """
    missing = [name for name in names if not callable(getattr(cls, name, None))]
    if missing:
        raise MissingExtraError(
            f"verl's {cls.__name__} is not the one that Allotment was made for",
            got=f"verl {version('verl')} without {', '.join(missing)}",
            allowed=f"verl {TESTED}",
            fix=f"pip install 'verl=={TESTED}'",
        )
