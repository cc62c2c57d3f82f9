"""CAPO against RLOO at learning rates at which RLOO collapses in the lab.

``python benchmarks/objectives_capo.py OUT.json [--seeds 0 1 2 3] [--steps 60] [--parts ...]``: learning, paired by
seed; how well the predicted change of the policy ranks the tokens by their real one; the time of a step.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from allotment.lab.config import TrainConfig
from allotment.lab.train import Trainer
from allotment.methods.objectives.capo import predicted_changes
from objectives_divergence import mean_se, paired, part_of_the_pool, step_times, table


def capo(**settings: Any) -> dict[str, Any]:
    """RLOO behind CAPO."""
    return {"objective": ("rloo", "capo"), "objective_settings": {"capo": settings}}


KEEP_ALL = {"tau_policy": float("inf"), "tau_objective": float("inf")}
CASES: dict[str, dict[str, Any]] = {
    "scratchpad 3e-3": {"regime": "scratchpad", "learning_rate": 3e-3},
    "short 3e-3": {"regime": "short", "learning_rate": 3e-3},
}
PEAK: dict[str, dict[str, float]] = {
    "scratchpad 3e-3": {"tau_policy": 0.024, "tau_objective": 0.15},
    "short 3e-3": {"tau_policy": 0.015, "tau_objective": 0.1},
}
"""Thresholds near the 95 % quantiles of plain RLOO's tokens in steps 2 to 6, seed 0: about the 8 % that the paper
rejects at its peak."""


def arms(case: str) -> dict[str, dict[str, Any]]:
    """What is compared in a case."""
    return {
        "RLOO": {},
        "CAPO, released thresholds": capo(),
        "CAPO, 5 % each at the start": capo(**PEAK[case]),
        "the same, one-sided": capo(**PEAK[case], window="one_sided"),
        "RLOO at 1e-4": {"learning_rate": 1e-4},
    }


def rank_correlation(learning_rate: float, steps: int = 20) -> dict[str, float]:
    """Spearman's correlation of predicted and real change of the policy over the tokens of a step, by step model.

    The real change is the KL divergence of the token's whole distribution before the step to that after it.
    """
    config = TrainConfig(planner="uniform", learning_rate=learning_rate, **capo(**KEEP_ALL))
    trainer = Trainer(config, mixture=part_of_the_pool())
    made: dict[str, list[float]] = {"adam": [], "sgd": []}
    for step in range(1, steps + 1):
        problems = trainer.batch(step)
        rollouts = trainer.generate(problems, np.full(16, 8), torch.Generator().manual_seed(step))
        advantages_N, weights_NT = trainer.advantages(rollouts), trainer.loss_weights(rollouts)
        live_N = advantages_N != 0
        live, head = rollouts.take(live_N), trainer.learner._head()
        given, mask_NT = (problems, live.group_N, live.tokens_NT, live.mask_NT), live.mask_NT
        with torch.no_grad():
            before = trainer.lab.outputs(*given)
            of_tokens = before.hidden_NTH[mask_NT], live.tokens_NT[mask_NT]
            advantages_M = advantages_N[live_N].repeat_interleave(mask_NT.sum(1))
            changes = {name: predicted_changes(*of_tokens, advantages_M, head, step_model=name) for name in made}
        trainer.learner.update(problems, rollouts, advantages_N, weights_NT)
        with torch.no_grad():
            old, new = before.distribution_NTV[mask_NT], trainer.lab.outputs(*given).distribution_NTV[mask_NT]
        for name, change in changes.items():
            made[name].append(float(spearmanr(change.policy_M, (old.exp() * (old - new)).sum(-1)).statistic))
    print(f"  {learning_rate}: " + ", ".join(f"{name} {mean_se(v)}" for name, v in made.items()), flush=True)
    return {name: float(np.mean(values)) for name, values in made.items()}


def timed(steps: int = 60) -> dict[str, Any]:
    """Steps of both regimes; prints the overhead."""
    made = {}
    for regime in ("scratchpad", "short"):
        compared = {"baseline": {}, "Adam": capo(**KEEP_ALL), "gradient": capo(**KEEP_ALL, step_model="sgd")}
        made[regime] = step_times(compared, steps, regime=regime)
        for arm, t in made[regime].items():
            print(f"  {regime}, {arm}: {t['ms']:.1f} ms, {t['relative'] - 1:+.1%}", flush=True)
    return made


def main() -> None:
    """The parts that are asked for; prints markdown, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--parts", nargs="+", default=[*CASES, "correlation", "times"])
    arguments = parser.parse_args()
    shares, made = ["capo_rejected"], {}
    for part in arguments.parts:
        if part in CASES:
            common = {"planner": "uniform", "steps": arguments.steps, **CASES[part]}
            of_case = {arm: {**common, **settings} for arm, settings in arms(part).items()}
            made[part] = paired(of_case, {}, arguments.seeds, shares)
            print(f"\n**{part}**\n\n{table(made[part], ['best_pool_success', *shares])}\n", flush=True)
        elif part == "correlation":
            made[part] = {str(lr): rank_correlation(lr) for lr in (1e-4, 1e-3)}
        else:
            made[part] = timed()
        arguments.out.write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
