"""verl's asynchronous trainer with answers of a long tail, stock and with Allotment: passes and rollouts an update.

    .venv-verl/bin/python benchmarks/verl_async.py OUT --steps 30

The two runs are processes of verl's ``main_ppo`` as in ``tests/integrations/verl``: real Ray, TransferQueue, agent-loop
and reward-loop workers and buffer; the lab's policy in place of its engines.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

LAB = Path(__file__).parents[1] / "tests" / "integrations" / "verl" / "lab_verl.py"
ARMS = {
    "stock": ["trainer.v1.trainer_mode=lab_colocate_async", "algorithm.adv_estimator=rloo"],
    "allotment": ["trainer.v1.trainer_mode=lab_allotment_colocate_async"],
}
SHARED = ["trainer.v1.colocate_async.num_warmup_batches=1.5", "lab.tail=0.3", "data.train_max_samples=48"]
BUDGET = 128


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    print("| arm | updates | optimizer passes an update | rollouts an update | from the budget | in all | padding |")
    print("|---|--:|---|---|--:|--:|--:|")
    for arm, own in ARMS.items():
        out = options.out / arm
        if not (out / "steps.jsonl").exists():
            command = [sys.executable, str(LAB), str(out), "--steps", str(options.steps), *SHARED, *own]
            subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.DEVNULL)
        updates = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
        print(row(arm, updates))


def row(arm: str, updates: list[dict]) -> str:
    """A line of the table."""
    passes = np.array([len(update["passes"]) for update in updates])
    padding = np.array([sum(update["padding"]) for update in updates])
    real = np.array([len(update["padding"]) for update in updates]) - padding
    share = padding.sum() / (padding.sum() + real.sum())
    off = f"{np.abs(real - BUDGET).mean():.1f}"
    counts = f"{real.min()} to {real.max()}"
    asked = f"{real.sum():,} of {BUDGET * len(updates):,}"
    return f"| {arm} | {len(updates)} | {passes.min()} to {passes.max()} | {counts} | {off} | {asked} | {share:.1%} |"


if __name__ == "__main__":
    main()
