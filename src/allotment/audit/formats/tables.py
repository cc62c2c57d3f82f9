"""Rows of JSONL, JSON, CSV, TSV and parquet files, a few at a time; what cannot be read is counted."""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, NoReturn

from allotment.audit.formats.archives import archive_rows
from allotment.audit.formats.documents import document_rows, is_lines, tensor_rows
from allotment.audit.formats.left_out import LeftOut
from allotment.audit.formats.opening import DamagedError, ending, lines, opened
from allotment.errors import InvalidInputError, needs_extra
from allotment.types import PromptId

MOST_ROLLOUTS = 100_000
"""A larger count of one visit is taken for damage."""
LONGEST_LINE = 2**26
"""Bytes; what is longer is no line of a log, and is never held in memory."""


@dataclass(frozen=True)
class Line:
    """One JSON object of the file, with getters that say where a value is wrong."""

    path: Path
    number: int
    values: dict[str, Any]

    def fail(self, wrong: str, got: object, allowed: str, fix: str = "mend the line") -> NoReturn:
        """Raise :class:`~allotment.errors.InvalidInputError` naming the line."""
        shown = got if isinstance(got, str) else repr(got)
        raise InvalidInputError(f"{self.path}, line {self.number}: {wrong}", got=shown[:120], allowed=allowed, fix=fix)

    def get(self, key: str) -> Any:
        """The value of ``key``."""
        if key not in self.values:
            self.fail(f"no {key!r}", ", ".join(self.values) or "no keys", f"a line with {key!r}")
        return self.values[key]

    def prompt_id(self) -> PromptId:
        """The prompt's id."""
        value = self.get("prompt_id")
        if type(value) not in (int, str):
            self.fail("prompt_id has the wrong type", value, "a whole number or a string")
        return value  # type: ignore[no-any-return]

    def text(self) -> str | None:
        """The prompt's text, None where there is none."""
        value = self.values.get("prompt")
        if not isinstance(value, str | None):
            self.fail("prompt is not a text", value, "a string")
        return value

    def count(self, key: str, least: int = 0) -> int:
        """The value of ``key``, a count."""
        return self.as_count(key, self.get(key), least)

    def as_count(self, what: str, value: Any, least: int = 0, most: int = MOST_ROLLOUTS) -> int:
        """``value`` as a count from ``least`` to ``most``."""
        if type(value) is not int or not least <= value <= most:
            self.fail(f"{what} is not a count", value, f"a whole number from {least} to {most:,}")
        return value

    def check_successes(self, successes: int, trials: int) -> None:
        """Refuse more successes than rollouts."""
        if successes > trials:
            self.fail("more successes than rollouts", f"{successes} of {trials}", "successes <= rollouts")


def strict_lines(path: Path, notes: list[str]) -> Iterator[Line]:
    """The lines of a file; a last one that is cut short (no newline and not JSON) is left out, and ``notes`` says so.
    Raises InvalidInputError: any other line that is not a JSON object; OSError: the file cannot be read.
    """
    for number, line in _undamaged(path):
        try:
            values = json.loads(line)  # bytes: a kill may cut a character in two
        except (ValueError, RecursionError) as error:
            if _is_cut(line):
                notes.append(f"1 line left out: line {number}, the last one, is cut short")
                return
            Line(path, number, {}).fail("not JSON", str(error), "one JSON object a line; the last may be cut short")
        if not isinstance(values, dict):
            Line(path, number, {}).fail("not a JSON object", values, "one JSON object a line")
        yield Line(path, number, values)


