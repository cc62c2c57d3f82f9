"""JSONL logs line by line, appended to and read while they grow, and text files that are replaced in one go."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from allotment.disk import replaced


def lines(path: Path, start: int = 0, longest: int = -1) -> Iterator[bytes]:
    """Each line from byte ``start`` on, with its newline, which the last may lack.

    Args:
        path: the file.
        start: where a line begins.
        longest: bytes; of a longer line only the beginning is given. -1 for no limit.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        file.seek(start)
        while part := file.readline(longest):
            if len(part) == longest and not part.endswith(b"\n"):
                while (rest := file.readline(longest)) and not rest.endswith(b"\n"):
                    pass
            yield part


def whole_lines(path: Path, start: int = 0) -> Iterator[bytes]:
    """The lines from byte ``start`` on that have their newline: a last one cut short by a kill is left out. Raises
    OSError: the file cannot be read.
    """
    return (line for line in lines(path, start) if line.endswith(b"\n"))


def read_log(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a log; a last line cut short by a kill is left out. Empty if there is no file. Raises
    json.JSONDecodeError: a complete line is not JSON; UnicodeDecodeError: a complete line is not UTF-8; OSError: the
    file cannot be read.
    """
    return [json.loads(line.decode()) for line in whole_lines(path)] if path.exists() else []


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add a line a row to a log, which need not exist yet."""
    with open(path, "ab") as file:
        file.write(to_jsonl(rows).encode())


def to_jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    """A line a row."""
    return "".join([json.dumps(row) + "\n" for row in rows])


def sync(path: Path) -> None:
    """Have what was written to a file on disk; nothing happens if there is no file."""
    if path.exists():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file, in UTF-8, in one go."""
    with replaced(path) as file:
        file.write(text.encode())
