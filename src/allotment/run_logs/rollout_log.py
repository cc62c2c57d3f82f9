"""``rollouts.jsonl`` beside a trainer's checkpoints: what ``allotment audit`` and ``allotment report`` read."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from allotment.disk import is_held_here
from allotment.errors import RunDirectoryError, StateError
from allotment.run_logs.files import append_rows, read_log, sync, to_jsonl, write_atomically
from allotment.run_logs.one_writer import TRAINER_LOCK, one_writer

log = logging.getLogger("allotment")


class RolloutLog:
    """Appends lines, and cuts them back to the checkpoint that a run resumes from.

    Args:
        path: the file.
        alone: whether to keep other processes out of its folder, from the first line on until the log is forgotten; for
            trainers of which no method of ours runs as long as they train.

    Raises, with the first line or at :meth:`resume`, RunDirectoryError: another process trains into the folder.
    """

    def __init__(self, path: Path, *, alone: bool = False) -> None:
        self.path = path
        self._is_own = False
        self._alone, self._lock = alone, ExitStack()

    def _keep_others_out(self) -> None:
        if not self._alone:
            return
        try:
            self._lock.enter_context(one_writer(self.path.parent, lock=TRAINER_LOCK))
            self._alone = False
        except RunDirectoryError:
            if not is_held_here(self.path.parent / TRAINER_LOCK):
                raise  # else an earlier log of this process has it still; the next line asks again

    def _start(self) -> None:
        """Before the first line: a log that an earlier run left is kept under another name."""
        self._keep_others_out()
        if self.path.exists() and self.path.stat().st_size and not self._is_own:
            number = next(n for n in range(1, 1_000_000) if not self._kept(n).exists())
            os.replace(self.path, self._kept(number))
            log.warning("%s is of an earlier run; it is now %s", self.path, self._kept(number).name)
        self._is_own = True

    def resume(self, step: int) -> None:
        """Go on after ``step``: later lines, of steps that are to be repeated, are taken off. Raises StateError: the
        log is damaged.
        """
        self._keep_others_out()
        try:
            rows = [row for row in read_log(self.path) if row["step"] <= step]
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(
                f"{self.path} is damaged",
                got=f"{type(error).__name__}: {error}",
                allowed="one JSON object a line; only the last line may be cut short",
                fix="restore the file, or move it away: the log then begins at the checkpoint",
            ) from error
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, to_jsonl(rows))
        self._is_own = True

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add lines."""
        self._start()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_rows(self.path, rows)

    def sync(self) -> None:
        """Have what was written on disk before a checkpoint says it was."""
        sync(self.path)

    def _kept(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.stem}-{number}{self.path.suffix}")
