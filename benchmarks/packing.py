"""Fill rate of dense prompt packing against first-come, for several distributions of group lengths. Prints Markdown.

    python benchmarks/packing.py            # seconds

A group is a prompt's 8 rollouts; 512 groups a step, 20 steps (seeds 0 to 19), means with standard errors. Rollouts of
a group share their prompt's length scale. "at most" is tokens / (cap * least number of micro-batches), the least being
tokens / cap rounded up. The cap is given in mean group lengths; groups above the cap are cut to it.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from allotment.methods.selectors.packing import pack

GROUPS, ROLLOUTS, SEEDS = 512, 8, 20
WINDOWS = (1, 4, 16, 64, 512)
CAPS = (2, 4, 8)
Lengths = Callable[[np.random.Generator], npt.NDArray[np.float64]]

DISTRIBUTIONS: dict[str, Lengths] = {
    "equal": lambda rng: np.full((GROUPS, ROLLOUTS), 500.0),
    "uniform": lambda rng: rng.uniform(100, 900, (GROUPS, 1)) * rng.uniform(0.8, 1.2, (GROUPS, ROLLOUTS)),
    "lognormal 0.5": lambda rng: 500 * rng.lognormal(0, 0.5, (GROUPS, 1)) * rng.lognormal(0, 0.3, (GROUPS, ROLLOUTS)),
    "lognormal 1": lambda rng: 300 * rng.lognormal(0, 1, (GROUPS, 1)) * rng.lognormal(0, 0.3, (GROUPS, ROLLOUTS)),
    "short or cut": lambda rng: np.where(
        rng.random((GROUPS, ROLLOUTS)) < rng.beta(0.5, 0.5, (GROUPS, 1)), 2048, rng.lognormal(5.5, 0.5, (GROUPS, 1))
    ),
    "half pruned": lambda rng: rng.lognormal(6, 0.5, (GROUPS, ROLLOUTS)) * _kept(rng),
}


def _kept(rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """About half of the rollouts at random, at least one of each group."""
    kept = rng.random((GROUPS, ROLLOUTS)) < 0.5
    kept[np.arange(GROUPS), rng.integers(0, ROLLOUTS, GROUPS)] = True
    return kept


def fill_rates(lengths: Lengths, cap_in_means: int) -> tuple[npt.NDArray[np.float64], float]:
    """[seeds, windows + 1] fill rates by window, then the bound of any packing; and the milliseconds of window 64."""
    rates, seconds = np.empty((SEEDS, len(WINDOWS) + 1)), []
    for seed in range(SEEDS):
        tokens_Q = np.maximum(lengths(np.random.default_rng(seed)).sum(1), 1).astype(np.int64)
        cap = int(cap_in_means * tokens_Q.mean())
        tokens_Q = np.minimum(tokens_Q, cap)
        for column, window in enumerate(WINDOWS):
            started = time.perf_counter()
            rates[seed, column] = pack(tokens_Q, cap, window=window).fill_rate
            if window == 64:
                seconds.append(time.perf_counter() - started)
        rates[seed, -1] = tokens_Q.sum() / (cap * math.ceil(tokens_Q.sum() / cap))
    return rates, 1e3 * float(np.median(seconds))


def main() -> None:
    """Measure and print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    columns = ["first-come", *(f"window {window}" for window in WINDOWS[1:]), "at most", "ms (64)"]
    print("| lengths | cap | " + " | ".join(columns) + " |")
    print("|---|---:|" + "---:|" * len(columns))
    for name, lengths in DISTRIBUTIONS.items():
        for cap in CAPS:
            rates, milliseconds = fill_rates(lengths, cap)
            errors = rates.std(0, ddof=1) / SEEDS**0.5
            cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in zip(rates.mean(0), errors, strict=True)]
            print(f"| {name} | {cap} | " + " | ".join(cells) + f" | {milliseconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
