"""How long ``ask`` and ``tell`` of the default planner take, beside another version of the library. Markdown table.

    git worktree add /tmp/old 4836c00
    OMP_NUM_THREADS=1 python benchmarks/belief_time.py --against /tmp/old/src       # three minutes
    OMP_NUM_THREADS=1 python benchmarks/belief_time.py --sizes 65536 --pool 1000000 --warm 3 --steps 6     # growth

Each version runs in a process of its own; they take turns step by step, so that whatever else the machine does hits
both alike. Milliseconds of processor time on one thread, the median over the steps after the warm-up, and the largest
resident set. Q prompts a step are drawn from a pool; embeddings have 384 dimensions and know half of a prompt's
difficulty; 8 Q rollouts bring rewards 0 and 1.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

TARGETS = {(16, 0): 1.0, (512, 0): 5.0, (4096, 0): 30.0, (16, 1): 2.5, (512, 1): 12.0, (4096, 1): 80.0}
"""Milliseconds of a ``tell``, by prompts and whether there are embeddings."""
TRIALS, DIMENSION, BLOCK_ROWS = 8, 384, 16_384


def embeddings(pool: int, random: np.random.Generator) -> np.ndarray:
    """[pool, 384] of length 1 around 64 centres, in float32."""
    centres_CD, x_MD = random.standard_normal((64, DIMENSION)), np.empty((pool, DIMENSION), dtype=np.float32)
    for start in range(0, pool, BLOCK_ROWS):
        part_bD = x_MD[start : start + BLOCK_ROWS]
        part_bD[:] = random.standard_normal(part_bD.shape) + centres_CD[random.integers(64, size=len(part_bD))]
        part_bD /= np.linalg.norm(part_bD, axis=1, keepdims=True)
    return x_MD


class Run:
    """The default planner at work on one case."""

    def __init__(self, size: int, embedded: bool, pool: int) -> None:
        from allotment import VIP

        self.random, self.size, self.pool = np.random.default_rng(0), size, pool
        logit_M, known = 2 * self.random.standard_normal(pool), cast(dict[str, Any], {})
        if embedded:
            x_MD = embeddings(pool, self.random)
            logit_M += 2 * (x_MD @ self.random.standard_normal(DIMENSION))
            known = {"embeddings": x_MD, "ids": range(pool)}
        self.p_M, self.planner = 1 / (1 + np.exp(-logit_M)), VIP(budget=TRIALS * size, **known)

    def step(self) -> tuple[float, float, float]:
        """Milliseconds of ``ask`` and of ``tell``, and the largest resident set so far in MB."""
        ids = self.random.choice(self.pool, self.size, replace=False).tolist()
        start = time.process_time()
        plan = self.planner.ask(ids)
        asked = time.process_time()
        groups = plan.group_ids()
        rewards = (self.random.random(plan.budget) < self.p_M[groups]).astype(float)
        told = time.process_time()
        self.planner.tell(plan, rewards, groups)
        ended = time.process_time()
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
        return 1e3 * (asked - start), 1e3 * (ended - told), used


def work(case: str) -> None:
    """Run a step of the case for every line of standard input, and print its figures."""
    run = Run(*json.loads(case))
    for _ in sys.stdin:
        print(json.dumps(run.step()), flush=True)


class Version:
    """A process with the library at ``source``; the installed one if None."""

    def __init__(self, source: Path | None, *case: Any) -> None:
        path = {} if source is None else {"PYTHONPATH": str(source.resolve())}
        command = [sys.executable, __file__, "--case", json.dumps(case)]
        both = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **path}, **both)

    def step(self) -> list[float]:
        """The figures of one step."""
        cast(IO[str], self.process.stdin).write("\n")
        cast(IO[str], self.process.stdin).flush()
        return list(json.loads(cast(IO[str], self.process.stdout).readline()))

    def end(self) -> None:
        """No more steps."""
        self.process.communicate()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="folder with another version of the package `allotment`")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 512, 4096], help="prompts of a step")
    parser.add_argument("--pool", type=int, help="prompts they are drawn from; four times as many by default")
    parser.add_argument("--warm", type=int, default=16, help="steps before the measurement")
    parser.add_argument("--steps", type=int, default=25, help="steps measured")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        work(options.case)
        return
    sources = {"": None} if options.against is None else {" before": options.against, "": None}
    columns = [f"{what}{which}" for which in sources for what in ("ask", "tell", "MB")]
    print(f"| embeddings | prompts | {' | '.join(columns)} | target of tell |\n|---|" + "--:|" * (len(columns) + 2))
    for embedded in (False, True):
        for size in options.sizes:
            case = (size, embedded, options.pool or 4 * size)
            versions = [Version(source, *case) for source in sources.values()]
            rows = [[each.step() for each in versions] for _ in range(options.warm + options.steps)]
            figures = np.median(np.array(rows[options.warm :]), axis=0)
            cells = " | ".join(f"{ask:.2f} | {tell:.2f} | {used:,.0f}" for ask, tell, used in figures)
            target = TARGETS.get((size, int(embedded)), "")
            print(f"| {'yes' if embedded else 'no'} | {size:,} | {cells} | {target} |", flush=True)
            for each in versions:
                each.end()


if __name__ == "__main__":
    main()
