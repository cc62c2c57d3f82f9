"""What every planner and selector really optimises: measured, drawn, and written to docs/methods.md with its row.

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
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from allotment.registry import OBJECTIVES, PLANNERS, SELECTORS, Row
from method_plots import draw_all
from method_rows import ASKED, CHOSEN, COPIES, METHODS, Method, P
from theory.toy import MeasuredWeights, measured_weights

STEPS, WARM_UP, RUNS = 20, 10, 32
FIGURES = Path("images")
BESIDE = (
    "`allotment train --objective NAME [NAME...]`, beside any planner; places, combinations and the contract are in "
    "[objectives](objectives.md),\nwhat came of each paper's claim in [experiments](experiments/index.md)."
)
HEAD = """# Methods

<!-- Generated: nice python benchmarks/methods.py --write docs. A row is declared beside its method. -->

Every planner (`allotment train --planner NAME`) and selector (`--select NAME`) of the neighbouring papers on one line,
at the same budget. The last question of each row is what a method optimises: the expected step of a prompt, divided by
the gradient of its success probability p. Where that weight is the same for every p the objective is the mean success
probability; anything else is another objective, whatever it does for the variance ([weights](weights.md)).

* Methods that only move rollouts between prompts keep the objective, as long as prompts count alike in the loss.
* Random pruning keeps it by importance weights.
* Methods that choose prompts weigh them by how often they choose them.
* Methods that draw prompts with known probabilities keep it by the inverse of these.
* Methods that down-sample by reward weigh rare outcomes up, or rare successes alone.
* Without labels it is the policy's own modal answer that is learnt.

n is a prompt's rollouts in a step, C the budget of a step in rollouts.

![Effective weight of a prompt by its success probability, for every method](images/methods-weights.svg)

"""
FOOT = """
## How it is measured

`python benchmarks/methods.py --write docs` writes this page, its figures and `images/methods.json`; rows are declared
beside the methods, how they are measured in `benchmarks/method_rows.py`. The toy (`theory.toy`) has {copies} prompts
for each of {points} success probabilities, each a softmax over four answers whose gradient is known exactly. All
{asked} are asked at every step; rollouts come through `ask`, `tell` and rounds, then the selector, the advantages
(RLOO, unless the method brings its own) and the loss weights (`prompt_mean`) that training uses; the step is projected
on the true gradient. The policy
stands still: {runs} runs of {steps} steps after {warm_up} to warm up, bars of two standard errors between runs.
Planners get 8 rollouts a prompt in the mean; those that choose among prompts choose {chosen} of {asked}, `joint` as
many as it likes for as many rollouts, `spo` {single} with one rollout each; selectors choose from 16, PODS and its
baselines 4 of them; the advantages of objectives are measured beside `vip`, which gives prompts unequal numbers of
rollouts. Weights are scaled so that uniform RLOO has 1. The dashed grey line
is a prompt's share of the generated rollouts, relative to the mean: what the weight would be if rollouts, not prompts,
counted alike (`sequence_mean`).

`tests/planning/test_effective_objective.py` compares measured weights with the formulas, at 4 standard errors.
"""
OBJECTIVE_COLUMNS = (
    "objective",
    "what it changes",
    "limit to a known baseline",
    "source",
    "deviations and reconstructions",
)
COLUMNS = ("method", "predicts", "decides", "budget it keeps", "really optimises", "source", "deviations")


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


def page(numbers: dict[str, Any]) -> str:
    """The whole page."""
    text = HEAD
    for title, methods in (("Planners: before or during generation", PLANNERS), ("Selectors: after it", SELECTORS)):
        named = [(name, methods[name].row) for name in methods.built_in if name in METHODS]
        rows = "\n".join(row(name, words, from_numbers(numbers[name])) for name, words in named)
        text += f"## {title}\n\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n{rows}\n\n"
    text += f"## Objectives: what is learnt\n\n{BESIDE}\n\n{objectives(numbers)}\n\n"
    sizes = {"copies": COPIES, "points": len(P), "asked": ASKED, "chosen": CHOSEN, "single": 2 * CHOSEN}
    return text.rstrip() + "\n" + FOOT.format(**sizes, runs=RUNS, steps=STEPS, warm_up=WARM_UP)


def objectives(numbers: dict[str, Any]) -> str:
    """The table of objectives; of those that bring advantages of another form with their weights."""
    lines = [f"| {' | '.join(OBJECTIVE_COLUMNS)} |", f"|{'---|' * len(OBJECTIVE_COLUMNS)}"]
    for name in OBJECTIVES.built_in:
        changes, *others = astuple(OBJECTIVES[name].row)
        if name in METHODS:
            changes += f"<br>{plot(name, from_numbers(numbers[name]))}"
        lines.append(f"| {' | '.join((f'`{name}`', changes, *others))} |")
    return "\n".join(lines)


def row(name: str, method: Row, measured: MeasuredWeights) -> str:
    """A line of the table."""
    cost = f"{measured.generated_P.mean():.1f} generated, {measured.trained_P.mean():.1f} trained on per prompt"
    cells = (
        f"`{name}`",
        method.predicts,
        method.decides,
        f"{method.keeps} ({cost})",
        f"{method.optimises}<br>{plot(name, measured)}",
        method.source,
        method.deviations,
    )
    return f"| {' | '.join(cells)} |"


def plot(name: str, measured: MeasuredWeights) -> str:
    """The small figure of a method."""
    low, high = measured.weights_P.min(), measured.weights_P.max()
    return f"![weights of {name} from {low:.2f} to {high:.2f}]({FIGURES}/methods/{name}.svg)"


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
    (arguments.write / "methods.md").write_text(page(numbers))


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
