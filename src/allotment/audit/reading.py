"""From files to a :class:`~allotment.audit.log.Log`, whatever format they have: see :mod:`allotment.audit.formats`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from allotment.audit.formats.base import Columns, FirstRows, Row, Source
from allotment.audit.formats.left_out import LeftOut
from allotment.audit.formats.opening import ending, is_readable, kept
from allotment.audit.formats.steps import numbered
from allotment.audit.formats.tables import ENDINGS, sample
from allotment.audit.log import Log
from allotment.errors import InvalidInputError
from allotment.registry import LOG_FORMATS


class UnknownFormatError(InvalidInputError):
    """A file has none of the known formats, or no row by which to tell."""


def find_sources(path: str | Path, named: str | None = None, columns: Columns | None = None) -> list[Source]:
    """The runs at ``path``.

    A file is one run. In a folder, and all folders in it but hidden ones, each file of our own formats is a run, and
    the files of another format that lie in one folder, or in folders named after steps, are one run. Files of no known
    format, and links that lead nowhere, are passed over, which the first run's notes say.

    Args:
        path: a file or folder; a pipe, or ``-`` for standard input.
        named: the format, a name of :data:`~allotment.registry.LOG_FORMATS`; found out if None.
        columns: column names that stand in for those of the format.

    Raises:
        ConfigError: there is no such format.
        InvalidInputError: no run is found, or a reward must be chosen among several columns.
        MissingExtraError: a parquet file, and pyarrow is not installed.
        OSError: something cannot be read.
    """
    path, columns = kept(Path(path)), columns or Columns()
    named = None if named is None else LOG_FORMATS.canonical(named)
    if not path.is_dir():
        name, used = _recognise(path, named, columns)
        return [Source(path, name, (path,), used)]
    files, odd = _files(path)
    grouped: dict[tuple[Path, str], tuple[Columns, list[Path]]] = {}
    unknown: list[tuple[Path, str]] = []
    for file in files:
        try:
            name, used = _recognise(file, named, columns)
        except UnknownFormatError as error:
            unknown.append((file, str(error).partition("got:")[2].partition("\n")[0].strip()))
            continue
        place = file if LOG_FORMATS[name].file_is_run else _run_of(file, path)
        grouped.setdefault((place, name), (used, []))[1].append(file)
    sources = [Source(place, name, tuple(found), used) for (place, name), (used, found) in grouped.items()]
    if not sources:
        _refuse_folder(path, unknown)
    notes = []
    if unknown:
        notes.append(f"{len(unknown)} files passed over, of no known format (first: {unknown[0][0].name})")
    if odd:
        notes.append(f"{len(odd)} links that lead nowhere, or pipes, passed over (first: {odd[0].name})")
    sources[0] = replace(sources[0], notes=tuple(notes))
    return sources


def _run_of(file: Path, top: Path) -> Path:
    """The folder of the run that a file belongs to: its own, or the one above where its own is named after a step."""
    folder = file.parent
    return folder.parent if folder != top and numbered(folder.name) is not None else folder


def _files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Every file with a known ending, folder by folder, by the numbers in the names; and those that are no files."""
    found: list[Path] = []
    odd: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=_natural)
        for name in sorted(names, key=_natural):
            if ending(Path(name)) in ENDINGS:
                (found if is_readable(Path(parent, name)) else odd).append(Path(parent, name))
    return found, odd


def _natural(name: str) -> list[tuple[int, str]]:
    """Orders names by the numbers in them."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]{1,15})", name)]


def _recognise(path: Path, named: str | None, columns: Columns) -> tuple[str, Columns]:
    """The name of a file's format, and its columns."""
    left_out = LeftOut()
    rows = sample(path, left_out)
    if not rows:
        refuse_empty(path, "; ".join(left_out.notes()) or "an empty file")
    first = FirstRows(path, rows, columns)
    name = named or next((name for name, form in LOG_FORMATS if form.recognises(first)), None)
    if name is None:
        _refuse(path, rows[0])
    return name, LOG_FORMATS[name].columns(first)


def _known() -> str:
    """What the rows of each format hold."""
    return "; ".join(f"{form.summary} ({name})" for name, form in LOG_FORMATS)


def _refuse(path: Path, row: Row) -> NoReturn:
    raise UnknownFormatError(
        f"{path}, line 1: unknown format",
        got=", ".join(map(str, row))[:120] or "no keys",
        allowed=_known(),
        fix="name the columns, or pass the log of a run",
    )


def refuse_empty(path: Path, got: str) -> NoReturn:
    """Raise :class:`UnknownFormatError`: nothing in the log can be used; ``got`` says why."""
    fix = "pass JSONL, JSON, CSV, TSV or parquet, as it is or packed by gzip or zstd, with a prompt and a reward a row"
    raise UnknownFormatError(f"{path} holds no visits", got=got, allowed="at least one visit", fix=fix)


def _refuse_folder(path: Path, unknown: Sequence[tuple[Path, str]]) -> NoReturn:
    first = f", first {unknown[0][0]}: {unknown[0][1]}" if unknown else ""
    raise InvalidInputError(
        f"{path} is a directory without a log",
        got=f"{len(unknown)} files of no known format" + first,
        allowed=_known(),
        fix="pass the folder or file that holds the rollouts",
    )


def read_log(
    path: str | Path, format: str | None = None, columns: Columns | None = None, success_above: float | None = None
) -> Log:
    """Read the log of one run: a file, or a folder with one run's files.

    Our own formats are read strictly: a damaged line is an error, but for a last one that a killed writer cut short,
    which is left out with a note. In others' formats every rollout that cannot be used is left out and counted.

    Args:
        path: a file or folder.
        format: see :func:`find_sources`; found out if None.
        columns: column names that stand in for those of the format.
        success_above: see :func:`~allotment.audit.formats.rollouts.read_rollouts`.

    Raises:
        ConfigError: there is no such format.
        InvalidInputError: no visits; several runs; no known format. In our own formats also a line that is not a JSON
            object or lacks a key, a value of the wrong type, more successes than rollouts, a prompt that stands twice
            (in the same step and round); names the line.
        MissingExtraError: a parquet file, and pyarrow is not installed.
        OSError: a file cannot be read.
    """
    sources = find_sources(path, format, columns)
    if len(sources) > 1:
        raise InvalidInputError(
            f"{path} holds several runs",
            got=", ".join(str(source.path) for source in sources[:5]) + (", ..." if len(sources) > 5 else ""),
            allowed="one run",
            fix="read them one by one",
        )
    return read_source(sources[0], success_above)


def read_source(source: Source, success_above: float | None = None) -> Log:
    """Read one run that :func:`find_sources` found; see :func:`read_log`."""
    log = LOG_FORMATS[source.format].read(source, success_above)
    log = replace(log, notes=(*source.notes, *log.notes))
    if not len(log.visit):
        refuse_empty(source.path, "; ".join(log.notes) or "no lines with a visit")
    if single := int((log.trials == 1).sum()):
        log = replace(log, notes=(*log.notes, f"{single} visits of one rollout say nothing about variance"))
    return log
