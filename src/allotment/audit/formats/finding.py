"""Which format a file has, and which files make a run."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NoReturn

from allotment.audit.formats.columns import LENGTHS, PRESETS, Columns, Row, trl_rewards
from allotment.audit.formats.tables import ENDINGS, sample
from allotment.errors import InvalidInputError

Format = Literal["counts", "run", "verl", "trl", "columns"]
FORMATS = "prompt_id, rollouts_per_visit, successes; prompt_id, step, n, successes; input, output, score, step (verl); \
step, prompt, completion and a reward (TRL); or columns named with --prompt, --step, --reward"


@dataclass(frozen=True)
class Source:
    """The files of one run, all of one format."""

    path: Path
    """What a person calls it: the file, or the folder with the files."""
    format: Format
    """Format of every file."""
    files: tuple[Path, ...]
    """The files, those of a folder by the numbers in their names."""
    columns: Columns = field(default_factory=Columns)
    """Which column holds what, for the formats with a row a rollout."""
    notes: tuple[str, ...] = ()
    """What a reader should know about the folder."""


class UnknownFormatError(InvalidInputError):
    """A file has none of the known formats, or no row by which to tell."""


def find_sources(path: str | Path, named: Format | None = None, columns: Columns | None = None) -> list[Source]:
    """The runs at ``path``.

    A file is one run. In a folder, and all folders in it but hidden ones, each file of our own formats is a run, and
    the files of another format that lie directly in one folder are one run. Files of no known format are passed over,
    which the first run's notes say.

    Args:
        path: a file or folder.
        named: the format, if it shall not be found out.
        columns: column names that stand in for those of the format.

    Raises:
        InvalidInputError: no run is found, or a reward must be chosen among several columns.
        MissingExtraError: a parquet file, and pyarrow is not installed.
        OSError: something cannot be read.
    """
    path, columns = Path(path), columns or Columns()
    if not path.is_dir():
        form, used = _recognise(path, named, columns)
        return [Source(path, form, (path,), used)]
    grouped: dict[tuple[Path, Format], tuple[Columns, list[Path]]] = {}
    passed_over = []
    for file in _files(path):
        try:
            found, columns_here = _recognise(file, named, columns)
        except UnknownFormatError:
            passed_over.append(file)
            continue
        place = file if found in ("counts", "run") else file.parent
        grouped.setdefault((place, found), (columns_here, []))[1].append(file)
    sources = [Source(place, form, tuple(files), used) for (place, form), (used, files) in grouped.items()]
    if not sources:
        _refuse_folder(path, passed_over)
    if passed_over:
        said = f"{len(passed_over)} files passed over, of no known format (first: {passed_over[0].name})"
        sources[0] = replace(sources[0], notes=(said,))
    return sources


def _files(folder: Path) -> list[Path]:
    """Every file with a known ending, folder by folder, by the numbers in the names."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in sorted(names, key=_natural) if name.endswith(ENDINGS)]
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    """Orders names by the numbers in them."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]{1,15})", name)]


def _recognise(path: Path, named: Format | None, columns: Columns) -> tuple[Format, Columns]:
    """The format of a file and its columns."""
    first = sample(path)
    if not first:
        refuse_empty(path, "no row that can be read")
    row = first[0]
    form = named or _format(row, path, columns)
    if form is None:
        _refuse(path, row)
    if form in ("counts", "run"):
        return form, columns
    used = columns.over(PRESETS.get(form, Columns()))
    if used.tokens is None:
        used = replace(used, tokens=next((name for name in LENGTHS if name in row), None))
    if form == "trl" and used.reward is None:
        used = replace(used, reward=_trl_reward(path, first))
    if not used.complete():
        _refuse_columns(used)
    return form, used


def _format(row: Row, path: Path, columns: Columns) -> Format | None:
    if columns.complete() and set(columns.named().values()) <= set(row):
        return "columns"
    if "rollouts_per_visit" in row:
        return "counts"
    if {"prompt_id", "step"} <= set(row) and not {"n", "successes"}.isdisjoint(row):
        return "run"
    verl = columns.over(PRESETS["verl"])
    if {verl.prompt, verl.reward, verl.completion} <= set(row) and (verl.step in row or path.stem.isdecimal()):
        return "verl"
    return "trl" if set(columns.over(PRESETS["trl"]).named().values()) <= set(row) else None


def _trl_reward(path: Path, first: Sequence[Row]) -> str:
    """The only column that may be a reward.

    Raises:
        InvalidInputError: there is none, or there are several.
    """
    names = [name for name in trl_rewards(first[0]) if all(name in trl_rewards(row) for row in first)]
    if len(names) != 1:
        raise InvalidInputError(
            f"{path}: which column is the reward?",
            got=", ".join(names) or "no column of numbers",
            allowed="one column; TRL does not log the weights of its reward functions",
            fix="name the one that says whether a rollout succeeded: --reward NAME",
        )
    return names[0]


def _refuse(path: Path, row: Row) -> NoReturn:
    raise UnknownFormatError(
        f"{path}, line 1: unknown format",
        got=", ".join(map(str, row))[:120] or "no keys",
        allowed=FORMATS,
        fix="name the columns, or pass the log of a run",
    )


def refuse_empty(path: Path, got: str) -> NoReturn:
    """Raise :class:`UnknownFormatError`: nothing in the log can be used; ``got`` says why."""
    fix = "pass the success log of a run that was not stopped before its first step"
    raise UnknownFormatError(f"{path} holds no visits", got=got, allowed="at least one visit", fix=fix)


def _refuse_columns(columns: Columns) -> NoReturn:
    raise InvalidInputError(
        "not all columns are named",
        got=", ".join(f"--{role} {name}" for role, name in columns.named().items()) or "none",
        allowed="--prompt or --id, --step and --reward",
        fix="name the missing ones",
    )


def _refuse_folder(path: Path, passed_over: Sequence[Path]) -> NoReturn:
    raise InvalidInputError(
        f"{path} is a directory without a log",
        got=f"{len(passed_over)} files of no known format" + (f", first {passed_over[0]}" if passed_over else ""),
        allowed=FORMATS,
        fix="pass the folder or file that holds the rollouts",
    )
