"""What every planner and selector really optimises: measured, drawn, and written to docs/methods.md and docs/methods/.

    nice python benchmarks/methods.py --write docs             # measure all (minutes), draw, write
    nice python benchmarks/methods.py --write docs pods dapo   # measure these again, draw and write all
    python benchmarks/methods.py --write docs --missing        # measure what was never measured

On the toy of ``theory.toy``: four prompts of every p on a grid, all asked at every step. Seeds are fixed, so the
figures of a machine repeat; ``docs/images/methods.json`` keeps them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from method_pages import pages
from method_plots import draw_all
from method_rows import COPIES, METHODS, Method, P
from theory.toy import MeasuredWeights, measured_weights

STEPS, WARM_UP, RUNS = 20, 10, 32
FIGURES = Path("images")


def measure(method: Method) -> MeasuredWeights:
    """The weights of a method on the grid."""
    settings: dict[str, Any] = {"steps": STEPS, "warm_up": WARM_UP, "runs": RUNS, "copies": COPIES, **method.measuring}
    return measured_weights(method.make, P, make_selector=method.make_selector, estimator=method.estimator, **settings)


def as_numbers(measured: MeasuredWeights) -> dict[str, list[float]]:
    """For JSON, rounded to what a figure shows."""
    return {name: np.round(values, 5).tolist() for name, values in vars(measured).items()}


def from_numbers(numbers: dict[str, list[float]]) -> MeasuredWeights:
    """Inverse of :func:`as_numbers`."""
    return MeasuredWeights(**{name: np.array(values) for name, values in numbers.items()})


def written(numbers: dict[str, Any]) -> dict[str, str]:
    """Every page by its path, from the figures of ``methods.json``."""
    measured = {name: from_numbers(numbers[name]) for name in METHODS}
    return pages(measured, steps=STEPS, warm_up=WARM_UP, runs=RUNS)


def main() -> None:
    """Measure, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="methods to measure; all by default")
    parser.add_argument("--write", type=Path, required=True, metavar="DOCS", help="directory of the documentation")
    parser.add_argument("--missing", action="store_true", help="measure only what was never measured")
    arguments = parser.parse_args()
    strange = set(arguments.names) - set(METHODS)
    if strange:
        parser.error(f"unknown: {', '.join(sorted(strange))}; allowed: {', '.join(METHODS)}")
    folder = arguments.write / FIGURES
    again = arguments.names or ([] if arguments.missing else list(METHODS))
    numbers = measured_numbers(folder / "methods.json", again)
    draw_all({name: (METHODS[name], from_numbers(numbers[name])) for name in METHODS}, folder)
    (arguments.write / "methods").mkdir(exist_ok=True)
    for name, text in written(numbers).items():
        (arguments.write / name).write_text(text)


def measured_numbers(path: Path, again: Collection[str]) -> dict[str, Any]:
    """The figures of every method: those in ``path``, where the names ``again`` and what is missing are measured."""
    numbers = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, method in METHODS.items():
        if name in again or name not in numbers:
            started = time.perf_counter()
            numbers[name] = as_numbers(measure(method))
            print(f"{name}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
            lines = (f'"{name}": {json.dumps(numbers[name])}' for name in METHODS if name in numbers)
            path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return numbers


if __name__ == "__main__":
    main()
