"""Learning curves of the lab, paired by seed: ``python benchmarks/learning.py OUT_DIR [--seeds 8] [--steps 100]``.

Uniform at 8 rollouts a prompt is the reference; the yardsticks are uniform at twice the budget and VIP with the oracle.
Finished runs in OUT_DIR are not repeated. Prints a markdown table: mean (standard deviation over seeds), and the paired
difference to uniform (standard error).
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from rich.progress import track

from allotment.config import TrainConfig
from allotment.lab.run_directory import RunDirectory, read_log
from allotment.report.summary import Estimate

ARMS = {
    "uniform": {"planner": "uniform"},
    "VIP, oracle": {"planner": "oracle"},
    "VIP, default": {"planner": "vip"},
    "VIP, gradient moments": {"planner": "vip-moments"},
    "VIP, second look": {"planner": "vip-second-look"},
    "VIP, token budget": {"planner": "vip-tokens"},
    "VIP, paper": {"planner": "vip-paper"},
    "uniform, 2x budget": {"planner": "uniform", "rollouts_per_prompt": 16},
}
METRICS = ("pool_success", "held_out_success")


def run(path: Path, config: TrainConfig) -> None:
    """One run, continued or skipped where it stands."""
    from allotment.lab.train import Trainer

    directory = (
        RunDirectory.resume(path, config) if (path / "config.json").exists() else RunDirectory.create(path, config)
    )
    if not any(row["step"] == config.steps for row in read_log(path / "metrics.jsonl")):
        Trainer(config).run(directory)


def table(out: Path, seeds: int, steps: int) -> str:
    """The results as markdown."""
    marks = sorted({steps // 2, steps})
    columns = [(metric, mark) for metric in METRICS for mark in marks]
    names = [f"{metric.removesuffix('_success').replace('_', '-')}, step {mark}" for metric, mark in columns]
    lines = ["| arm | rollouts | tokens | " + " | ".join(names) + " |", "|---|--:|--:|" + "--:|" * len(columns)]
    reference = values(out, "uniform", seeds, columns)
    for arm in ARMS:
        own = values(out, arm, seeds, columns)
        last = [read_log(directory(out, arm, seed) / "metrics.jsonl")[-1] for seed in range(seeds)]
        totals = [np.mean([row[key] for row in last]) for key in ("rollouts_total", "tokens_total")]
        cells = [f"{v.mean():.4f} ({v.std(ddof=1):.4f})" for v in own.T]
        lines.append(f"| {arm} | {totals[0]:,.0f} | {totals[1]:,.0f} | " + " | ".join(cells) + " |")
        if arm != "uniform":
            paired = (own - reference).T
            cells = [f"{e.mean:+.4f} ({e.standard_error:.4f})" for e in map(Estimate.of, paired)]
            lines.append(f"| paired difference to uniform (se) | | | {' | '.join(cells)} |")
    return "\n".join(lines)


def values(out: Path, arm: str, seeds: int, columns: list[tuple[str, int]]) -> np.ndarray:
    """[seeds, columns] the metric at the step, per seed."""
    result = []
    for seed in range(seeds):
        rows = {row["step"]: row for row in read_log(directory(out, arm, seed) / "metrics.jsonl")}
        result.append([rows[mark][metric] for metric, mark in columns])
    return np.array(result)


def directory(out: Path, arm: str, seed: int) -> Path:
    """Where the run of an arm and a seed lies."""
    return out / f"{arm.replace(', ', '-').replace(' ', '-').lower()}-s{seed}"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(arguments.processes) as pool:
        jobs = [
            pool.submit(
                run,
                directory(arguments.out, arm, seed),
                TrainConfig(seed=seed, steps=arguments.steps, **settings),
            )
            for seed in range(arguments.seeds)
            for arm, settings in ARMS.items()
        ]
        for job in track(jobs, description="runs"):
            job.result()
    print(table(arguments.out, arguments.seeds, arguments.steps))


if __name__ == "__main__":
    main()
