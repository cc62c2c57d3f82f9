"""Seconds per step and peak memory of predictors, from a thousand prompts to a million. Prints a Markdown table.

    python benchmarks/predictor_scale.py                                            # about 20 minutes
    python benchmarks/predictor_scale.py --n 1000000 --method default
    python benchmarks/predictor_scale.py --plot docs/images/predictor_scale.svg     # and .json beside
    python benchmarks/predictor_scale.py --read FILE.json --plot FILE.svg           # draw again

A step predicts Q = 512 prompts and learns B = 512 counts of 8 rollouts of the same prompts. Epochs are random orders of
all prompts. Embeddings are float32 of 384 dimensions and length 1 around 64 centres; they come in blocks, as they would
from a file, and each method keeps them its own way. "register" is the time for that, the making of the blocks left out.
Every figure comes from a process of its own, on one thread; memory is its largest resident set: interpreter, libraries,
embeddings and all. Time is the median of 3 to 20 steps after 8 to warm up; "CPU" is the same in processor time, which
others on the machine disturb less. See ``scale_methods.py`` for what is compared.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scale_methods import METHODS, WINDOW, Block, Method

BATCH, DIMENSION, TRIALS, CENTRES, BLOCK_ROWS = 512, 384, 8, 64, 16_384
SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
STEPS, FEWEST_STEPS, ENOUGH_SECONDS = 20, 3, 10.0
MEMORY_LIMIT = 8e9
"""Bytes; what is known to need more is not tried."""
Row = dict[str, Any]


class Stream:
    """Blocks of embeddings, and the seconds that making them took."""

    def __init__(self, n_prompts: int) -> None:
        self.n_prompts, self.seconds = n_prompts, 0.0

    def __iter__(self) -> Iterator[Block]:
        """The same blocks whenever asked."""
        centres_CD = np.random.default_rng(0).standard_normal((CENTRES, DIMENSION), dtype=np.float32)
        for start in range(0, self.n_prompts, BLOCK_ROWS):
            started, ids = time.perf_counter(), range(start, min(start + BLOCK_ROWS, self.n_prompts))
            rng = np.random.default_rng([1, start])
            x_qD = rng.standard_normal((len(ids), DIMENSION), dtype=np.float32)
            x_qD += centres_CD[rng.integers(CENTRES, size=len(ids))]
            x_qD /= np.linalg.norm(x_qD, axis=1, keepdims=True)
            self.seconds += time.perf_counter() - started
            yield ids, x_qD


def hidden_truth(n_prompts: int) -> npt.NDArray[np.float64]:
    """[N] success probabilities: half of the logit's variance is linear in the embedding."""
    rng = np.random.default_rng(2)
    direction_D = rng.standard_normal(DIMENSION)
    known_N = np.concatenate([x_qD @ direction_D for _, x_qD in Stream(n_prompts)])
    return np.asarray(1 / (1 + np.exp(-2 * (known_N + rng.standard_normal(n_prompts)))))


def batches(n_prompts: int) -> Iterator[list[int]]:
    """Random orders of all prompts, cut into batches; what is left over is left out."""
    rng = np.random.default_rng(3)
    while True:
        order_N = rng.permutation(n_prompts)
        for start in range(0, n_prompts - BATCH + 1, BATCH):
            yield order_N[start : start + BATCH].tolist()


