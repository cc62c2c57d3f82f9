"""What a budget of tokens gains over one of rollouts, how tight it is, how well it is kept.

    python benchmarks/token_budget.py

Table 1: Q prompts, p uniform on (0, 1), mean lengths log-normal with the given standard deviation between prompts.
Objective sum p (1 - p) / (n - 1) relative to equal counts, at equal expected tokens (8 rollouts of the mean length a
prompt), bounds 3 and 32: "rollouts" splits rollouts without regard to length, its budget set so that it uses the same
tokens; "tokens" splits tokens. ``gap`` is the dual bound of what whole rollouts lose, relative to the objective.

Table 2: VIP(unit="tokens") over 30 visits of 256 prompts, 128 a step, lengths log-normal with standard deviation 0.7
between prompts and the given one within: tokens used over tokens expected, the whole run and per step (mean, sd).
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from allotment import VIP
from allotment.allocation import allocate_exact, allocate_tokens, uniform
from allotment.types import FloatArray

LOWER, UPPER, MEAN = 3, 32, 8


def allocation_row(n_prompts: int, spread: float, seed: int) -> tuple[float, float, float, float]:
    """(rollouts, tokens) objective relative to uniform, relative gap, seconds."""
    rng = np.random.default_rng(seed)
    p_Q = rng.random(n_prompts)
    weights_Q, costs_Q = p_Q * (1 - p_Q), 500 * np.exp(rng.normal(-(spread**2) / 2, spread, n_prompts))
    budget = float(MEAN * costs_Q.sum())
    started = time.perf_counter()
    result = allocate_tokens(weights_Q, budget, costs_Q, lower=LOWER, upper=UPPER)
    seconds = time.perf_counter() - started
    blind = allocate_exact(weights_Q, rollouts_within(weights_Q, costs_Q, budget), lower=LOWER, upper=UPPER)
    base = uniform(weights_Q, MEAN * n_prompts, lower=LOWER, upper=UPPER).objective
    return blind.objective / base, result.objective / base, result.gap / result.objective, seconds


def rollouts_within(weights_Q: FloatArray, costs_Q: FloatArray, budget: float) -> int:
    """The most rollouts whose length-blind split stays within the tokens."""
    low, high = LOWER * len(weights_Q), UPPER * len(weights_Q)
    while low < high:
        middle = (low + high + 1) // 2
        counts = allocate_exact(weights_Q, middle, lower=LOWER, upper=UPPER).counts
        low, high = (middle, high) if costs_Q @ counts <= budget else (low, middle - 1)
    return low


def kept(spread: float, seed: int) -> tuple[float, float, float]:
    """Used over expected tokens: of the whole run, and mean and standard deviation over steps."""
    rng = np.random.default_rng(seed)
    means, p = 500 * np.exp(rng.normal(0, 0.7, 256)), rng.random(256)
    planner = VIP(budget=int(MEAN * 128 * means.mean()), unit="tokens")
    ratios = []
    for _ in range(30):
        order = rng.permutation(256)
        for ids in (order[:128], order[128:]):
            plan = planner.ask(ids)
            groups = np.repeat(ids, plan.counts)
            lengths = np.ceil(means[groups] * np.exp(rng.normal(-(spread**2) / 2, spread, len(groups))))
            planner.tell(plan, rng.random(len(groups)) < p[groups], groups, lengths=lengths)
            ratios.append(lengths.sum() / plan.allocation.expected_tokens)  # type: ignore[union-attr]
    lengths_belief = planner.lengths
    assert lengths_belief is not None
    whole = lengths_belief.used_tokens / lengths_belief.predicted_tokens
    return whole, float(np.mean(ratios[2:])), float(np.std(ratios[2:]))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    seeds = range(parser.parse_args().seeds)
    allocation_row(64, 0.5, 0)  # imports and first-call costs are not measured
    print("| prompts | spread of log length | rollouts | tokens | gap | median ms |\n|---:|---:|---:|---:|---:|---:|")
    for n_prompts, spread in [(64, 0.7), (512, 0.0), (512, 0.3), (512, 0.7), (512, 1.0), (4096, 0.7)]:
        rows = np.array([allocation_row(n_prompts, spread, seed) for seed in seeds])
        blind, aware, gap = rows[:, :3].mean(0)
        error = rows[:, :2].std(0, ddof=1) / np.sqrt(len(rows))
        cells = f"{blind:.3f} ± {error[0]:.3f} | {aware:.3f} ± {error[1]:.3f} | {gap:.1e}"
        print(f"| {n_prompts} | {spread} | {cells} | {1e3 * np.median(rows[:, 3]):.2f} |", flush=True)
    print("\n| spread within a prompt | used / expected, run | per step, mean | sd |\n|---:|---:|---:|---:|")
    for spread in (0.2, 0.5, 0.8):
        rows = np.array([kept(spread, seed) for seed in list(seeds)[:5]])
        print(f"| {spread} | " + " | ".join(f"{value:.3f}" for value in rows.mean(0)) + " |", flush=True)


if __name__ == "__main__":
    main()
