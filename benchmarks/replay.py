"""Replay a real RLVR run: how well does each predictor allocate, had it allocated that run?

    python benchmarks/replay.py rollouts.jsonl [--embeddings cache.npy] [--seeds 3] [--grid]

The log holds, for each prompt, the successes among 8 rollouts at each visit, but not which prompts shared a step. As in
the fact sheet (vip.md 6.6): one random order of the prompts, the same in every epoch, 128 prompts a step (a last,
incomplete step is left out), the first 44 visits. At each step every predictor sees only the past, predicts the batch,
and C = 8 Q rollouts are split exactly for RLOO with L = 3, U = 32. Two scores:

* MAE: mean of ``|E[p] - k/8|``. The noise of k/8 is a floor.
* ratio: ``sum_q v_q / (n_q - 1)`` over the same with ``n_q = 8``, where ``v_q = k (8 - k) / (8 * 7)`` is the unbiased
  estimate of ``p (1 - p)`` from the very visit that is allocated for, which no predictor has seen. Below 1 beats
  uniform. Weights are ``p (1 - p)`` at sigmoid(mean) ("plug-in", the paper) or ``E[p (1 - p)]`` ("expected").

The row "both sides" sees all other visits of the prompt, past and future, discounted by 0.8 for each visit of distance
(never the visit itself): not a predictor, but about the best that counts could give.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from allotment.allocation import allocate_exact
from allotment.prediction import (
    DiscountedCounts,
    GaussianProcess,
    GlobalMean,
    KNearest,
    LastValue,
    Predictor,
    Ridge,
    embed,
)
from allotment.types import BetaPosterior, FloatArray, IntArray, Posterior

VISITS = 44
BATCH = 128
TRIALS = 8
LOWER, UPPER = 3, 32
RANGES = {"epoch 1": (0, 1), "epoch 2": (1, 2), "3-10": (2, 10), "11-44": (10, 44)}


@dataclass(frozen=True)
class Log:
    """A run: success counts and prompt embeddings."""

    successes: IntArray
    """[M, VISITS] successes out of TRIALS."""
    embeddings: FloatArray
    """[M, D]."""

    def steps(self, seed: int) -> Iterator[tuple[int, IntArray]]:
        """(epoch, ids [BATCH]) of every step, in order."""
        order = np.random.default_rng(seed).permutation(len(self.successes))
        for epoch in range(VISITS):
            for start in range(0, len(order) - BATCH + 1, BATCH):
                yield epoch, order[start : start + BATCH]


@dataclass(frozen=True)
class Score:
    """Sums of each epoch; all [VISITS]."""

    error: FloatArray
    plug_in: FloatArray
    expected: FloatArray
    uniform: FloatArray
    prompts: FloatArray

    def over(self, first: int, last: int) -> tuple[float, float, float]:
        """MAE, plug-in ratio, expected ratio over epochs ``first <= e < last``."""
        part = slice(first, last)
        uniform = self.uniform[part].sum()
        return (
            self.error[part].sum() / self.prompts[part].sum(),
            self.plug_in[part].sum() / uniform,
            self.expected[part].sum() / uniform,
        )


def load(path: Path, cache: Path | None) -> Log:
    """Read the log; embeddings from ``cache`` if it is there, else computed (and written to it)."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    if cache is not None and cache.exists():
        embeddings = np.load(cache)
    else:
        embeddings = embed([record["prompt"] for record in records], progress=True)
        if cache is not None:
            np.save(cache, embeddings)
    return Log(np.array([record["successes"][:VISITS] for record in records]), embeddings.astype(np.float64))


def variance_sum(weights_B: FloatArray, true_B: FloatArray) -> float:
    """``sum v / (n - 1)`` at the allocation that ``weights_B`` leads to."""
    allocation = allocate_exact(weights_B, TRIALS * len(weights_B), lower=LOWER, upper=UPPER, estimator="rloo")
    return float((true_B / (allocation.counts - 1)).sum())


def unbiased_variance(successes_B: IntArray) -> FloatArray:
    """[B] unbiased estimate of ``p (1 - p)`` from TRIALS rollouts."""
    return successes_B * (TRIALS - successes_B) / (TRIALS * (TRIALS - 1.0))


def scores_of(belief: Posterior, successes_B: IntArray) -> tuple[float, float, float, float, float]:
    """What one step adds to the fields of :class:`Score`."""
    p_B, true_B = belief.plug_in_probability(), unbiased_variance(successes_B)
    return (
        float(np.abs(belief.success_probability() - successes_B / TRIALS).sum()),
        variance_sum(p_B * (1 - p_B), true_B),
        variance_sum(belief.expected_variance(), true_B),
        float(true_B.sum() / (TRIALS - 1)),
        float(len(p_B)),
    )


