"""Optional dependencies: a missing one becomes a message that says what to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from allotment.errors import MissingExtraError, message


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around imports that need ``pip install 'allotment[EXTRA]'``.

    Raises:
        MissingExtraError: a package of the extra cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "allotment":
            raise  # a mistake of ours, not a missing package
        raise MissingExtraError(
            message(
                "this command needs a package that is not installed",
                got=error,
                allowed=f"the packages of the extra {extra!r}",
                fix=f"pip install 'allotment[{extra}]'",
            )
        ) from error
