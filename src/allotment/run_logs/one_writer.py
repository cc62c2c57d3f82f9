"""One process at a time in a folder that is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from allotment.disk import locked
from allotment.errors import RunDirectoryError

LOCK, TRAINER_LOCK = ".lock", ".trainer.lock"
"""In a directory while a process writes it; and while a trainer, of whoever made it, does."""


@contextmanager
def one_writer(path: Path, wait_s: float = 0.0, *, lock: str = LOCK) -> Iterator[None]:
    """Keep other processes out of a directory while it is written; it is made if need be, and not left behind empty.

    ``lock``: the file in it by which they are kept out.

    Raises:
        RunDirectoryError: another process still holds it after ``wait_s`` seconds, or it cannot be made. A process that
            dies, of whatever, holds nothing any more.
    """
    with ExitStack() as stack:
        try:
            if not path.exists():
                path.mkdir(parents=True)
                stack.callback(_remove_if_empty, path)
            stack.enter_context(locked(path / lock, wait_s))
        except BlockingIOError as error:
            raise RunDirectoryError(
                "another process is at work in this directory",
                got=f"{path}: {error.strerror}",
                allowed="one process in a run directory, one comparison in a folder, at a time",
                fix="wait for it or stop it, or choose another --out or output_dir; what a dead process held is free",
            ) from None
        except OSError as error:
            raise not_made(error) from error
        yield


def _remove_if_empty(path: Path) -> None:
    with suppress(OSError):
        path.rmdir()


def not_made(error: OSError) -> RunDirectoryError:
    """The error of a directory that cannot be made."""
    return RunDirectoryError(
        "cannot make the output directory",
        got=error,
        allowed="a folder, new or not, that may be written to",
        fix="choose another --out",
    )
