"""Files that are one document: a JSON array or object, a tensor file. What they hold becomes rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from allotment.audit.formats.left_out import LeftOut
from allotment.audit.formats.opening import DamagedError, lines
from allotment.audit.formats.steps import numbered
from allotment.errors import needs_extra

Row = Mapping[str, Any]
MOST_ROLLOUTS = 129
"""Rollouts of a visit of which only shares are known are fewer."""
OF_A_ROW = ("prompt", "input", "question", "messages", "traces", "steps", "turns")
"""Keys of an object that is a row itself, whatever lists it has."""
LONGEST_FIRST_LINE = 2**26
"""Bytes of the first line by which a file is told to be lines of JSON."""


def is_lines(path: Path) -> bool:
    """Whether a file is lines of JSON, not one document: its first line is an object, or no JSON at all, and it is not
    an object of rows. Raises OSError: the file cannot be read.
    """
    first_two = (line for line in lines(path, LONGEST_FIRST_LINE) if line.strip())
    try:
        line = next(first_two, b"")
        is_alone = next(first_two, None) is None
    except DamagedError:
        return True
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        start = line.strip()
        return not start.startswith(b"[") and start != b"{"  # a document over several lines
    return isinstance(first, dict) and not (is_alone and len(rows_of(first)) != 1)


def document_rows(path: Path, left_out: LeftOut) -> Iterator[tuple[int, Row]]:
    """Number and values of each row of a JSON document; one that is damaged is counted."""
    try:
        data = b"".join(lines(path, -1))
        try:
            document = json.loads(data)
        except UnicodeDecodeError:
            document = json.loads(data.decode("latin-1"))
    except (ValueError, RecursionError):  # a packed file that is damaged too
        left_out.add("file that is no JSON, or a damaged one", path)
        return
    yield from _numbered(rows_of(document), path, left_out)


def tensor_rows(path: Path, left_out: LeftOut) -> Iterator[tuple[int, Row]]:
    """The same of a file that torch saved (slime's debug dumps); nothing in it is executed.

    Raises MissingExtraError: torch is not installed.
    """
    with needs_extra("train"):
        import torch
    document = None
    try:
        with suppress(RuntimeError):  # an old file, which cannot be read piece by piece
            document = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if document is None:
            document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises what the content made it raise
        left_out.add("tensor file that is damaged, or holds more than numbers, texts, lists and tables", path)
        return
    yield from _numbered(rows_of(document), path, left_out)


def _numbered(found: list[Any], path: Path, left_out: LeftOut) -> Iterator[tuple[int, Row]]:
    for number, row in enumerate(found, start=1):
        if isinstance(row, dict):
            yield number, row
        else:
            left_out.add("entry that is not a JSON object", path, number)


def rows_of(document: Any) -> list[Any]:
    """The rows of a document: an array's entries; of an object its ``samples`` or the longest list of objects in it, a
    table with ``columns`` and ``data``, columns as lists, rows by step, or a row for each key with what is under it:
    rollouts or rewards of one visit, or shares of successes, one a visit. Else the object itself.
    """
    if not isinstance(document, dict):
        return document if isinstance(document, list) else []
    values = list(document.values())
    if isinstance(document.get("columns"), list) and isinstance(document.get("data"), list):
        return [dict(zip(document["columns"], row, strict=False)) for row in document["data"] if isinstance(row, list)]
    if len(document) > 1 and _are_alike(values):
        steps = {key: numbered(str(key)) for key in document}
        if None not in steps.values():
            return [{"step": steps[key], **row} for key, rows in document.items() for row in rows]
        return [{"prompt_id": key, "rollouts": rows} for key, rows in document.items()]
    tables = [v for v in values if isinstance(v, list) and v and all(isinstance(row, dict) for row in v)]
    if tables and not any(name in document for name in OF_A_ROW):
        table = max(tables, key=len) if not isinstance(samples := document.get("samples"), list) else samples
        return [
            {**_about(document, table, place), **row} if isinstance(row, dict) else row
            for place, row in enumerate(table)
        ]
    if len(document) > 1 and all(isinstance(v, dict) for v in values):
        return [{"prompt_id": key, **v} for key, v in document.items()]
    if len(document) > 1 and all(isinstance(v, list) and not any(isinstance(x, dict) for x in v) for v in values):
        if len({len(v) for v in values}) == 1 and not all(map(_is_numbers, values)):
            return [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)]
        n = _rollouts_of_rates([x for v in values for x in v])
        if n is None:
            return [{"prompt_id": key, "rewards": v} for key, v in document.items()]
        return [
            {"prompt_id": key, "rate": rates[visit], "n": n}
            for visit in range(max(map(len, values)))
            for key, rates in document.items()
            if visit < len(rates)
        ]
    return [document]


def _are_alike(values: list[Any]) -> bool:
    """Whether these are lists of objects, all with the same keys."""
    if not all(isinstance(value, list) and value and all(isinstance(row, dict) for row in value) for value in values):
        return False
    return all(value[0].keys() == values[0][0].keys() for value in values)


def _about(document: dict[str, Any], table: list[Any], place: int) -> dict[str, Any]:
    """What the document says beside a table of a row: its single values, and those lists that have one for each row.

    What the row itself has under a name is the document's under ``file.`` and that name.
    """
    row = table[place]
    about = {}
    for key, value in document.items():
        if isinstance(value, list) and value is not table and len(value) == len(table) and _is_numbers(value):
            about[key] = value[place]
        elif isinstance(value, int | str):
            about[f"file.{key}" if isinstance(row, dict) and key in row else key] = value
    return about


def _rollouts_of_rates(rates: list[Any]) -> int | None:
    """The smallest number of rollouts of which all of these are shares; None where they are no shares, or 0 and 1."""
    if (
        not rates
        or not _is_numbers(rates)
        or not all(0 <= rate <= 1 for rate in rates)
        or all(r in (0, 1) for r in rates)
    ):
        return None
    return next((n for n in range(2, MOST_ROLLOUTS) if all(abs(r * n - round(r * n)) < 1e-4 for r in rates)), None)


def _is_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)
