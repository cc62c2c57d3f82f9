"""How long an allocation takes, and how good it is: ours beside the solvers others use. Prints a Markdown table.

    python benchmarks/allocation_time.py            # seconds
    python benchmarks/allocation_time.py --slow     # SLSQP at 512 prompts too: seconds to minutes

RLOO, L = 3, U = 32, C = 8 Q, success probabilities uniform on [0, 1] (seed 0). SLSQP with numeric gradients is what
the code of VIP (arXiv 2602.01601) runs. Clarabel through cvxpy is a good general solver on the relaxed problem.
"excess" is the objective above that of the exact integers, relative; a relaxation may lie below (negative).
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from allotment.allocation import allocate_exact, allocate_relaxed

LOWER, UPPER, PER_PROMPT = 3, 32, 8
SIZES = (64, 512, 4096, 65536)
Solver = Callable[[npt.NDArray[np.float64]], float]


def exact(weights_Q: npt.NDArray[np.float64]) -> float:
    """The exact integers."""
    return allocate_exact(weights_Q, PER_PROMPT * len(weights_Q), lower=LOWER, upper=UPPER).objective


def relaxed(weights_Q: npt.NDArray[np.float64]) -> float:
    """Theorem 5.2 and algorithm 2 of the paper."""
    return allocate_relaxed(weights_Q, PER_PROMPT * len(weights_Q), lower=LOWER, upper=UPPER).objective


def slsqp(weights_Q: npt.NDArray[np.float64]) -> float:
    """SciPy's SLSQP on the relaxation, gradients by finite differences."""
    minimize: Any = importlib.import_module("scipy.optimize").minimize
    n_prompts = len(weights_Q)
    result = minimize(
        lambda n: float((weights_Q / (n - 1)).sum()),
        x0=np.full(n_prompts, float(PER_PROMPT)),
        bounds=[(LOWER, UPPER)] * n_prompts,
        constraints={"type": "eq", "fun": lambda n: n.sum() - PER_PROMPT * n_prompts},
        method="SLSQP",
        options={"maxiter": 1000},
    )
    return float(result.fun)


def clarabel(weights_Q: npt.NDArray[np.float64]) -> float:
    """Clarabel through cvxpy on the relaxation, modelling included."""
    cvxpy: Any = importlib.import_module("cvxpy")
    n = cvxpy.Variable(len(weights_Q))
    cost = cvxpy.sum(cvxpy.multiply(weights_Q, cvxpy.inv_pos(n - 1)))
    constraints = [cvxpy.sum(n) == PER_PROMPT * len(weights_Q), n >= LOWER, n <= UPPER]
    return float(cvxpy.Problem(cvxpy.Minimize(cost), constraints).solve(solver=cvxpy.CLARABEL))


def measure(solver: Solver, weights_Q: npt.NDArray[np.float64], *, at_least: float) -> tuple[float, int, float]:
    """(median seconds, runs, objective); runs for ``at_least`` seconds, three times unless one takes as long."""
    objective, times = 0.0, list[float]()
    while sum(times) < at_least or (len(times) < 3 and times[0] < at_least):
        start = time.perf_counter()
        objective = solver(weights_Q)
        times.append(time.perf_counter() - start)
    return statistics.median(times), len(times), objective


def main() -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", action="store_true", help="SLSQP at 512 prompts too (seconds to minutes)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time to repeat each measurement for")
    options = parser.parse_args()
    rows: list[tuple[str, Solver, tuple[int, ...]]] = [
        ("allocate_exact", exact, SIZES),
        ("allocate_relaxed", relaxed, SIZES),
        ("cvxpy + clarabel (relaxed)", clarabel, SIZES[:3]),
        ("SLSQP, numeric gradients (relaxed)", slsqp, SIZES[:2] if options.slow else SIZES[:1]),
    ]
    print("| method | prompts | median | runs | excess |\n|---|---:|---:|---:|---:|")
    for name, solver, sizes in rows:
        solver(np.full(8, 0.25))  # imports and first-call costs are not measured
        for n_prompts in sizes:
            p_Q = np.random.default_rng(0).random(n_prompts)
            weights_Q = p_Q * (1 - p_Q)
            seconds, runs, objective = measure(solver, weights_Q, at_least=options.seconds)
            excess = objective / exact(weights_Q) - 1
            print(f"| {name} | {n_prompts:,} | {1e3 * seconds:,.2f} ms | {runs} | {excess:+.1e} |", flush=True)


if __name__ == "__main__":
    main()
