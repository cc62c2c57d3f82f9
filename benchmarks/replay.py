"""Beyond ``allotment audit``: settings of predictors, and a reference that sees the future, on the log of a real run.

    python benchmarks/replay.py LOG.jsonl [--embeddings cache.npy] [--seeds 3] [--grid]

Replays as ``allotment audit`` does (see there for formats and figures), with the audit's defaults, and takes the mean
over several prompt orders. A cell is: MAE / variance ratio when ``p (1 - p)`` is priced at the mean (the paper) /
variance ratio when ``E[p (1 - p)]`` is priced. ``--grid``: settings of DiscountedCounts instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from allotment.audit import RANGES, Log, Settings, read_log, replay
from allotment.audit.embeddings import prompt_embeddings
from allotment.prediction import DiscountedCounts, GaussianProcess, Predictor
from allotment.prediction.posteriors import BetaPosterior
from allotment.state import State
from allotment.types import FloatArray, PromptIds

Make = Callable[[], Predictor]


class BothSides:
    """Sees all other visits of a prompt, past and future, discounted by 0.8 for each visit of distance.

    Never the visit itself: not a predictor, but about the best that counts could give.
    """

    def __init__(self, log: Log) -> None:
        self._row = {prompt: row for row, prompt in enumerate(log.ids)}
        shape = len(log.ids), int(log.visit.max())
        self._successes, self._trials = np.zeros(shape), np.zeros(shape)  # [M, visits]
        self._successes[log.prompt, log.visit - 1] = log.successes
        self._trials[log.prompt, log.visit - 1] = log.trials
        self._done = np.zeros(len(log.ids), dtype=np.int64)

    def predict(self, ids: PromptIds) -> BetaPosterior:
        """The Jeffreys posterior of each prompt's other visits."""
        rows = [self._row[prompt] for prompt in ids]
        distance = np.abs(np.arange(self._trials.shape[1]) - self._done[rows][:, None])
        weights = np.where(distance == 0, 0.0, 0.8**distance)
        good, total = (weights * self._successes[rows]).sum(1), (weights * self._trials[rows]).sum(1)
        return BetaPosterior.from_counts(good + 0.5, total - good + 0.5)

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """Count the visits."""
        self._done[[self._row[prompt] for prompt in ids]] += 1

    def state_dict(self) -> State:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Nothing to restore."""


def variants(log: Log, x: FloatArray | None) -> dict[str, Make]:
    """What the command cannot name."""
    made: dict[str, Make] = {
        "DiscountedCounts, no forgetting": lambda: DiscountedCounts(forgetting=1.0),
        "both sides (not a predictor)": lambda: BothSides(log),
    }
    if x is not None:
        made |= {
            "GaussianProcess h=0.5": lambda: GaussianProcess(x, ids=log.ids, bandwidth=0.5),
            "GaussianProcess h=0.27, m=-1": lambda: GaussianProcess(x, ids=log.ids, bandwidth=0.27, prior_mean=-1.0),
            "GaussianProcess median h, eps=1/16": lambda: GaussianProcess(x, ids=log.ids, epsilon=1 / 16),
        }
    return made


def cells(log: Log, make: Make, seeds: range) -> list[FloatArray]:
    """Mean over seeds of (MAE, plug-in ratio, expected ratio), for each range of epochs."""
    tables = []
    for seed in seeds:
        plug_in, expected = (
            replay(log, make(), Settings(seed=seed), plug_in=choice).by_range() for choice in (True, False)
        )
        tables.append([(f.mae, plug_in[span].variance_ratio, f.variance_ratio) for span, f in expected.items()])
    return list(np.mean(tables, axis=0))


def print_variants(log: Log, rows: dict[str, Make], seeds: range) -> None:
    """Markdown: MAE / plug-in ratio / expected ratio for each range."""
    print("| predictor | " + " | ".join(RANGES) + " |\n" + "| --- " * (len(RANGES) + 1) + "|")
    for name, make in rows.items():
        row = cells(log, make, seeds)
        print(f"| {name} | " + " | ".join("/".join(f"{v:.3f}" for v in cell) for cell in row) + " |", flush=True)


def print_grid(log: Log, seeds: range) -> None:
    """Markdown: expected ratio from the second visit on for settings of DiscountedCounts, by prior strength."""
    strengths = (0.25, 0.5, 1.0, 2.0, 4.0)
    for overall in (0.5, 0.9, 1.0):
        print(f"\nglobal_forgetting={overall}: variance ratio from the second visit on, by prior_strength")
        print("| forgetting | " + " | ".join(map(str, strengths)) + " |\n" + "| --- " * (len(strengths) + 1) + "|")
        for forgetting in (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0):
            ratios = [
                np.mean([_ratio_from_two(log, forgetting, strength, overall, seed) for seed in seeds])
                for strength in strengths
            ]
            print(f"| {forgetting} | " + " | ".join(f"{ratio:.4f}" for ratio in ratios) + " |", flush=True)


def _ratio_from_two(log: Log, forgetting: float, strength: float, overall: float, seed: int) -> float:
    predictor = DiscountedCounts(forgetting=forgetting, prior_strength=strength, global_forgetting=overall)
    figures = replay(log, predictor, Settings(seed=seed)).figures(2)
    return float("nan") if figures is None else figures.variance_ratio


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Replay a real run.")
    parser.add_argument("log", type=Path)
    parser.add_argument("--embeddings", type=Path, help="cache file (.npy) for the prompts' embeddings")
    parser.add_argument("--seeds", type=int, default=3, help="number of prompt orders averaged over")
    parser.add_argument("--grid", action="store_true", help="settings of DiscountedCounts instead of the table")
    options = parser.parse_args()
    log, seeds = read_log(options.log), range(options.seeds)
    if options.grid:
        print_grid(log, seeds)
    else:
        print_variants(log, variants(log, prompt_embeddings(log, options.embeddings)), seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
