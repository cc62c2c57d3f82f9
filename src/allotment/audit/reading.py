"""From files to a :class:`~allotment.audit.log.Log`, whatever format they have: see :mod:`allotment.audit.formats`."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from allotment.audit.formats.base import Columns, FirstRows, Row, Source, inside, whole, with_paths
from allotment.audit.formats.left_out import LeftOut
from allotment.audit.formats.opening import ending, is_readable, kept
from allotment.audit.formats.steps import evaluations, no_step_folders, numbered, place_of
from allotment.audit.formats.tables import ENDINGS, sample
from allotment.audit.log import Log
from allotment.errors import InvalidInputError
from allotment.registry import LOG_FORMATS

Run = tuple[Path, tuple[str, ...], str]
"""What the files of one run have in common: the folder, what tells runs in it apart, and the format."""


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
        name, used, _ = _recognise(path, named, columns)
        return [Source(path, name, (path,), used)]
    files, odd = _files(path)
    found, unknown = _recognised(files, named, columns)
    no_steps = no_step_folders({file: step for file, (_, _, step) in found.items()}, path)
    no_training = evaluations(found, path)
    grouped: dict[Run, tuple[Columns, list[Path]]] = {}
    for file, (name, used, _) in found.items():
        run = _run_of(file, path, name, no_steps, is_training=file not in no_training)
        grouped.setdefault(run, (used, []))[1].append(file)
    notes = _passed_over(grouped, path)
    sources = [Source(_shown(place, own), name, tuple(own), used) for (place, _, name), (used, own) in grouped.items()]
    if not sources:
        _refuse_folder(path, unknown)
    if unknown:
        notes.append(f"{len(unknown)} files passed over, of no known format (first: {unknown[0][0].name})")
    if odd:
        notes.append(f"{len(odd)} links that lead nowhere, or pipes, passed over (first: {odd[0].name})")
    sources[0] = replace(sources[0], notes=tuple(notes))
    return sources


def _run_of(file: Path, top: Path, name: str, no_steps: Container[Path], *, is_training: bool) -> Run:
    form = LOG_FORMATS[name]
    if form.file_is_run:
        return file, (), name
    folder, below = place_of(file, top, no_steps)
    return folder, ("training" if is_training else "evaluation", *below, form.part(file)), name


def _passed_over(grouped: dict[Run, tuple[Columns, list[Path]]], top: Path) -> list[str]:
    """Take away what is no run of its own where there are others: rollouts that other files hold too, evaluations."""
    notes = []
    again = {key: LOG_FORMATS[key[2]].again(found[0]) for key, (_, found) in grouped.items()}
    firsts = {key[2] for key in grouped if again[key] is None}
    repeats = [key for key in grouped if again[key] in firsts]
    others = [key for key in grouped if key not in repeats and "evaluation" in key[1][:1]]
    if len(others) == len(grouped) - len(repeats):
        others = []
    for keys, what in ((repeats, "with rollouts that others hold too"), (others, "of evaluations")):
        files = [file for key in keys for file in grouped.pop(key)[1]]
        if files:
            notes.append(f"{len(files)} files {what} passed over (first: {files[0].relative_to(top)})")
    return notes


def _shown(folder: Path, files: Sequence[Path]) -> Path:
    """What a person calls a run: the folder with all its files, or the one with the folders of its steps."""
    return files[0].parent if folder.is_dir() and len({file.parent for file in files}) == 1 else folder


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


def _recognised(
    files: Sequence[Path], named: str | None, columns: Columns
) -> tuple[dict[Path, tuple[str, Columns, int | None]], list[tuple[Path, str]]]:
    """What :func:`_recognise` says of each file, and the files of no known format, with what they hold.

    A named format is asked which files are its own; where none is, it holds for all of them.
    """
    for is_sure in (True, False):
        found, unknown = {}, []
        for file in files:
            try:
                found[file] = _recognise(file, named, columns, is_sure=is_sure)
            except UnknownFormatError as error:
                unknown.append((file, str(error).partition("got:")[2].partition("\n")[0].strip()))
        if found or named is None:
            break
    return found, unknown


def _recognise(
    path: Path, named: str | None, columns: Columns, *, is_sure: bool = False
) -> tuple[str, Columns, int | None]:
    """The name of a file's format, its columns, and the step that its first row or its own name tells.

    A first row that is like no other, such as settings of the run, does not count. A named format is not asked whether
    it recognises the file, unless that has to be sure.
    """
    left_out = LeftOut()
    rows = [with_paths(row, columns.named().values()) for row in sample(path, left_out)]
    if not rows:
        refuse_empty(path, "; ".join(left_out.notes()) or "an empty file")
    first, name = FirstRows(path, rows, columns), None if is_sure else named
    for start in (0, 1) if len(rows) > 1 else (0,):
        if name is None:
            first = FirstRows(path, rows[start:], columns)
            forms = ((n, form) for n, form in LOG_FORMATS if named in (None, n))
            name = next((n for n, form in forms if form.recognises(first)), None)
    if name is None:
        _refuse(path, rows[0])
    used = LOG_FORMATS[name].columns(first)
    step = whole(inside(first.rows[0], used.step)) if used.step else None
    return name, used, numbered(path.name.partition(".")[0]) if step is None else step


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
    read_as = None if log.read_as is None else f"format = {source.format}, {log.read_as}"
    log = replace(log, notes=(*source.notes, *log.notes), read_as=read_as)
    if not len(log.visit):
        refuse_empty(source.path, "; ".join(log.notes) or "no lines with a visit")
    if single := int((log.trials == 1).sum()):
        log = replace(log, notes=(*log.notes, f"{single} visits of one rollout say nothing about variance"))
    return log