def measure(method: Method, n_prompts: int) -> Row:
    """Figures of one method at one size, for a process that does nothing else."""
    truth_N, rng, upcoming = hidden_truth(n_prompts), np.random.default_rng(4), batches(n_prompts)
    stream, started = Stream(n_prompts), time.perf_counter()
    predictor = method.make(stream)
    register = time.perf_counter() - started - stream.seconds

    def step() -> tuple[float, float]:
        ids = next(upcoming)
        successes_B, trials_B = rng.binomial(TRIALS, truth_N[ids]), np.full(BATCH, TRIALS)
        wall, cpu = time.perf_counter(), time.process_time()
        predictor.predict(ids)
        predictor.observe(ids, successes_B, trials_B)
        return time.perf_counter() - wall, time.process_time() - cpu

    for _ in range(WINDOW + method.after_epoch * (n_prompts // BATCH)):
        step()
    times = [step() for _ in range(FEWEST_STEPS)]
    while len(times) < STEPS and sum(wall for wall, _ in times) < ENOUGH_SECONDS:
        times.append(step())
    return {
        "seconds_per_step": statistics.median(wall for wall, _ in times),
        "cpu_seconds_per_step": statistics.median(cpu for _, cpu in times),
        "slowest_step": max(wall for wall, _ in times),
        "steps": len(times),
        "load_average": os.getloadavg()[0],
        "register_seconds": register,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def measured_apart(name: str, n_prompts: int, timeout: float) -> Row:
    """The same from a process of its own; or ``skipped``, why there are no figures."""
    command = [sys.executable, __file__, "--one", name, "--n", str(n_prompts)]
    try:
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=one_thread)
    except subprocess.TimeoutExpired:
        return {"skipped": f"not done after {timeout:g} s"}
    if done.returncode:
        return {"skipped": f"ended with {done.returncode}: {done.stderr.strip()[-200:]}"}
    return dict(json.loads(done.stdout))


def rows_of(name: str, sizes: Sequence[int], step_limit: float, timeout: float) -> Iterator[Row]:
    """A row per size, sizes rising; once a step is too slow or figures fail to come, larger sizes are left out."""
    method, reason = METHODS[name], ""
    if method.package and importlib.util.find_spec(method.package) is None:
        reason = f"{method.package} is not installed"
    for n_prompts in sizes:
        if method.bytes_at(n_prompts) > MEMORY_LIMIT:
            reason = f"needs {method.bytes_at(n_prompts) / 1e9:,.1f} GB"
        row = {"skipped": reason} if reason else measured_apart(name, n_prompts, timeout)
        if not reason and "skipped" in row:
            reason = f"{row['skipped']} at N = {n_prompts:,}"
        elif not reason and row["seconds_per_step"] > step_limit:
            reason = f"a step took {row['seconds_per_step']:.0f} s at N = {n_prompts:,}"
        yield {"method": name, "label": method.label, "n": n_prompts, **row}


def markdown(row: Row) -> str:
    """A line of the table."""
    if "skipped" in row:
        return f"| {row['label']} | {row['n']:,} | {row['skipped']} | | | |"
    times = (f"{1e3 * row[key]:,.1f} ms" for key in ("seconds_per_step", "cpu_seconds_per_step"))
    cells = (f"{row['n']:,}", *times, f"{row['peak_bytes'] / 1e9:,.2f} GB", f"{row['register_seconds']:,.2f} s")
    return f"| {row['label']} | {' | '.join(cells)} |"


def conditions() -> Row:
    """Where and with what the figures were taken."""
    versions = {name: importlib.import_module(name).__version__ for name in ("numpy", "scipy")}
    return {"python": platform.python_version(), **versions, "machine": platform.machine(), "batch": BATCH}


def main() -> None:
    """Measure what was asked for, print it, draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=SIZES, help=f"numbers of prompts, at least {BATCH}")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--step-limit", type=float, default=60.0, help="leave out larger N once a step takes longer, s")
    parser.add_argument("--timeout", type=float, default=900.0, help="of one method at one size, s")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--plot", type=Path, help="SVG to write; the figures go into a .json beside it")
    parser.add_argument("--read", type=Path, help="JSON of an earlier run, instead of measuring")
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(options.n) < BATCH:
        parser.error(f"--n must be at least {BATCH}, the size of a batch")
    if options.one:
        print(json.dumps(measure(METHODS[options.one], *options.n)))
        return
    result = json.loads(options.read.read_text()) if options.read else {"conditions": conditions(), "rows": []}
    if not options.json:
        print("| method | N | a step | CPU | peak memory | register |\n|---|--:|--:|--:|--:|--:|", flush=True)
        for row in result["rows"]:
            print(markdown(row))
    if not options.read:
        for name in options.method:
            for row in rows_of(name, sorted(options.n), options.step_limit, options.timeout):
                result["rows"].append(row)
                if not options.json:
                    print(markdown(row), flush=True)
    if options.json:
        print(json.dumps(result, indent=1))
    if options.plot:
        from scale_plot import draw

        draw(result["rows"], options.plot)
        options.plot.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
