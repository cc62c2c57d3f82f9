"""What a log format is: how its files are recognised and how they become a log. Each format's own file declares one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from allotment.audit.formats.columns import Columns, Row
from allotment.audit.log import Log


@dataclass(frozen=True)
class FirstRows:
    """What a format is recognised by."""

    path: Path
    rows: Sequence[Row]
    """At least one."""
    columns: Columns
    """Those that the user named."""

    @property
    def all_named(self) -> bool:
        """Whether the user named every column that a log needs, and the file has them."""
        return self.columns.complete() and set(self.columns.named().values()) <= set(self.rows[0])

    def has(self, *names: str | None) -> bool:
        """Whether the first row has these columns, and the user named not all columns."""
        return not self.all_named and set(names) <= set(self.rows[0])


@dataclass(frozen=True)
class Source:
    """The files of one run, all of one format."""

    path: Path
    """What a person calls it: the file, or the folder with the files."""
    format: str
    """Name of the format of every file."""
    files: tuple[Path, ...]
    """The files, those of a folder by the numbers in their names."""
    columns: Columns = field(default_factory=Columns)
    """Which column holds what, for the formats with a row a rollout."""
    notes: tuple[str, ...] = ()
    """What a reader should know about the folder."""


@dataclass(frozen=True)
class LogFormat:
    """A format of logs, known by its name in :data:`~allotment.registry.LOG_FORMATS`."""

    summary: str
    """What its rows hold, in a few words."""
    recognises: Callable[[FirstRows], bool]
    """Whether a file that begins so has this format; formats are asked in the order of the table."""
    read: Callable[[Source, float | None], Log]
    """The log of one run, which may hold no visit. The number is the reward above which a rollout succeeded; None to
    find it out."""
    columns: Callable[[FirstRows], Columns] = lambda first: first.columns
    """Which column holds what; raises :class:`~allotment.errors.InvalidInputError` where the user must say more."""
    file_is_run: bool = False
    """Whether each file is a run of its own; else the files that lie directly in one folder are one run."""
