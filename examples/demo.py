"""VIP against uniform on a small language model that learns by RLVR, same budget and same seeds; ``make demo`` runs it.

Runs land in runs/demo; runs that are finished are not repeated, one that was interrupted is continued.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from allotment.cli.main import main as allotment
from allotment.report import write_report
from allotment.report.data import read_study
from allotment.report.summary import Estimate, summarise

PLANNERS, SEEDS, STEPS = ("uniform", "vip"), range(6), 150
OUT = Path("runs/demo")


def train(planner: str, seed: int) -> Path:
    """One run by the command line; returns its directory."""
    directory = OUT / f"{planner}-s{seed}"
    arguments = ["train", "--out", str(directory)]
    if (directory / "config.json").exists():
        arguments.append("--resume")
    else:
        arguments += ["--planner", planner, "--seed", str(seed), "--steps", str(STEPS)]
    status = allotment(arguments)
    if status:
        sys.exit(status)
    return directory


def cell(estimate: Estimate | None) -> str:
    """A mean with its standard error."""
    if estimate is None:
        return ""
    error = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.4f}"
    return f"{estimate.mean:.4f}{error}"


def main() -> None:
    """Train, print the table, write the report."""
    console = Console()
    console.rule("Allotment: who gets how many rollouts?")
    console.print(
        f"A small language model learns from verified answers: {len(PLANNERS)} planners × {len(SEEDS)} seeds"
        f" × {STEPS} steps of 128 rollouts."
    )
    directories = [train(planner, seed) for seed in SEEDS for planner in PLANNERS]
    rows = summarise(read_study(directories))
    table = Table("mean over seeds ± standard error", *(row.arm.label for row in rows))
    for measure, place in (("pool_success", "training prompts"), ("held_out_success", "held-out prompts")):
        table.add_row(f"success, {place}", *(cell(row.success[measure]) for row in rows))
        table.add_row("  paired difference to uniform", *(cell(row.difference[measure]) for row in rows))
    table.add_row("rollouts", *(f"{row.rollouts:,.0f}" for row in rows))
    table.add_row("groups without signal", *(f"{row.zero_variance or 0:.1%}" for row in rows))
    table.add_row("seconds a step", *(f"{row.seconds or 0:.3f}" for row in rows))
    console.print(table)
    for row in rows:
        for measure, difference in row.difference.items():
            if difference is not None:
                console.print(f"{row.arm.label}, {measure.removesuffix('_success')}: {difference.verdict}")
    page = write_report(directories, OUT / "report.html").resolve()
    console.print(f"The report is at {page}", soft_wrap=True)


if __name__ == "__main__":
    main()
