"""What is said where slime cannot be imported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from allotment.errors import MissingExtraError


@contextmanager
def needs_slime() -> Iterator[None]:
    """Around imports of slime, which is a source tree and no package of an index.

    Raises:
        MissingExtraError: slime, or a package that it needs, cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "allotment":
            raise
        raise MissingExtraError(
            "slime cannot be imported",
            got=f"no {error.name} ({error})",
            allowed="slime 0.3.1, its source of August 2026 or later, with the packages it needs",
            fix="put slime's source tree on PYTHONPATH (git clone https://github.com/THUDM/slime); see docs/slime.md",
        ) from error
