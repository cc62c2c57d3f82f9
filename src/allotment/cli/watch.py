"""``allotment watch``: a run as it goes on, from the files it writes; also on a mounted folder of another machine."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from allotment.errors import RunDirectoryError
from allotment.run_logs.files import whole_lines

Row = dict[str, Any]
RECENT = 20
"""Steps that a recent mean is over."""
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 24
"""Characters of a sparkline."""


@dataclass(frozen=True)
class Watch:
    """Show a run while it goes on: progress, newest figures, their course. Ends when the run does."""

    run_directory: Annotated[Path, tyro.conf.Positional]
    """Folder with metrics.jsonl; it may lie on a mounted disk."""
    refresh: float = 1.0
    """Seconds between looks."""
    once: bool = False
    """Show the present state and stop."""

    def run(self) -> None:
        """Look until the run has finished."""
        log, console = MetricsTail(self.run_directory), Console()
        log.read()
        if self.once or not console.is_terminal:
            console.print(view(self.run_directory, log.rows, time.time()))
            return
        with Live(view(self.run_directory, log.rows, time.time()), console=console, auto_refresh=False) as live:
            while not is_finished(self.run_directory, log.rows):
                time.sleep(self.refresh)
                log.read()
                live.update(view(self.run_directory, log.rows, time.time()), refresh=True)


class MetricsTail:
    """The whole lines of ``metrics.jsonl``, each read once; all anew where the file was cut back by a resumed run.
    Raises RunDirectoryError: there is no such file.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "metrics.jsonl"
        self.rows: list[Row] = []
        self._read = 0
        if not self.path.exists():
            raise RunDirectoryError(
                "there is no run to watch",
                got=run,
                allowed="a folder with metrics.jsonl",
                fix="check the path; a run writes its first line when its first evaluation is done",
            )

    def read(self) -> None:
        """Take in what was added; lines that are no JSON objects are ignored."""
        if self.path.stat().st_size < self._read:
            self.rows, self._read = [], 0
        for line in whole_lines(self.path, self._read):
            self._read += len(line)
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                self.rows.append(row)


def view(run: Path, rows: Sequence[Row], now: float) -> Group:
    """What is shown of a run: where it stands, and a line for each figure with its recent mean and course."""
    settings = _settings(run)
    step, steps = (rows[-1]["step"] if rows else 0), settings.get("steps")
    title = " · ".join(str(settings[name]) for name in ("planner", "regime", "model") if settings.get(name))
    head = Text.assemble((str(run), "bold"), f"  {title}", f"  seed {settings['seed']}" if "seed" in settings else "")
    if not steps:
        return Group(head, Text(f"step {step}; {_age(run, rows, now)}"), figures_table(rows))
    place = Table.grid(padding=(0, 2))
    standing = f"step {step} of {steps}, {_pace(run, step, steps)}; {_age(run, rows, now)}"
    place.add_row(ProgressBar(total=steps, completed=step, width=20), standing)
    return Group(head, place, figures_table(rows))


def figures_table(rows: Sequence[Row]) -> Table:
    """Newest value, mean of the last :data:`RECENT`, and course of every figure that any line has."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name, justify in (("figure", "left"), ("last", "right"), (f"mean of {RECENT}", "right"), ("course", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name in dict.fromkeys(key for row in rows for key in row if key != "step"):
        values = [row[name] for row in rows if isinstance(row.get(name), int | float)]
        if values:
            recent = float(np.mean(values[-RECENT:]))
            table.add_row(name, f"{values[-1]:,.6g}", f"{recent:,.6g}", sparkline(values))
    return table


def sparkline(values: Sequence[float]) -> str:
    """At most :data:`WIDTH` bars from the least to the greatest value; means where there are more values than bars."""
    finite = np.array([value for value in values if np.isfinite(value)], dtype=np.float64)
    if not len(finite):
        return ""
    means = np.array([part.mean() for part in np.array_split(finite, min(WIDTH, len(finite)))])
    span = means.max() - means.min()
    heights = np.zeros(len(means)) if span == 0 else (means - means.min()) / span
    return "".join(BARS[round(height * (len(BARS) - 1))] for height in heights)


def is_finished(run: Path, rows: Sequence[Row]) -> bool:
    """Whether the last configured step is there; never where there is no configuration."""
    steps = _settings(run).get("steps")
    return steps is not None and bool(rows) and rows[-1]["step"] >= steps


def _settings(run: Path) -> Row:
    try:
        found = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _pace(run: Path, step: int, steps: int) -> str:
    """Seconds of a step and what is left, by the last lines of ``timing.jsonl``."""
    try:
        lines = deque(whole_lines(run / "timing.jsonl"), maxlen=RECENT)
        times = [row["seconds"] for row in map(json.loads, lines) if "resumed" not in row]
        seconds = float(median(times))
    except (OSError, ValueError, KeyError, TypeError):
        return "no times yet"
    left = (steps - step) * seconds
    return f"{seconds:.2g} s a step, " + (f"{left / 60:.0f} min left" if left > 90 else f"{left:.0f} s left")


def _age(run: Path, rows: Sequence[Row], now: float) -> str:
    if is_finished(run, rows):
        return "finished"
    age = max(0.0, now - (run / "metrics.jsonl").stat().st_mtime)
    return f"last line {age:.0f} s ago" + (": has it stopped?" if age > 600 else "")
