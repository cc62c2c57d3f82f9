"""Which versions of a trainer's package an adapter fits, and which methods it works through."""

from __future__ import annotations

from importlib.metadata import version

from packaging.version import Version

from allotment.errors import MissingExtraError


def check_version(package: str, name: str, oldest: str, newest: str, parts: int, reason: str = "") -> str | None:
    """None for a tested version, else what to warn of; versions differ where the first ``parts`` numbers do.

    Raises:
        MissingExtraError: the package is older than the oldest version that fits; ``reason`` says why.
    """
    installed = Version(version(package))
    if installed < Version(oldest):
        raise MissingExtraError(
            f"this version of {name} is too old",
            got=f"{package} {installed}",
            allowed=f"{package} {oldest}" + (f" to {newest}" if newest != oldest else "") + reason,
            fix=f"pip install '{package}=={newest}'",
        )
    if installed.release[:parts] > Version(newest).release[:parts]:
        return f"{package} {installed} is newer than {newest}, the newest that Allotment was tested with"
    return None


def check_methods(cls: type, names: tuple[str, ...], *, package: str, newest: str, allowed: str) -> None:
    """Refuse a class that lacks a method the adapter works through.

    Raises:
        MissingExtraError: a method is missing.
    """
    missing = [name for name in names if not callable(getattr(cls, name, None))]
    if missing:
        raise MissingExtraError(
            f"{cls.__name__} is not a class that Allotment can plan for",
            got=f"{package} {version(package)} without {', '.join(missing)}",
            allowed=allowed,
            fix=f"pip install '{package}=={newest}'",
        )
