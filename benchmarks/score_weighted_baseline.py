"""What a baseline weighted by the size of scores would bring over the belief in success alone.

    nice python benchmarks/score_weighted_baseline.py               # both regimes, ten minutes

The baseline of least variance for one rollout is ``E[r |s|^2] / E[|s|^2]`` (optimal baseline). Here it is known from
half of the rollouts of each prompt and judged by the other half; ``c(m)`` is a cubic in the belief m, fitted to it on
half of the prompts and judged on the rest, as a planner could learn it. Printed: the variance within a step of one
rollout for each prompt, and the total of 128 of them, relative to the belief as baseline.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from allotment.lab.checkpoint import load_lab
from allotment.lab.config import GradientVarianceConfig
from allotment.lab.gradient_measurement import Measured, measured
from allotment.lab.informed import informed_planners
from allotment.lab.step_variance import Judge
from allotment.tasks.countdown import mixture_of

PLANNER = "uniform-128x1-shrinkage"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| regime | baseline | within | total |\n|---|---|--:|--:|")
    for regime in ("scratchpad", "short"):
        for name, (within, total) in compared(regime, options.history, options.seed).items():
            print(f"| {regime} | {name} | {within:.3f} | {total:.3f} |")


def compared(regime: str, history: int, seed: int) -> dict[str, tuple[float, float]]:
    """Variance with each baseline, within and in total, relative to the belief."""
    config = GradientVarianceConfig(regime=regime, history=history, seed=seed, planners=(PLANNER,))  # type: ignore[arg-type]
    lab, pool = load_lab(regime), mixture_of(regime).pool
    order = np.random.default_rng(seed).permutation(len(pool))[: config.measured_prompts]
    batches = np.array_split(order, config.batches)
    whole = Measured.joined([measured(lab, [pool[i] for i in rows], config, b) for b, rows in enumerate(batches)])
    belief_Q = informed_planners(config, lab, pool)[PLANNER].predictor.predict(whole.ids).success_probability()
    between = Judge(whole).between_even(128)
    within = dict.fromkeys(("the belief", "c(m), learnt", "p, known", "optimal, known"), 0.0)
    for own, other in (whole.baseline_halves, whole.baseline_halves[::-1]):
        known_Q = other.successes / (other.successes + other.failures)
        baselines = {
            "the belief": belief_Q,
            "c(m), learnt": learnt(belief_Q, known_Q, other.successes + other.failures),
            "p, known": own.probability,
            "optimal, known": known_Q,
        }
        for name, baseline_Q in baselines.items():
            ones_Q = np.ones(len(baseline_Q), dtype=np.int64)
            within[name] += float(own.variance(ones_Q, baseline_Q, None).mean()) / 2 / 128
    unit = within["the belief"]
    return {name: (value / unit, (value + between) / (unit + between)) for name, value in within.items()}


def learnt(belief_Q: np.ndarray, known_Q: np.ndarray, sizes_Q: np.ndarray) -> np.ndarray:
    """[Q] a cubic in the belief, weighted by the size of scores; fitted on every second prompt for the others."""
    features_QK = np.vander(belief_Q, 4)
    result_Q = np.empty_like(belief_Q)
    for first in (0, 1):
        fit, judged = slice(first, None, 2), slice(1 - first, None, 2)
        root = np.sqrt(sizes_Q[fit])
        weights_K, *_ = np.linalg.lstsq(features_QK[fit] * root[:, None], known_Q[fit] * root, rcond=None)
        result_Q[judged] = features_QK[judged] @ weights_K
    return result_Q


if __name__ == "__main__":
    main()
