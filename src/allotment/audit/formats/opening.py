"""Bytes of a log, whatever they come packed in: gzip, zstandard, a pipe, UTF-16."""

from __future__ import annotations

import atexit
import gzip
import io
import os
import select
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from allotment.errors import InvalidInputError, needs_extra

PACKED = (".gz", ".zst")
"""Endings that stand behind that of the format."""
GZIP, ZSTANDARD, UTF_16 = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", (b"\xff\xfe", b"\xfe\xff")
PATIENCE = 10.0
"""Seconds for which a pipe may stay empty at its beginning."""


class DamagedError(ValueError):
    """A packed file that cannot be unpacked from some place on."""


def ending(path: Path) -> str:
    """The ending that says what a file holds, in lower case: ``.jsonl`` of ``a.jsonl.gz``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in PACKED), "")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The unpacked bytes of a file, text in UTF-8.

    Raises:
        MissingExtraError: a zstandard file, and pyarrow is not installed.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        first = file.peek(4)[:4]
        if first.startswith(GZIP):
            yield gzip.GzipFile(fileobj=file)  # type: ignore[misc]
        elif first == ZSTANDARD:
            with needs_extra("logs"):
                import pyarrow  # type: ignore[import-untyped]
            yield io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"))
        elif first.startswith(UTF_16):
            text = file.read().decode("utf-16", "replace")
            yield io.BytesIO(text.encode("utf-8", "replace"))
        else:
            yield file


def lines(path: Path, longest: int) -> Iterator[bytes]:
    """Each line with its newline, which the last may lack; of one longer than ``longest`` bytes only the beginning.

    Raises:
        DamagedError: what is packed cannot be unpacked from here on.
        OSError: the file cannot be read.
    """
    with opened(path) as file:
        while part := _read_line(file, longest):
            if len(part) == longest and not part.endswith(b"\n"):
                while (rest := _read_line(file, longest)) and not rest.endswith(b"\n"):
                    pass
            yield part


def _read_line(file: IO[bytes], longest: int) -> bytes:
    try:
        return file.readline(longest)
    except (EOFError, ValueError, zlib.error) as error:
        raise DamagedError(str(error)) from error
    except OSError as error:
        if error.errno is None:  # of an unpacker, not of the disk
            raise DamagedError(str(error)) from error
        raise


def is_readable(path: Path) -> bool:
    """Whether a path is a plain file, not a pipe, a socket, or a link that leads nowhere."""
    with suppress(OSError):
        return stat.S_ISREG(os.stat(path).st_mode)
    return False


def kept(path: Path) -> Path:
    """The path itself; of a pipe, or ``-`` for standard input, a file with what came through it, gone at the end.

    Raises:
        InvalidInputError: nothing comes.
        OSError: it cannot be read.
    """
    if str(path) == "-":
        return _copy(sys.stdin.buffer, "standard input")
    if path.is_dir() or is_readable(path):
        return path
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    ready, _, _ = select.select([handle], [], [], PATIENCE)
    os.set_blocking(handle, True)
    with open(handle, "rb") as pipe:
        if not ready or not pipe.peek(1):
            raise InvalidInputError(
                f"nothing comes through {path}",
                got=f"a pipe that stays empty for {PATIENCE:g} s" if not ready else "an empty pipe",
                allowed="a file, or a pipe that something is written to",
                fix="check the command that writes to it",
            )
        return _copy(pipe, path.name)


def _copy(source: IO[bytes], name: str) -> Path:
    folder = tempfile.mkdtemp(prefix="allotment-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = Path(folder, name.replace("/", "_"))
    with open(target, "wb") as file:
        shutil.copyfileobj(source, file)
    return target