def _undamaged(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        for number, line in _numbered(path):
            yield number, line
    except DamagedError as error:
        Line(path, number + 1, {}).fail("the packed file is damaged", str(error), "a whole file", "pack it anew")


def lenient_lines(path: Path, left_out: LeftOut) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and values of each JSON object of a file; every other line is counted. Raises OSError: the file cannot be
    read.
    """
    numbered = _numbered(path)
    number = 0
    while True:
        try:
            number, line = next(numbered)
        except StopIteration:
            return
        except DamagedError:
            left_out.add("file that is packed, and damaged from this line on", path, number + 1)
            return
        values = _parsed(line, path, number, left_out)
        if isinstance(values, dict):
            yield number, values
        elif values is not None:
            left_out.add("line that is not a JSON object", path, number)


def _parsed(line: bytes, path: Path, number: int, left_out: LeftOut) -> Any:
    """What a line holds as JSON; None where it holds none, which is counted. Text that is not UTF-8 is Latin-1."""
    try:
        return json.loads(line)
    except UnicodeDecodeError:
        with suppress(ValueError, RecursionError):
            return json.loads(line.decode("latin-1"))
    except (ValueError, RecursionError):
        pass
    left_out.add("last line of a file cut short" if _is_cut(line) else "line that is not JSON", path, number)
    return None


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line that is not blank; of one that is too long, its beginning."""
    return ((number, line) for number, line in enumerate(lines(path, LONGEST_LINE), start=1) if line.strip())


def _is_cut(line: bytes) -> bool:
    """Whether a line that is not JSON is the last one, which a killed writer cut short."""
    return not line.endswith(b"\n") and len(line) < LONGEST_LINE


ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".pt", ".eval")
"""Endings of the files that are looked at in a folder, packed or not."""
ROWS_AT_ONCE = 256
"""Rows of a parquet file that are decoded at once."""
READ_AT_ONCE = 2**20
"""Bytes of a parquet file that are read at once."""
SAMPLE = 20
"""Rows by which a file's columns are found out."""

Row = Mapping[str, Any]


def rows(path: Path, left_out: LeftOut, columns: Collection[str] | None = None) -> Iterator[tuple[int, Row]]:
    """Number and values of each row; a file without a known ending is JSONL.

    Args:
        path: the file.
        left_out: takes what could not be read.
        columns: of a parquet file, the columns to read; None for all.

    Raises:
        MissingExtraError: a parquet file, and pyarrow is not installed.
        OSError: the file cannot be read.
    """
    kind = ending(path)
    if kind in (".parquet", ".arrow"):
        return _arrow_rows(path, left_out, columns, is_stream=kind == ".arrow")
    if kind == ".eval":
        return archive_rows(path, left_out)
    if kind in (".csv", ".tsv"):
        return _csv_rows(path, left_out, "\t" if kind == ".tsv" else ",")
    if kind == ".pt":
        return tensor_rows(path, left_out)
    return lenient_lines(path, left_out) if is_lines(path) else document_rows(path, left_out)


def sample(path: Path, left_out: LeftOut) -> list[Row]:
    """The first few rows of a file; none where nothing can be read, which is counted.

    Raises MissingExtraError: a parquet file, and pyarrow is not installed; OSError: the file cannot be read.
    """
    return [row for _, row in islice(rows(path, left_out), SAMPLE)]


def _csv_rows(path: Path, left_out: LeftOut, delimiter: str) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))  # completions are longer than csv expects
    with opened(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file, restkey="", delimiter=delimiter)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error:
                left_out.add("line that is not CSV", path, reader.line_num)
                continue
            except (EOFError, OSError, zlib.error) as error:
                if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of an unpacker
                    raise
                left_out.add("file that is packed, and damaged from this line on", path, reader.line_num)
                return
            yield reader.line_num, row


def _arrow_rows(
    path: Path, left_out: LeftOut, columns: Collection[str] | None, *, is_stream: bool
) -> Iterator[tuple[int, Row]]:
    """The rows of a parquet file, or of a stream of Arrow's as a data set of Hugging Face is saved."""
    with needs_extra("logs"):
        from pyarrow import ArrowException  # type: ignore[import-untyped]
    number = 0
    with open(path, "rb") as file:
        try:  # whatever is raised from here on is about the content
            for batch in (_stream_batches if is_stream else _parquet_batches)(file, columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (ArrowException, OSError, ValueError, OverflowError):
            kind = "Arrow stream" if is_stream else "parquet file"
            left_out.add(f"file that is no {kind}, or a damaged one, from this row on", path, number)


def _parquet_batches(file: IO[bytes], columns: Collection[str] | None) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    table = ParquetFile(file, pre_buffer=False, buffer_size=READ_AT_ONCE)  # else a row group at once
    names = [name for name in table.schema_arrow.names if columns is None or name in columns]
    yield from table.iter_batches(batch_size=ROWS_AT_ONCE, columns=names, use_threads=False)


def _stream_batches(file: IO[bytes], columns: Collection[str] | None) -> Iterator[Any]:
    from pyarrow.ipc import open_stream  # type: ignore[import-untyped]

    for batch in open_stream(file):
        batch.validate(full=True)  # damaged offsets would lead anywhere
        wanted = batch.select([name for name in batch.schema.names if columns is None or name in columns])
        for start in range(0, wanted.num_rows, ROWS_AT_ONCE):
            yield wanted.slice(start, ROWS_AT_ONCE)
