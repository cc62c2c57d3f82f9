"""``allotment report``: one HTML page from run directories."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Report:
    """Write a self-contained HTML page about one or more runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR...")]
    """Run directories, as allotment train leaves them, or output_dir of TRL runs from Python; at least one."""
    out: Path = Path("report.html")
    """HTML file to write, or a folder, which gets a report.html."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON file for the numbers of all figures."""

    def run(self) -> None:
        """Write the page and say where it is."""
        from allotment.report import write_report

        command = shlex.join(["allotment", *sys.argv[1:]])
        print(f"report: {write_report(self.runs, self.out, self.json, command)}")
        if self.json is not None:
            print(f"figures: {self.json}")
