"""GDPO against GRPO on the sum of rewards, paired by seed: ``python benchmarks/objectives_gdpo.py [OUT.json]``.

Rewards correctness, format and length; equal rollouts. Prints markdown: each reward's mean over rollouts of the whole
pool at the end, the paired differences to GRPO, how many values advantages take in a group, and the time of a step.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from allotment.lab.config import TrainConfig
from allotment.lab.generation import Rollouts
from allotment.lab.judges import named_rewards
from allotment.lab.recent import Visit
from allotment.lab.train import Trainer
from allotment.learning import grpo_advantages
from allotment.methods.objectives.gdpo import GDPO
from allotment.types import Plan

REWARDS = ("correctness", "format", "length")
LENGTH_TARGET = 8  # of 8 to 13 the one that most groups of the shipped policy are divided about
ARMS: dict[str, dict[str, Any]] = {
    "grpo, correctness alone": {"objective": ("grpo",), "rewards": ("correctness",)},
    "grpo on the sum": {"objective": ("grpo",)},
    "gdpo": {"objective": ("gdpo",)},
    "gdpo, not whitened": {"objective": ("gdpo",), "objective_settings": {"gdpo": {"whiten": "none"}}},
    "gdpo, length if correct": {
        "objective": ("gdpo",),
        "objective_settings": {"gdpo": {"conditions": {"length": "correctness"}}},
    },
}
BASELINE = "grpo on the sum"


class Watched(Trainer):
    """A run that counts, on its own rollouts, how many values the advantages of GRPO and of GDPO take in a group."""

    def __init__(self, arm: str, seed: int, steps: int, learning_rate: float) -> None:
        given = {"rewards": REWARDS, "length_target": LENGTH_TARGET, "planner": "uniform"} | ARMS[arm]
        super().__init__(TrainConfig(seed=seed, steps=steps, learning_rate=learning_rate, **given))
        self.values: list[tuple[float, ...]] = []

    def learn(self, visit: Visit, plan: Plan) -> dict[str, Any]:
        """As always, after counting."""
        rewards, group_N = self.all_rewards(visit.rollouts), visit.rollouts.group_N
        on_sum_N = grpo_advantages(torch.stack(list(rewards.values())).sum(0), group_N)
        gdpo_N = GDPO(whiten="none").advantages(rewards, group_N)
        own_Q = [
            [len(set(advantages_N[group_N == q].mul(1e4).round().tolist())) for q in group_N.unique()]
            for advantages_N in (on_sum_N, gdpo_N)
        ]
        self.values.append(tuple(f for counts in own_Q for f in (np.mean(counts), np.mean(np.array(counts) == 1))))
        return super().learn(visit, plan)

    def all_rewards(self, rollouts: Rollouts) -> dict[str, torch.Tensor]:
        """The three rewards, whichever of them the run learns from."""
        return named_rewards(REWARDS, self.lab, rollouts, LENGTH_TARGET)

    def at_the_end(self) -> dict[str, float]:
        """Means over 8 rollouts of every prompt of the pool; exact success; counts of advantages, means over steps."""
        pool = self.mixture.pool
        rollouts = self.lab.rollouts(pool, np.full(len(pool), 8), torch.Generator().manual_seed(1))
        rewards = self.all_rewards(rollouts)
        both = rewards["correctness"] * rewards["length"]
        names = ("values_sum", "dead_sum", "values_gdpo", "dead_gdpo")
        counted = np.mean(self.values, 0) if self.values else np.full(4, np.nan)
        return {
            **{name: reward_N.mean().item() for name, reward_N in rewards.items()},
            "correct and short": both.mean().item(),
            "all three": (both * rewards["format"]).mean().item(),
            "exact success": self.evaluate()["pool_success"],
            **dict(zip(names, counted.tolist(), strict=True)),
        }


def run(arm: str, seed: int, steps: int, learning_rate: float) -> dict[str, Any]:
    """One run: its end, and the means of its rewards at every step."""
    trainer = Watched(arm, seed, steps, learning_rate)
    rows = [trainer.step(step)[0] for step in range(1, steps + 1)]
    curves = {name: [row[name] for row in rows] for name in rows[0] if name.startswith("reward_") or name == "success"}
    return {"arm": arm, "seed": seed, "end": trainer.at_the_end(), "curves": curves}


def table(results: list[dict[str, Any]], start: dict[str, float]) -> str:
    """Markdown: means over seeds with standard errors, then paired differences to the baseline."""
    names = list(start)
    lines = ["| run | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    lines.append("| before training | " + " | ".join(f"{start[name]:.3f}" for name in names) + " |")
    arms = dict.fromkeys(r["arm"] for r in results)
    of = {arm: np.array([[r["end"][n] for n in names] for r in results if r["arm"] == arm]) for arm in arms}
    for arm, values in of.items():
        lines.append(f"| {arm} | " + " | ".join(_mean(column) for column in values.T) + " |")
    for arm, values in of.items():
        if arm != BASELINE and BASELINE in of:
            lines.append(f"| {arm} - baseline | " + " | ".join(_mean(c, "+") for c in (values - of[BASELINE]).T) + " |")
    return "\n".join(lines)


def _mean(values: np.ndarray[Any, np.dtype[np.float64]], sign: str = "") -> str:
    return f"{values.mean():{sign}.3f} ({values.std(ddof=1) / len(values) ** 0.5:.3f})"


def overhead(steps: int = 60) -> str:
    """Median milliseconds of a step, the two runs in turn."""
    given = {"rewards": REWARDS, "length_target": LENGTH_TARGET, "planner": "uniform"}
    runs = {arm: Trainer(TrainConfig(**given | ARMS[arm])) for arm in (BASELINE, "gdpo")}
    seconds: dict[str, list[float]] = {arm: [] for arm in runs}
    for step in range(1, steps + 1):
        for arm, trainer in runs.items():
            started = time.process_time()
            trainer.step(step)
            seconds[arm].append(time.process_time() - started)
    return ", ".join(f"{arm}: {np.median(s[5:]) * 1000:.1f} ms" for arm, s in seconds.items())


def main() -> None:
    """Run all arms at all seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", help="results as JSON")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS], metavar="ARM")
    given = parser.parse_args()
    settings = (given.steps, given.learning_rate)
    start = Watched("gdpo", 0, *settings).at_the_end()
    jobs = [(arm, seed) for seed in range(given.seeds) for arm in given.arms]
    results = [run(arm, seed, *settings) for arm, seed in track(jobs, "runs")]
    print(table(results, start))
    print("\nCPU time of a step:", overhead())
    if given.out is not None:
        given.out.write_text(json.dumps({"start": start, "runs": results}, indent=1))


if __name__ == "__main__":
    main()
