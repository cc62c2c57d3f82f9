"""docs/methods.md, a short row for every method, and docs/methods/NAME.md, all that is said of one."""

from __future__ import annotations

import re
from collections.abc import Mapping

from allotment.learning.objective import ObjectiveRow
from allotment.registry import OBJECTIVES, PLANNERS, SELECTORS, Row
from method_rows import ASKED, CHOSEN, COPIES, METHODS, P
from theory.toy import MeasuredWeights

GENERATED = "<!-- Generated: nice python benchmarks/methods.py --write docs. A row is declared beside its method. -->"
HEAD = f"""# Methods

{GENERATED}

Every planner (`allotment train --planner NAME`), selector (`--select NAME`) and objective (`--objective NAME`) of the
neighbouring papers on one line, at the same budget. A name leads to the method's own page: what it really optimises,
and where it deviates from its source.

**Weight of a prompt**: the expected step of a prompt, divided by the gradient of its success probability p, against p.
Where it is the same for every p the objective is the mean success probability; anything else is another objective,
whatever it does for the variance ([weights](weights.md)). Measured on a toy ([below](#how-it-is-measured)); the
smallest and the largest weight are given, and 1 is uniform RLOO.

* Methods that only move rollouts between prompts keep the objective, as long as prompts count alike in the loss.
* Random pruning keeps it by importance weights.
* Methods that choose prompts weigh them by how often they choose them.
* Methods that draw prompts with known probabilities keep it by the inverse of these.
* Methods that down-sample by reward weigh rare outcomes up, or rare successes alone.
* Without labels it is the policy's own modal answer that is learnt.

![Effective weight of a prompt by its success probability, for every method](images/methods-weights.svg)

"""
BESIDE = """Beside any planner; places, combinations and the contract are in [objectives](objectives.md), what came of
each paper's claim in [experiments](experiments/index.md#objectives)."""
FOOT = """
## How it is measured

`python benchmarks/methods.py --write docs` writes these pages, their figures and `images/methods.json`; rows are
declared beside the methods, how they are measured in `benchmarks/method_rows.py`. The toy (`theory.toy`) has {copies}
prompts for each of {points} success probabilities, each a softmax over four answers whose gradient is known exactly.
All {asked} are asked at every step; rollouts come through `ask`, `tell` and rounds, then the selector, the advantages
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
COLUMNS = ("method", "predicts", "decides", "generated / trained on per prompt", "weight of a prompt", "source")
OBJECTIVE_COLUMNS = ("objective", "what it changes", "source")
TABLES = (("Planners: before or during generation", PLANNERS), ("Selectors: after it", SELECTORS))


def pages(measured: Mapping[str, MeasuredWeights], *, steps: int, warm_up: int, runs: int) -> dict[str, str]:
    """Every page by its path below the documentation's folder."""
    written: dict[str, str] = {}
    text = HEAD
    for title, table in TABLES:
        rows = {name: table[name].row for name in table.built_in if name in METHODS}
        lines = (short(name, row, measured[name]) for name, row in rows.items())
        text += f"## {title}\n\n{header(COLUMNS)}\n" + "\n".join(lines) + "\n\n"
        written |= {own(name): page(name, row, measured[name]) for name, row in rows.items()}
    objectives = {name: OBJECTIVES[name].row for name in OBJECTIVES.built_in}
    lines = (short_objective(name, row) for name, row in objectives.items())
    text += f"## Objectives: what is learnt\n\n{BESIDE}\n\n{header(OBJECTIVE_COLUMNS)}\n" + "\n".join(lines) + "\n"
    written |= {own(name): objective_page(name, row, measured.get(name)) for name, row in objectives.items()}
    sizes = {"copies": COPIES, "points": len(P), "asked": ASKED, "chosen": CHOSEN, "single": 2 * CHOSEN}
    return {"methods.md": text + FOOT.format(**sizes, runs=runs, steps=steps, warm_up=warm_up)} | written


def own(name: str) -> str:
    """The path of a method's own page."""
    return f"methods/{name}.md"


def header(columns: tuple[str, ...]) -> str:
    """The first two lines of a table."""
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def short(name: str, row: Row, measured: MeasuredWeights) -> str:
    """The line of a planner or selector."""
    cost = f"{measured.generated_P.mean():.1f} / {measured.trained_P.mean():.1f}"
    weight = f"{spread(measured)} {plot(name, measured)}"
    return f"| {' | '.join((f'[`{name}`]({own(name)})', row.predicts, row.decides, cost, weight, row.source))} |"


def short_objective(name: str, row: ObjectiveRow) -> str:
    """The line of an objective."""
    return f"| [`{name}`]({own(name)}) | {row.changes.split(';')[0]} | {row.source} |"


def page(name: str, row: Row, measured: MeasuredWeights) -> str:
    """All that is said of a planner or selector."""
    said = {
        "Predicts": row.predicts,
        "Decides": row.decides,
        "Budget it keeps": f"{row.keeps}; on the toy {measured.generated_P.mean():.1f} rollouts generated and "
        f"{measured.trained_P.mean():.1f} trained on per prompt",
        "Really optimises": row.optimises,
        "Source": row.source,
        "Deviations": row.deviations,
    }
    return one_page(name, said, measured)


def objective_page(name: str, row: ObjectiveRow, measured: MeasuredWeights | None) -> str:
    """All that is said of an objective."""
    said = {
        "What it changes": row.changes,
        "Limit to a known baseline": row.limit,
        "Source": row.source,
        "Deviations and reconstructions": row.deviations,
    }
    return one_page(name, said, measured)


def one_page(name: str, said: Mapping[str, str], measured: MeasuredWeights | None) -> str:
    """The page of a method: its own words, and the plot of its weights where it has any."""
    words = "\n\n".join(f"**{title}.** {text}" for title, text in said.items())
    weights = "" if measured is None else f"\n\n**Weight of a prompt**, {spread(measured)}:\n\n{plot(name, measured)}"
    text = f"# `{name}`\n\n{GENERATED}\n\n{words}{weights}\n\n[All methods](methods.md)\n"
    return re.sub(r"\]\((?!http)", "](../", text)


def spread(measured: MeasuredWeights) -> str:
    """The smallest and the largest weight."""
    return f"{measured.weights_P.min():.2f} to {measured.weights_P.max():.2f}"


def plot(name: str, measured: MeasuredWeights) -> str:
    """The small figure of a method."""
    return f"![weights of {name} from {spread(measured)}](images/methods/{name}.svg)"
