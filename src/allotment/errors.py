"""Every error Allotment raises on purpose.

One root, :class:`AllotmentError`. Each class is also a subclass of the standard error it refines, so ``except
ValueError`` keeps working. A text has four parts: what was wrong, what was got, what is allowed, how to fix it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager


class AllotmentError(Exception):
    """Root of all errors of this library.

    Args:
        wrong: what was wrong; the whole text where ``fix`` is empty.
        got: what was got.
        allowed: what is allowed.
        fix: how to fix it.
    """

    def __init__(self, wrong: str = "", *, got: object = None, allowed: object = None, fix: str = "") -> None:
        super().__init__(message(wrong, got=got, allowed=allowed, fix=fix) if fix else wrong)


class InvalidInputError(AllotmentError, ValueError):
    """A value is outside its domain: NaN, wrong shape, probability outside [0, 1], empty batch."""


class InfeasibleBudgetError(AllotmentError, ValueError):
    """No allocation within the bounds spends the budget exactly."""


class DuplicatePromptError(AllotmentError, ValueError):
    """The same prompt id stands twice where each must stand once."""


class UnknownPromptError(AllotmentError, KeyError):
    """A prompt id that was never registered, or rewards for a prompt that was not asked."""

    def __str__(self) -> str:
        """The plain message (``KeyError`` would show it quoted)."""
        return str(self.args[0]) if self.args else ""


class RewardMismatchError(AllotmentError, ValueError):
    """The rewards told do not fit the plan they answer: too many of a group, a group missing, plan not open."""


class StateError(AllotmentError, ValueError):
    """A state file or state dict cannot be used: truncated, of another kind, keys missing."""


class StateVersionError(StateError):
    """A state file was written by another version of the state format."""


class ConfigError(AllotmentError, ValueError):
    """A configuration cannot be used: unknown key, impossible combination."""


class RunDirectoryError(AllotmentError, FileExistsError):
    """An output directory already holds a run, or holds none where one is to be resumed."""


class OutOfMemoryError(AllotmentError, MemoryError):
    """The machine, or the limit that was set, has no memory left for what was asked."""


class MissingExtraError(AllotmentError, ImportError):
    """An optional dependency is not installed."""


def message(wrong: str, *, got: object, allowed: object, fix: str) -> str:
    """An error text: what was wrong, what was got, what is allowed, how to fix it."""
    return f"{wrong}\n  got:     {got}\n  allowed: {allowed}\n  fix:     {fix}"


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around imports that need ``pip install 'allotment[EXTRA]'``.

    Raises:
        MissingExtraError: a package of the extra cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        is_ours = isinstance(error, MissingExtraError) or (error.name or "").partition(".")[0] == "allotment"
        if is_ours or _NO_MEMORY.search(str(error)):
            raise  # already explained; a mistake of ours; or a package that is there and too large
        raise MissingExtraError(
            "a package is not installed",
            got=f"no {error.name} ({error})",
            allowed=f"the packages of the extra {extra!r}",
            fix=f"pip install 'allotment[{extra}]'",
        ) from error


@contextmanager
def memory_explained() -> Iterator[None]:
    """Around what may need much memory, on a processor or a GPU.

    Raises:
        OutOfMemoryError: there is none left, in whatever words numpy, torch or the system say so.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        is_meant = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
        if isinstance(error, AllotmentError) or not (is_meant or _NO_MEMORY.search(str(error))):
            raise
        said = str(error).splitlines()
        raise OutOfMemoryError(
            "memory ran out",
            got=f"{type(error).__name__}: {said[0] if said else 'no more memory'}",
            allowed="what the machine has, or `ulimit -v` and the scheduler's limit let a process have",
            fix="free memory, raise the limit, or take fewer prompts or rollouts a step; "
            "a training run continues with --resume, from its last checkpoint",
        ) from error


_NO_MEMORY = re.compile(
    "out of memory|not enough memory|allocate memory|bad.?alloc|failed to map segment", re.IGNORECASE
)
