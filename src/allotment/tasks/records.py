"""Rows of a data file: JSONL, JSON, CSV, Parquet. A damaged file is refused with its line."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from allotment.errors import ConfigError, InvalidInputError, needs_extra

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """The rows of a .jsonl, .json (a list of objects), .csv (with a header; every value a text) or .parquet file.

    Raises:
        ConfigError: another suffix.
        InvalidInputError: the file is damaged or cut short; names the line.
        MissingExtraError: pyarrow, for .parquet, is not installed.
        OSError: no such file, or it cannot be read.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(
            "unknown kind of data set",
            got=str(path),
            allowed=f"reasoning-gym:NAME, or a file that ends in {', '.join(_READERS)}",
            fix="convert the file or mend its name",
        )
    try:
        return reader(path)
    except UnicodeDecodeError as error:
        raise damaged(f"{path} is not text", error, "UTF-8") from error


def _jsonl(path: Path) -> list[Record]:
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            records.append(_object(_parsed(line, f"{path}, line {number}"), f"{path}, line {number}"))
    return records


def _json(path: Path) -> list[Record]:
    values = _parsed(path.read_text(encoding="utf-8-sig"), str(path))
    if not isinstance(values, list):
        raise damaged(f"{path} is not a list", type(values).__name__, "a list of objects, one a row")
    return [_object(value, f"{path}, row {number}") for number, value in enumerate(values)]


def _csv(path: Path) -> list[Record]:
    csv.field_size_limit(sys.maxsize)  # long prompts
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            records = list(reader)
        except csv.Error as error:
            raise damaged(f"{path}, line {reader.line_num}: not CSV", error, "CSV with a header") from error
    for number, record in enumerate(records):
        if None in record or None in record.values():
            got = "more" if None in record else "fewer"
            raise damaged(f"{path}, row {number}: not as wide as the header", f"{got} values", "a value a column")
    return list(records)


def _parquet(path: Path) -> list[Record]:
    with needs_extra("trl"):
        import pyarrow  # type: ignore[import-untyped, unused-ignore]
        import pyarrow.parquet  # type: ignore[import-untyped, unused-ignore]
    try:
        records: list[Record] = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise damaged(f"{path} is not Parquet, or cut short", error, "a whole Parquet file") from error
    return records


_READERS: dict[str, Callable[[Path], list[Record]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(f"{where}: not JSON, or cut short", error, "JSON") from error


def _object(value: Any, where: str) -> Record:
    if not isinstance(value, dict):
        raise damaged(f"{where}: not an object", repr(value)[:120], "a JSON object a row")
    return value


def damaged(wrong: str, got: object, allowed: str) -> InvalidInputError:
    """What to raise for a file that is not as it should be."""
    return InvalidInputError(wrong, got=got, allowed=allowed, fix="mend the file or write it again")
