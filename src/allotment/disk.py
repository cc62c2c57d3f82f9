"""Files on disk: a lock that the system frees with its holder, a file replaced in one go, a file that is really one."""

from __future__ import annotations

import errno
import logging
import os
import platform
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any

log = logging.getLogger("allotment")
fcntl: Any = None
with suppress(ImportError):  # only POSIX has it; elsewhere nothing is locked
    fcntl = import_module("fcntl")
POLL_S = 0.05
"""Between two looks at a lock that another process holds."""
_TOKEN = os.urandom(4).hex()
"""Tells this process from one of the same number on a machine of the same name."""


@contextmanager
def locked(file: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Keep other processes out with a lock on ``file``, which is made for it and gone afterwards.

    The lock dies with its holder, whatever ends it; what a dead holder leaves is an unlocked file. It says who holds
    the lock. Where the file system has no locks, nobody is kept out.

    Raises:
        BlockingIOError: another process holds it after ``wait_s`` seconds; its text says which.
        OSError: the file cannot be made.
    """
    until = time.monotonic() + wait_s
    while (descriptor := _take(file)) is None:
        if time.monotonic() >= until:
            raise BlockingIOError(errno.EWOULDBLOCK, _holder(file))
        time.sleep(POLL_S)
    ours = [descriptor]

    def let_go() -> None:
        while ours:
            os.close(ours.pop())

    if hasattr(os, "register_at_fork"):  # a child that outlives its parent would hold the lock in its place
        os.register_at_fork(after_in_child=let_go)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _this_process().encode())
        yield
    finally:
        if ours:  # else this is such a child
            file.unlink(missing_ok=True)
            let_go()


@contextmanager
def replaced(path: Path) -> Iterator[BufferedWriter]:
    """A new file that takes the place of ``path`` at the end of the block, whole and on disk; on an error none does.

    Its permissions are those that the umask leaves. Files of this kind beside ``path`` whose writers died are removed.

    Raises:
        OSError: the file cannot be written; what was at ``path`` is still there.
    """
    _remove_left(path)
    descriptor, temporary = _own(path)
    with open(descriptor, "wb") as file:
        try:
            yield file
            file.flush()
            os.fsync(descriptor)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def regular(path: Path) -> Iterator[BufferedReader]:
    """A file opened for reading; OSError where it is none, such as a pipe or a device, without waiting for it."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a file but a pipe, a device or a folder", str(path))
        yield file


def _lock(descriptor: int) -> bool:
    """Lock an open file without waiting; whether it is ours. OSError: the file system has no locks."""
    if fcntl is None:
        raise OSError(errno.ENOSYS, "no locks on this system")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take(file: Path) -> int | None:
    """The file, open and locked; None where another holds it."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            is_ours = _lock(descriptor)
        except OSError as error:
            log.warning("%s cannot be locked, so that no second process is kept out: %s", file, error)
            return descriptor
        if not is_ours:
            os.close(descriptor)
            return None
        if _is_at(descriptor, file):
            return descriptor
        os.close(descriptor)  # its last holder took it away meanwhile


def _is_at(descriptor: int, file: Path) -> bool:
    """Whether the open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def is_held_here(file: Path) -> bool:
    """Whether this process itself holds the lock on ``file``."""
    return _holder(file) == _this_process()


def _this_process() -> str:
    return f"process {os.getpid()} on {platform.node()} ({_TOKEN})"


def _holder(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace") or "another process"
    except OSError:
        return "another process"


def _own(path: Path) -> tuple[int, Path]:
    """A new file beside ``path``, open and locked, and its name."""
    while True:
        temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
        with suppress(FileExistsError):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
            with suppress(OSError):  # without locks there is no telling the dead from the living: nothing is removed
                _lock(descriptor)
            if _is_at(descriptor, temporary):
                return descriptor, temporary
            os.close(descriptor)  # removed by another between its making and its lock


def _remove_left(path: Path) -> None:
    """Remove the unfinished files beside ``path`` that nobody is writing."""
    unfinished = re.compile(rf"\.{re.escape(path.name)}\.([0-9a-f]+\.)?tmp")
    for name in filter(unfinished.fullmatch, os.listdir(path.parent)):
        with suppress(OSError):
            descriptor = os.open(path.with_name(name), os.O_RDWR | getattr(os, "O_NONBLOCK", 0))
            try:
                if _lock(descriptor) and _is_at(descriptor, path.with_name(name)):
                    path.with_name(name).unlink()
            finally:
                os.close(descriptor)
