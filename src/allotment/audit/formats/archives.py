"""Files of inspect-ai's ``.eval``: a zip archive with a JSON document a sample."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, ZipInfo

from allotment.audit.formats.left_out import LeftOut
from allotment.errors import MissingExtraError, needs_extra

Row = Mapping[str, Any]
ZSTANDARD = 93
"""Number of the compression in the archive; Python reads it from version 3.14 on."""
HEADER = 30
"""Bytes of a member's own header before its name."""
LARGEST_SAMPLE = 2**31
"""Bytes; a larger sample is taken for damage."""


def archive_rows(path: Path, left_out: LeftOut) -> Iterator[tuple[int, Row]]:
    """Number and values of each sample, one at a time; one that is damaged is counted. Of a sample that was written
    anew the last counts.

    Raises MissingExtraError: packed by zstandard, and pyarrow is not installed; OSError: the file cannot be read.
    """
    try:
        archive = ZipFile(path)
    except (BadZipFile, ValueError, EOFError):
        left_out.add("file that is no archive, or one that was cut short", path)
        return
    with archive:
        members = {m.filename: m for m in archive.infolist() if m.filename.startswith("samples/")}
        for number, member in enumerate(members.values(), start=1):
            try:
                row = json.loads(_content(archive, path, member))
            except MissingExtraError:
                raise
            except (BadZipFile, ValueError, EOFError, RecursionError, NotImplementedError, RuntimeError, zlib.error):
                row = None
            except OSError as error:
                if error.errno is not None:
                    raise
                row = None  # what an unpacker says of its data
            if isinstance(row, dict):
                yield number, row
            else:
                left_out.add("sample that is damaged", path, number)


def _content(archive: ZipFile, path: Path, member: ZipInfo) -> bytes:
    if member.file_size > LARGEST_SAMPLE:
        raise ValueError(f"{member.file_size} bytes")
    if member.compress_type != ZSTANDARD:
        return archive.read(member)
    with needs_extra("logs"):
        import pyarrow  # type: ignore[import-untyped]
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        header = file.read(HEADER)
        file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
        packed = file.read(member.compress_size)
    with pyarrow.CompressedInputStream(pyarrow.BufferReader(packed), "zstd") as stream:
        content = bytes(stream.read())
    if zlib.crc32(content) != member.CRC:
        raise ValueError("a wrong checksum")
    return content
