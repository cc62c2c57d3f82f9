"""Re-makes the shipped policies and compares them: ``python benchmarks/warm_start.py``.

Prints, per size and regime, the mean success of shipped and re-made policy by level, and whether the parameters are
equal to the bit (same machine and torch) or how far the success probabilities are apart.
"""

from __future__ import annotations

import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch

from allotment.lab.checkpoint import load_lab, parameters_state, shipped_policy
from allotment.tasks.levels import LEVELS
from allotment.tasks.mixture import load_mixture
from shipped.warm_start import SIZES, STAGES
from shipped.warm_start import main as make_policies


def main() -> None:
    """Re-make, compare, print markdown."""
    torch.set_num_threads(1)
    pool = load_mixture().pool
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        make_policies(Path(folder))
        print(f"\nre-made in {time.perf_counter() - started:.0f} s\n")
        for size, regime in product(SIZES, [stage.regime.name for stage in STAGES]):
            path = shipped_policy(regime, size)
            labs = load_lab(regime, path), load_lab(regime, Path(folder) / path.name)
            shipped, remade = (lab.success_probability(pool) for lab in labs)
            states = [parameters_state(lab.policy) for lab in labs]
            equal = all(np.array_equal(states[0][name], states[1][name]) for name in states[0])
            print(f"### {size}, {regime}: parameters {'equal to the bit' if equal else 'differ'}; ", end="")
            print(f"success {shipped.mean():.4f} shipped, {remade.mean():.4f} re-made, ", end="")
            print(f"mean absolute difference {np.abs(shipped - remade).mean():.4f}\n")
            print("| level | shipped | re-made |\n|---|--:|--:|")
            for level in LEVELS:
                rows = [i for i, problem in enumerate(pool) if problem.level == level.name]
                print(f"| {level.name} | {shipped[rows].mean():.3f} | {remade[rows].mean():.3f} |")
            print()


if __name__ == "__main__":
    main()
