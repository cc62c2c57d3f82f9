"""The default design against uniform, and uniform with twice the rollouts; ``make demo`` runs it.

A small language model learns in one pass over fresh prompts: none is trained on twice, and success is measured on
prompts that are never trained on. Every arm has the learning rate that is best for it, see RATES. Runs land in
runs/demo; those that are finished are not repeated, those that were interrupted are continued.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table

from allotment.compare import Job, finished_runs, on_processes
from allotment.compare.figures import reach
from allotment.lab.config import TrainConfig
from allotment.report import write_report
from allotment.report.data import Run
from allotment.report.summary import Estimate

OUT = Path("runs/demo")
SEEDS, STEPS = range(5), 100
RATES = {"uniform": 1e-4, "uniform-2x": 1e-4, "joint": 1e-4}
"""Each arm's own best of 5e-5, 1e-4, 2e-4 and 4e-4 in this case, on seeds 100 to 103 (benchmarks/joint_learning.py);
here it happens to be the same for all."""
SHAPES: dict[str, dict[str, Any]] = {
    "uniform": {"planner": "uniform"},
    "uniform-2x": {"planner": "uniform", "prompts_per_step": 32},
    "joint": {"planner": "joint"},
}
"""A step is 8 rollouts of each of 16 prompts, of each of 32 (twice as many), or 128 as the planner decides among 256
prompts."""
Arms = Mapping[str, Sequence[Run]]


def main() -> None:
    """Train, print the table, write the summary and the report."""
    console = Console()
    console.rule("Allotment: which prompts, and how many rollouts?")
    console.print(f"A small language model learns from verified answers: 3 arms × {len(SEEDS)} seeds × {STEPS} steps.")
    arms = study(OUT)
    console.print(table(arms))
    found = summary(arms)
    (OUT / "summary.json").write_text(json.dumps(found, indent=2) + "\n")
    if found["rollouts_to_uniform"] is not None:
        share = f"{found['rollouts_to_uniform']:.0%}"
        console.print(f"The default design is at uniform's final success after {share} of uniform's rollouts.")
    page = write_report([run.path for runs in arms.values() for run in runs], OUT / "report.html").resolve()
    console.print(f"The report is at {page}", soft_wrap=True)


def job(out: Path, arm: str, seed: int) -> Job:
    """One run of an arm."""
    each = {"pool": "generated", "steps": STEPS, "evaluate_every": 20, "checkpoint_every": 50}
    return Job(out / f"{arm}-s{seed}", TrainConfig(**each, **SHAPES[arm], learning_rate=RATES[arm], seed=seed))


def study(out: Path) -> Arms:
    """The runs of all arms, made where they are missing; a run that fails ends the demo."""
    jobs = [job(out, arm, seed) for seed in SEEDS for arm in SHAPES]
    finished = finished_runs(jobs)
    missing = [each for each in jobs if each.path not in finished]
    with closing(on_processes(missing, min(2, os.cpu_count() or 1))) as ends:
        for ended in track(ends, "Training", total=len(missing), disable=not missing):
            if ended.error is not None:
                sys.exit(f"{ended.job.path}: {ended.error}")
    runs = finished_runs(jobs)
    return {arm: [runs[job(out, arm, seed).path] for seed in SEEDS] for arm in SHAPES}


def at_end(runs: Sequence[Run]) -> np.ndarray:
    """Success on prompts never trained on at the end of each run."""
    return np.array([run.evaluations[run.config.steps]["held_out_success"] for run in runs])


def summary(arms: Arms) -> dict[str, Any]:
    """Success by arm, differences to uniform by seed, and after which share of uniform's rollouts joint is there."""
    pairs = list(zip(arms["joint"], arms["uniform"], strict=True))
    there = reach(pairs, "held_out_success")
    return {
        "start": arms["uniform"][0].evaluations[0]["held_out_success"],
        "success": {arm: _mean_se(at_end(runs)) for arm, runs in arms.items()},
        "difference": {arm: _mean_se(at_end(runs) - at_end(arms["uniform"])) for arm, runs in arms.items()},
        "rollouts": {arm: runs[0].evaluations[runs[0].config.steps]["rollouts_total"] for arm, runs in arms.items()},
        "learning_rate": {arm: runs[0].config.learning_rate for arm, runs in arms.items()},
        "rollouts_to_uniform": None if there is None else there.share,
    }


def table(arms: Arms) -> Table:
    """The summary for the eye."""
    found = summary(arms)
    shown = Table(
        title=f"Success on prompts never trained on; {found['start']:.3f} before the training",
        box=SIMPLE,
        pad_edge=False,
    )
    for column in ("arm", "rollouts", "rate", "success", "gain", "to uniform"):
        shown.add_column(column, justify="left" if column == "arm" else "right", no_wrap=True)
    for arm in arms:
        success, difference = found["success"][arm], found["difference"][arm]
        gain = success["mean"] - found["start"]
        against = "" if arm == "uniform" else f"{difference['mean']:+.4f} ± {difference['se']:.4f}"
        ends = f"{success['mean']:.4f} ± {success['se']:.4f}"
        shown.add_row(arm, f"{found['rollouts'][arm]:,}", f"{RATES[arm]:g}", ends, f"{gain:+.4f}", against)
    return shown


def _mean_se(values: np.ndarray) -> dict[str, float]:
    found = Estimate.of(values.tolist())
    return {"mean": found.mean, "se": found.standard_error or 0.0}


if __name__ == "__main__":
    main()
