"""From files to a :class:`~allotment.audit.log.Log`, whatever format they have: see :mod:`allotment.audit.formats`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from allotment.audit.formats.base import Source
from allotment.audit.formats.columns import Columns
from allotment.audit.formats.finding import find_sources, refuse_empty
from allotment.audit.log import Log
from allotment.errors import InvalidInputError
from allotment.registry import LOG_FORMATS


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