def replay(log: Log, predictor: Predictor, seed: int) -> Score:
    """Run one predictor over the log."""
    sums = np.zeros((5, VISITS))
    for epoch, ids in log.steps(seed):
        belief = predictor.predict(ids)
        successes_B = log.successes[ids, epoch]
        sums[:, epoch] += scores_of(belief, successes_B)
        predictor.observe(ids, successes_B, np.full(len(ids), TRIALS))
    return Score(*sums)


def both_sides(log: Log, seed: int) -> Score:
    """The reference that sees every visit but the one allocated for, discounted by 0.8 for each visit of distance."""
    sums = np.zeros((5, VISITS))
    for epoch, ids in log.steps(seed):
        weights = 0.8 ** np.abs(np.arange(VISITS) - epoch)
        weights[epoch] = 0.0
        good_B, total = log.successes[ids] @ weights, TRIALS * weights.sum()
        belief = BetaPosterior.from_counts(good_B + 0.5, total - good_B + 0.5)
        sums[:, epoch] += scores_of(belief, log.successes[ids, epoch])
    return Score(*sums)


def predictors(log: Log) -> dict[str, Callable[[], Predictor]]:
    """Every predictor of the table."""
    x = log.embeddings
    return {
        "GlobalMean (1,024 visits)": GlobalMean,
        "Ridge": lambda: Ridge(x),
        "KNearest": lambda: KNearest(x),
        "LastValue": LastValue,
        "DiscountedCounts (default)": DiscountedCounts,
        "DiscountedCounts, no forgetting": lambda: DiscountedCounts(forgetting=1.0),
        "GaussianProcess (paper: median h)": lambda: GaussianProcess(x),
        "GaussianProcess h=0.5": lambda: GaussianProcess(x, bandwidth=0.5),
        "GaussianProcess h=0.27, m=-1": lambda: GaussianProcess(x, bandwidth=0.27, prior_mean=-1.0),
        "GaussianProcess median h, eps=1/16": lambda: GaussianProcess(x, epsilon=1 / 16),
    }


def averaged(scores: list[Score]) -> dict[str, FloatArray]:
    """Mean over seeds of (MAE, plug-in, expected) for each range."""
    return {name: np.mean([score.over(*bounds) for score in scores], axis=0) for name, bounds in RANGES.items()}


def print_table(rows: dict[str, dict[str, FloatArray]]) -> None:
    """Markdown: MAE / plug-in ratio / expected ratio for each range."""
    print("| predictor | " + " | ".join(f"{name}: MAE, plug-in, expected" for name in RANGES) + " |")
    print("| --- " * (len(RANGES) + 1) + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{m:.3f}, {p:.3f}, {e:.3f}" for m, p, e in row.values()) + " |")


def grid(log: Log, seeds: range) -> None:
    """Expected ratio over epochs 2-44 for settings of DiscountedCounts."""
    strengths = (0.25, 0.5, 1.0, 2.0, 4.0)
    for global_forgetting in (0.5, 0.9, 1.0):
        print(f"\nglobal_forgetting={global_forgetting}: expected ratio over epochs 2-44, by prior_strength")
        print("| forgetting | " + " | ".join(map(str, strengths)) + " |")
        print("| --- " * (len(strengths) + 1) + "|")
        for forgetting in (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0):
            cells = []
            for strength in strengths:
                settings = {
                    "forgetting": forgetting,
                    "prior_strength": strength,
                    "global_forgetting": global_forgetting,
                }
                scores = [replay(log, DiscountedCounts(**settings), seed).over(1, VISITS)[2] for seed in seeds]
                cells.append(np.mean(scores))
            print(f"| {forgetting} | " + " | ".join(f"{cell:.4f}" for cell in cells) + " |", flush=True)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Replay a real run.")
    parser.add_argument("log", type=Path)
    parser.add_argument("--embeddings", type=Path, help="cache file (.npy) for the prompts' embeddings")
    parser.add_argument("--seeds", type=int, default=3, help="number of prompt orders averaged over")
    parser.add_argument("--grid", action="store_true", help="settings of DiscountedCounts instead of the table")
    options = parser.parse_args()
    log, seeds = load(options.log, options.embeddings), range(options.seeds)
    if options.grid:
        grid(log, seeds)
        return 0
    rows = {name: averaged([replay(log, make(), seed) for seed in seeds]) for name, make in predictors(log).items()}
    rows["both sides (not a predictor)"] = averaged([both_sides(log, seed) for seed in seeds])
    print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
