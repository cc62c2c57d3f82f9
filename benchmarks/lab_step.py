"""Seconds of one RL step in the lab (128 rollouts, one thread): ``python benchmarks/lab_step.py``."""

from __future__ import annotations

import time

import numpy as np

from allotment.lab.config import TrainConfig
from allotment.lab.train import Trainer

STEPS, WARM_UP = 60, 5


def main() -> None:
    """Time whole steps (ask, generate, verify, update, tell) of each planner; prints markdown."""
    print("| planner | rollouts | median ms | 10 % | 90 % |\n|---|--:|--:|--:|--:|")
    for planner in ("uniform", "vip", "vip-paper", "oracle"):
        trainer = Trainer(TrainConfig(planner=planner))
        seconds = []
        for step in range(1, STEPS + 1):
            started = time.perf_counter()
            trainer.step(step)
            seconds.append(time.perf_counter() - started)
        low, median, high = np.percentile(seconds[WARM_UP:], [10, 50, 90]) * 1000
        print(f"| {planner} | {trainer.config.budget} | {median:.0f} | {low:.0f} | {high:.0f} |")


if __name__ == "__main__":
    main()
