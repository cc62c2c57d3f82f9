"""Rows of JSONL, CSV and parquet files, a few at a time; what cannot be read is counted."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from allotment.audit.formats.lines import LONGEST_LINE, LeftOut, lenient_lines
from allotment.errors import needs_extra

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
"""Endings of the files that are looked at in a folder."""
ROWS_AT_ONCE = 256
"""Rows of a parquet file that are decoded at once."""
READ_AT_ONCE = 2**20
"""Bytes of a parquet file that are read at once."""
SAMPLE = 20
"""Rows by which a file's columns are found out."""

Row = Mapping[str, Any]


def rows(path: Path, left_out: LeftOut, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Row]]:
    """Number and values of each row; a file without a known ending is JSONL.

    Args:
        path: the file.
        left_out: takes what could not be read.
        columns: of a parquet file, the columns to read; None for all.

    Raises:
        MissingExtraError: a parquet file, and pyarrow is not installed.
        OSError: the file cannot be read.
    """
    if path.suffix == ".parquet":
        return _parquet_rows(path, left_out, columns)
    return _csv_rows(path, left_out) if path.suffix == ".csv" else lenient_lines(path, left_out)


def sample(path: Path) -> list[Row]:
    """The first few rows of a file; none where nothing can be read.

    Raises:
        MissingExtraError: a parquet file, and pyarrow is not installed.
        OSError: the file cannot be read.
    """
    return [row for _, row in islice(rows(path, LeftOut()), SAMPLE)]


def _csv_rows(path: Path, left_out: LeftOut) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))  # completions are longer than csv expects
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file, restkey="")
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error:
                left_out.add("line that is not CSV", path, reader.line_num)
                continue
            yield reader.line_num, row


def _parquet_rows(path: Path, left_out: LeftOut, columns: Sequence[str] | None) -> Iterator[tuple[int, Row]]:
    with needs_extra("logs"):
        from pyarrow import ArrowException  # type: ignore[import-untyped]
        from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]
    number = 0
    with open(path, "rb") as file:
        try:  # whatever is raised from here on is about the content
            table = ParquetFile(file, pre_buffer=False, buffer_size=READ_AT_ONCE)  # else a row group at once
            names = [name for name in table.schema_arrow.names if columns is None or name in columns]
            for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=names, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (ArrowException, OSError, ValueError, OverflowError):
            left_out.add("file that is no parquet file, or a damaged one, from this row on", path, number)
