"""Divergence PPO against the ratio clip: several updates a batch, rollouts of a policy other than the trained one.

``python benchmarks/objectives_divergence.py OUT.json [--seeds 0 1 2 3] [--steps 60] [--parts ...]``: learning, paired
by seed, with each rollout policy; the share of closed gates as it nears the trained one; the time of a step.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allotment.lab.config import TrainConfig
from allotment.lab.train import Trainer
from allotment.tasks.mixture import Mixture, load_mixture

SHARE = 6
"""Every sixth prompt of the pool and of the held-out prompts: 129 and 65, seen seven times in 60 steps."""
SETTINGS: dict[str, Any] = {"planner": "uniform", "regime": "short", "learning_rate": 3e-4, "updates": 4}
"""The learning rate is the largest of 1e-4, 3e-4, 1e-3 at which the ratio clip learns on-policy (seed 0)."""


def gate(**settings: Any) -> dict[str, Any]:
    """Divergence PPO."""
    return {"objective": ("divergence-ppo",), "objective_settings": {"divergence-ppo": settings}}


ARMS: dict[str, dict[str, Any]] = {
    "ratio clip .2, anchored on old": {},
    "ratio clip .2, anchored on rollout": gate(gate="ratio"),
    "binary TV .15": gate(),
    "binary KL .05": gate(gate="binary_kl"),
}
STALE = {"actor": "stale", "actor_settings": {"lag": 8}}
CASES: dict[str, dict[str, Any]] = {
    "current": {},
    "stale": STALE,
    "stale-1e-3": {**STALE, "learning_rate": 1e-3},
    "quantised-3": {"actor": "quantised", "actor_settings": {"bits": 3}},
    "quantised-5": {"actor": "quantised", "actor_settings": {"bits": 5}},
}


def part_of_the_pool() -> Mixture:
    """The prompts of the comparison."""
    whole = load_mixture()
    return Mixture(whole.pool[::SHARE], whole.held_out[::SHARE], ())


def run(config: TrainConfig, mixture: Mixture, shares: Sequence[str]) -> dict[str, float]:
    """Success after the last step, the best on the way, and means over the steps of what ``shares`` names."""
    trainer, rows, pool = Trainer(config, mixture=mixture), [], []
    for step in range(1, config.steps + 1):
        rows.append(trainer.step(step)[0])
        if step % 10 == 0:
            pool.append(trainer.evaluate())
    means = {name: float(np.mean([row[name] for row in rows if name in row] or [np.nan])) for name in shares}
    return {**pool[-1], "best_pool_success": max(row["pool_success"] for row in pool), **means}


def paired(
    arms: Mapping[str, dict[str, Any]], common: dict[str, Any], seeds: Sequence[int], shares: Sequence[str]
) -> Any:
    """[arm][seed] what :func:`run` returns; a line is printed for each run."""
    mixture = part_of_the_pool()
    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for seed in seeds:
        for arm, settings in arms.items():
            result = run(TrainConfig(**common, **settings, seed=seed), mixture, shares)
            results[arm].append(result)
            print(f"  {arm}, seed {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in result.items()), flush=True)
    return results


def mean_se(values: Sequence[float]) -> str:
    """Mean (standard error)."""
    return f"{np.mean(values):.4f} ({np.std(values, ddof=1) / len(values) ** 0.5:.4f})"


def table(results: Mapping[str, list[dict[str, float]]], shares: Sequence[str]) -> str:
    """Markdown: a row an arm, differences to the first one paired by seed."""
    names = ["pool_success", "held_out_success", *shares]
    first = [run["pool_success"] for run in next(iter(results.values()))]
    lines = [f"| arm | {' | '.join(names)} | pool, to the first |", "|---" * (len(names) + 2) + "|"]
    for arm, runs in results.items():
        cells = [mean_se([run[name] for run in runs]) for name in names]
        difference = mean_se([run["pool_success"] - base for run, base in zip(runs, first, strict=True)])
        lines.append(f"| {arm} | {' | '.join(cells)} | {difference} |")
    return "\n".join(lines)


def closed_shares(steps: int = 8) -> dict[str, dict[str, float]]:
    """[bits][gate] share of tokens whose gate is closed at the first update, and the mean of ``|mu - pi|``.

    Means over steps at the shipped policy, with its weights rounded to these bits as the rollout policy.
    """
    shares: dict[str, dict[str, float]] = {}
    for bits in (2, 3, 4, 5, 6, 8, 32):
        of_gate = {}
        for name in ("binary_tv", "binary_kl", "topk_tv", "topk_kl", "ratio"):
            actor = {"actor": "quantised", "actor_settings": {"bits": bits}}
            config = TrainConfig(**SETTINGS | {"updates": 1, "learning_rate": 1e-12}, **actor, **gate(gate=name))
            trainer = Trainer(config)
            rows = [trainer.step(step)[0] for step in range(1, steps + 1)]
            rows = [row for row in rows if "gate_fraction" in row]  # not where no group has both outcomes
            of_gate[name] = float(np.mean([row["gate_fraction"] for row in rows]))
            if name == "binary_tv":
                of_gate["|mu - pi|"] = float(np.mean([row["mean_divergence"] for row in rows]))
        shares[str(bits)] = of_gate
        print(f"  {bits} bits: " + ", ".join(f"{name} {share:.4f}" for name, share in of_gate.items()), flush=True)
    return shares


def step_times(arms: Mapping[str, dict[str, Any]], steps: int, **common: Any) -> dict[str, dict[str, float]]:
    """Median CPU milliseconds of a step by arm, and relative to the first arm at the same step; the arms take turns."""
    trainers = {arm: Trainer(TrainConfig(planner="uniform", **common, **settings)) for arm, settings in arms.items()}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for step in range(1, steps + 1):
        for arm, trainer in trainers.items():
            started = time.process_time()
            trainer.step(step)
            seconds[arm].append(time.process_time() - started)
    first = np.array(next(iter(seconds.values())))[5:]
    return {
        arm: {"ms": 1000 * float(np.median(s[5:])), "relative": float(np.median(s[5:] / first))}
        for arm, s in seconds.items()
    }


def timed() -> dict[str, dict[str, float]]:
    """Steps of each gate; prints the overhead."""
    arms = {"baseline": {}, "binary TV": gate(), "binary KL": gate(gate="binary_kl"), "top-20 TV": gate(gate="topk_tv")}
    times = step_times(arms, 40)
    print("\n".join(f"  {arm}: {t['ms']:.1f} ms, {t['relative'] - 1:+.1%}" for arm, t in times.items()))
    return times


def main() -> None:
    """The parts that are asked for; prints markdown, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--parts", nargs="+", default=[*CASES, "closed", "times"])
    arguments = parser.parse_args()
    shares, made = ["gate_fraction", "clip_fraction"], {}
    for part in arguments.parts:
        if part in CASES:
            common = {**SETTINGS, **CASES[part], "steps": arguments.steps}
            made[part] = paired(ARMS, common, arguments.seeds, shares)
            print(f"\n**{part}**\n\n{table(made[part], ['best_pool_success', *shares])}\n", flush=True)
        else:
            made[part] = {"closed": closed_shares, "times": timed}[part]()
        arguments.out.write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
