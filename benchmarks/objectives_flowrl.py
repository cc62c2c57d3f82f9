"""Does FlowRL keep more right answers than GRPO on a task that has many? ``python benchmarks/objectives_flowrl.py``

Countdown in the lab: GRPO, and FlowRL at several beta, in paired runs (equal seeds: the same prompts in the same
order), equal rollouts (16 prompts x 8 a step), uniform allocation, equal learning rate. Success and the number of
different right answers that 16 rollouts of a prompt hold are exact, not sampled. The last columns compare the second
at equal success: GRPO's curve, interpolated to the success that FlowRL has.

Writes the figures to ``--out`` as JSON and prints markdown. Also the CPU time of a step, the two objectives in turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from allotment.lab.config import TrainConfig
from allotment.lab.train import Trainer
from allotment.types import FloatArray

MEASURES = ("pool_success", "pool_distinct", "held_out_success", "held_out_distinct")
Arm = float | None
"""beta of FlowRL; None is GRPO."""


def trainer(arm: Arm, seed: int, options: argparse.Namespace) -> Trainer:
    """A new run."""
    objective: dict[str, Any] = {"objective": ("grpo",)}
    if arm is not None:
        objective = {"objective": ("flowrl",), "objective_settings": {"flowrl": {"beta": arm}}}
    rate, steps = options.learning_rate, options.steps
    return Trainer(
        TrainConfig(regime="countdown", planner="uniform", seed=seed, steps=steps, learning_rate=rate, **objective)
    )


def run(arm: Arm, seed: int, options: argparse.Namespace) -> list[dict[str, float]]:
    """One run's exact measures: before the first step, and every ``options.every`` steps."""
    made = trainer(arm, seed, options)
    rows = [made.evaluate()]
    for step in range(1, options.steps + 1):
        made.step(step)
        if step % options.every == 0:
            rows.append(made.evaluate())
    return rows


def step_times(options: argparse.Namespace, steps: int = 60) -> dict[str, float]:
    """Median CPU milliseconds of a step of GRPO and of FlowRL, and of the paired difference."""
    pair = [trainer(arm, 0, options) for arm in (None, options.betas[0])]
    seconds = np.empty((steps, 2))
    for step in range(steps):
        for column in (0, 1) if step % 2 else (1, 0):
            started = time.process_time()
            pair[column].step(step + 1)
            seconds[step, column] = time.process_time() - started
    grpo, flowrl = 1e3 * np.median(seconds[5:], axis=0)
    added = 1e3 * np.median(seconds[5:, 1] - seconds[5:, 0])
    return {"grpo": float(grpo), "flowrl": float(flowrl), "added": float(added)}


def cell(values_S: FloatArray) -> str:
    """Mean and standard error over seeds."""
    return f"{values_S.mean():.3f} ± {values_S.std(ddof=1) / np.sqrt(len(values_S)):.3f}"


def at_equal_success(flowrl: FloatArray, grpo: FloatArray) -> float:
    """Different answers that FlowRL has at its last step more than GRPO had when it had the same success.

    Both [steps, 2]: success, distinct. GRPO's curve is made monotone in success; beyond it, its last point stands.
    """
    order = np.argsort(grpo[:, 0])
    return float(flowrl[-1, 1] - np.interp(flowrl[-1, 0], grpo[order, 0], grpo[order, 1]))


def tables(results: dict[str, Any], options: argparse.Namespace) -> str:
    """The markdown tables: over the steps, and at equal success."""
    curves = {
        name: np.array([[[row[m] for m in MEASURES] for row in rows] for rows in runs])
        for name, runs in results.items()
    }
    lines = ["| objective | step | " + " | ".join(MEASURES) + " |", "|---|--:|" + "--:|" * len(MEASURES)]
    for name, curve_SKM in curves.items():
        for k in range(curve_SKM.shape[1]):
            cells = [cell(curve_SKM[:, k, m]) for m in range(len(MEASURES))]
            lines.append(f"| {name} | {k * options.every} | {' | '.join(cells)} |")
    lines += ["", "Last step, paired difference to GRPO; and of distinct answers at equal success.", ""]
    lines += ["| objective | " + " | ".join(MEASURES) + " | pool, equal success | held-out, equal success |"]
    lines += ["|---|" + "--:|" * (len(MEASURES) + 2)]
    grpo_SKM = curves["grpo"]
    for name, curve_SKM in list(curves.items())[1:]:
        cells = [cell(curve_SKM[:, -1, m] - grpo_SKM[:, -1, m]) for m in range(len(MEASURES))]
        for pair in (slice(0, 2), slice(2, 4)):
            gaps = [at_equal_success(f[:, pair], g[:, pair]) for f, g in zip(curve_SKM, grpo_SKM, strict=True)]
            cells.append(cell(np.array(gaps)))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Run everything, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--betas", type=float, nargs="+", default=[15.0, 3.0, 1.0, 0.3])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--every", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/objectives_flowrl.json"))
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    arms: list[Arm] = [None, *options.betas]
    names = {arm: "grpo" if arm is None else f"flowrl, beta {arm:g}" for arm in arms}
    with ProcessPoolExecutor(options.processes) as pool:
        jobs = {(arm, seed): pool.submit(run, arm, seed, options) for seed in options.seeds for arm in arms}
        for (arm, seed), job in jobs.items():
            print(f"{names[arm]}, seed {seed}: {json.dumps(job.result())}", flush=True)
    results = {names[arm]: [jobs[arm, seed].result() for seed in options.seeds] for arm in arms}
    print("\n" + tables(results, options), flush=True)
    times = step_times(options)
    print(f"\nCPU milliseconds a step: {times}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"options": vars(options), "runs": results, "times": times}, default=str, indent=1)
    )


if __name__ == "__main__":
    main()
