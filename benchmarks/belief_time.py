"""How long ``ask`` and ``tell`` of the default planner take, beside another version of the library. Markdown table.

    git worktree add /tmp/old 4836c00
    OMP_NUM_THREADS=1 python benchmarks/belief_time.py --against /tmp/old/src       # two minutes

Each version runs in a process of its own; they take turns step by step, so that whatever else the machine does hits
both alike. Milliseconds of processor time on one thread: the median over the steps after the warm-up. Q prompts a step are
drawn from a pool of 4 Q, embeddings have 384 dimensions, 8 Q rollouts bring rewards 0 and 1. Without ``--against``: this
version alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

CASES = [(size, embedded) for embedded in (False, True) for size in (16, 512, 4096)]
TARGETS = {
    (16, False): 1.0,
    (512, False): 5.0,
    (4096, False): 30.0,
    (16, True): 2.5,
    (512, True): 12.0,
    (4096, True): 80.0,
}
"""Milliseconds of a ``tell``."""
POOL, TRIALS, DIMENSION = 4, 8, 384


class Run:
    """The default planner at work on one case."""

    def __init__(self, size: int, embedded: bool) -> None:
        from allotment import VIP

        self.random, self.size = np.random.default_rng(0), size
        self.p_M = self.random.beta(0.7, 0.7, POOL * size)
        known: dict[str, Any] = {}
        if embedded:
            x_MD = self.random.standard_normal((POOL * size, DIMENSION), dtype=np.float32)
            known = {"embeddings": x_MD, "ids": list(range(POOL * size))}
        self.planner = VIP(budget=TRIALS * size, **known)

    def step(self) -> tuple[float, float]:
        """Milliseconds of ``ask`` and of ``tell``."""
        ids = self.random.permutation(POOL * self.size)[: self.size].tolist()
        start = time.process_time()
        plan = self.planner.ask(ids)
        asked = time.process_time()
        groups = plan.group_ids()
        rewards = (self.random.random(plan.budget) < self.p_M[groups]).astype(float)
        told = time.process_time()
        self.planner.tell(plan, rewards, groups)
        return 1e3 * (asked - start), 1e3 * (time.process_time() - told)


def worker() -> None:
    """Obey the lines of standard input: ``[size, embedded]`` begins a case, an empty line runs a step of it."""
    run: Run | None = None
    for line in sys.stdin:
        if line.strip():
            run = Run(*json.loads(line))
            print("ready", flush=True)
        elif run is not None:
            print(json.dumps(run.step()), flush=True)


class Version:
    """A worker with the library at ``source``; the installed one if None."""

    def __init__(self, source: Path | None) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if source is not None:
            environment["PYTHONPATH"] = str(source)
        command = [sys.executable, __file__, "--worker"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def send(self, line: str) -> str:
        """Its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="folder with another version of the package `allotment`")
    parser.add_argument("--warm", type=int, default=16, help="steps before the measurement")
    parser.add_argument("--steps", type=int, default=25, help="steps measured")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 512, 4096], help="prompts of a step")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker()
    sources = [None] if options.against is None else [options.against.resolve(), None]
    print(
        "| embeddings | prompts | "
        + ("" if options.against is None else "ask before | tell before | ")
        + "ask | tell | target of tell |"
    )
    print("|---|" + "---:|" * (2 + 2 * len(sources) + 0))
    for size, embedded in CASES:
        if size not in options.sizes:
            continue
        versions = [Version(source) for source in sources]
        for version in versions:
            version.send(json.dumps([size, embedded]))
        times = [[json.loads(version.send("")) for version in versions] for _ in range(options.warm + options.steps)]
        medians = np.median(np.array(times[options.warm :]), axis=0).ravel()
        cells = " | ".join(f"{ms:.2f}" for ms in medians)
        print(
            f"| {'yes' if embedded else 'no'} | {size:,} | {cells} | {TARGETS.get((size, embedded), '')} |", flush=True
        )
        for version in versions:
            version.process.stdin.close()
            version.process.wait()


if __name__ == "__main__":
    main()
