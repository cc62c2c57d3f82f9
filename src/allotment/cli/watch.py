"""``allotment watch``: a run as it goes on, from the files it writes; also on a mounted folder of another machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from allotment.cli.tails import RECENT, Row, Tail, tail_of

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 24
"""Characters of a sparkline."""


@dataclass(frozen=True)
class Watch:
    """Show a run while it goes on: progress, newest figures, their course. Ends when the run does."""

    run_directory: Annotated[Path, tyro.conf.Positional]
    """Folder with metrics.jsonl, or output_dir of a TRL run from Python; it may lie on a mounted disk."""
    refresh: float = 1.0
    """Seconds between looks."""
    once: bool = False
    """Show the present state and stop."""

    def run(self) -> None:
        """Look until the run has finished."""
        log, console = tail_of(self.run_directory), Console()
        log.read()
        if self.once or not console.is_terminal:
            console.print(view(self.run_directory, log, time.time()))
            return
        with Live(view(self.run_directory, log, time.time()), console=console, auto_refresh=False) as live:
            while not is_finished(log):
                time.sleep(self.refresh)
                log.read()
                live.update(view(self.run_directory, log, time.time()), refresh=True)


def view(run: Path, log: Tail, now: float) -> Group:
    """What is shown of a run: where it stands, and a line for each figure with its recent mean and course."""
    settings, rows = log.settings(), log.rows
    step, steps = (rows[-1]["step"] if rows else 0), settings.get("steps")
    title = " · ".join(str(settings[name]) for name in ("planner", "regime", "model") if settings.get(name))
    head = Text.assemble((str(run), "bold"), f"  {title}", f"  seed {settings['seed']}" if "seed" in settings else "")
    if not steps:
        return Group(head, Text(f"step {step}; {_age(log, now)}"), figures_table(rows))
    place = Table.grid(padding=(0, 2))
    place.add_row(
        ProgressBar(total=steps, completed=step, width=20),
        f"step {step} of {steps}, {_pace(log.seconds(), steps - step)}; {_age(log, now)}",
    )
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


def is_finished(log: Tail) -> bool:
    """Whether the last step is there; never where nothing says which it is."""
    steps = log.settings().get("steps")
    return steps is not None and bool(log.rows) and log.rows[-1]["step"] >= steps


def _pace(times: Sequence[float], steps: int) -> str:
    """Seconds of a step, and what ``steps`` more of them take."""
    if not times:
        return "no times yet"
    seconds = float(median(times))
    left = steps * seconds
    return f"{seconds:.2g} s a step, " + (f"{left / 60:.0f} min left" if left > 90 else f"{left:.0f} s left")


def _age(log: Tail, now: float) -> str:
    if is_finished(log):
        return "finished"
    age = max(0.0, now - log.path.stat().st_mtime)
    return f"last line {age:.0f} s ago" + (": has it stopped?" if age > 600 else "")
