"""VIP against uniform on a small language model that learns by RLVR, same budget and same seeds; ``make demo`` runs it.

Runs land in runs/demo; runs that are finished are not repeated, those that were interrupted are continued.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from allotment.cli.main import main as allotment
from allotment.report import write_report

OUT = Path("runs/demo")
SETTINGS = "--planners vip --seeds 6 --steps 150 --no-yardsticks --processes 2"


def main() -> None:
    """Train, print the table, write the report."""
    console = Console()
    console.rule("Allotment: who gets how many rollouts?")
    console.print(
        "A small language model learns from verified answers: 2 planners × 6 seeds × 150 steps × 128 rollouts."
    )
    status = allotment(["compare", str(OUT), *SETTINGS.split()])
    if status:
        sys.exit(status)
    page = write_report(sorted(path.parent for path in OUT.glob("*/config.json")), OUT / "report.html").resolve()
    console.print(f"The report is at {page}", soft_wrap=True)


if __name__ == "__main__":
    main()
