"""Formats by declaration: how a writer's rows are recognised and which column holds what."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from allotment.audit.formats.base import Adapter, Columns, FirstRows, LogFormat, Row, completed
from allotment.audit.formats.rollouts import read_rollouts

Adapt = Callable[[Row], Row | str]


def preset(
    summary: str,
    has: Sequence[str],
    columns: Columns,
    adapt: Adapt | None = None,
    *,
    adapter: Adapter | None = None,
    or_has: Sequence[str] = (),
    one_visit: bool = False,
    part: Callable[[Path], str] = lambda path: "",
    again: Callable[[Path], str | None] = lambda path: None,
) -> LogFormat:
    """A format that is known by the keys of its rows.

    Args:
        summary: what its rows hold, in a few words.
        has: the keys that every row has.
        columns: which column holds what, after ``adapt``.
        adapt: see :data:`~allotment.audit.formats.base.Adapter`; the same for every file.
        adapter: in place of ``adapt``, where it depends on the file.
        or_has: other keys that do as well.
        one_visit: see :func:`~allotment.audit.formats.rollouts.read_rollouts`.
        part: see :class:`~allotment.audit.formats.base.LogFormat`.
        again: likewise.
    """
    makes = adapter if adapt is None else lambda path: adapt

    def used(first: FirstRows) -> Columns:
        rows = (
            first.rows
            if makes is None
            else [made for r in first.rows if not isinstance(made := makes(first.path)(r), str)]
        )
        return completed(first.columns.over(columns), rows[0] if rows else first.rows[0])

    return LogFormat(
        summary,
        recognises=lambda first: first.has(*has) or (bool(or_has) and first.has(*or_has)),
        columns=used,
        read=partial(read_rollouts, adapter=makes, one_visit=one_visit),
        part=part,
        again=again,
    )


TABLE_NAME = re.compile(r"(.+)_([0-9]{1,15})_[0-9a-zA-Z]{8,}")
"""The name of a file with a table of wandb's, without its ending: key, step, and some of a hash."""


def table_key(path: Path) -> str:
    """The key under which a table was logged to wandb; nothing for other files."""
    found = TABLE_NAME.fullmatch(path.name.partition(".")[0]) if ".table" in path.suffixes else None
    return found[1] if found else ""
