"""A comparison as text and as JSON. Wall time stands apart: all else is a function of the settings, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from allotment.compare.figures import MEASURES, Comparison, Cost, Line, Reach
from allotment.report.summary import CONFIDENCE, Estimate, Measure

NAMES: dict[Measure, str] = {"pool_success": "training prompts", "held_out_success": "held-out prompts"}
EXACT: tuple[Cost, ...] = ("steps", "rollouts", "tokens")
"""Costs that are the same whenever a run is repeated."""
WIDTH = 240
"""Characters, enough for every row to stand on one line."""

NOTES = f"""\
Mean ± standard error over n seeds. Differences are to uniform, paired by seed, at equal steps, rollouts or tokens: the
largest number that both runs of a pair reached, linear between evaluations; @ is its share of uniform's total where
that is not all. Reaches uniform: the rollouts after which the mean curve is first at uniform's final success, and their
share of what uniform took; with an error where every seed gets there. No signal: groups whose rewards are all equal.
Within noise: zero lies in the {CONFIDENCE:.0%} interval of Student's t."""
WALL_TIME = """\
Seconds of the steps, without evaluation; not the same twice. Runs side by side share cores, caches and memory, and one
that was taken up again may have changed its company: rough figures, unless with --processes 1 on an idle machine."""

Blocks = Mapping[int, Sequence[Line]]
"""The lines at each budget, in rollouts a prompt."""


def verdict(estimate: Estimate) -> str:
    """What one may say about a difference to uniform, in a word or two."""
    return estimate.judged("one pair", "the same", "within noise", "higher", "lower")


def as_text(comparison: Comparison, blocks: Blocks, width: int = WIDTH) -> str:
    """Markdown: a table per budget and measure, notes, then wall time; cells are folded to fit into ``width``."""
    steps = comparison.settings.steps
    parts = [
        f"success on {NAMES[measure]}, {budget} rollouts a prompt, {steps} steps; differences to uniform\n\n"
        + _table(measure, lines, width)
        for budget, lines in blocks.items()
        if lines
        for measure in MEASURES
    ]
    if not parts:
        return "No seed has finished with uniform yet: nothing to compare."
    verdicts = sum(len(EXACT) * len(MEASURES) for _, line in _flat(blocks) if line.differences)
    by_chance = f"about {(1 - CONFIDENCE) * verdicts:.1f} would leave the noise by chance."
    return "\n".join([*parts, f"{NOTES}\nOf {verdicts} verdicts above {by_chance}", "", _wall_time(blocks, width)])


def as_json(comparison: Comparison, blocks: Blocks) -> dict[str, Any]:
    """``table`` is a function of the settings alone, ``wall_time`` is not."""
    return {
        "settings": comparison.settings.model_dump(mode="json", exclude={"planner", "seed", "rollouts_per_prompt"}),
        "seeds": list(comparison.seeds),
        "table": [
            {
                **_name(budget, line),
                "success": {m: asdict(line.success[m]) for m in MEASURES},
                "differences": {cost: _differences_json(line, cost) for cost in EXACT},
                "reaches_uniform_at": {m: None if (r := line.reach[m]) is None else asdict(r) for m in MEASURES},
                "rollouts": line.rollouts,
                "tokens": line.tokens,
                "zero_variance_groups": line.zero_variance,
            }
            for budget, line in _flat(blocks)
        ],
        "wall_time": [{**_name(budget, line), **_differences_json(line, "seconds")} for budget, line in _flat(blocks)],
    }


def _flat(blocks: Blocks) -> list[tuple[int, Line]]:
    return [(budget, line) for budget, lines in blocks.items() for line in lines]


def _name(budget: int, line: Line) -> dict[str, Any]:
    return {"budget": budget, **asdict(line.entry), "seeds": list(line.seeds)}


def _differences_json(line: Line, cost: Cost) -> dict[str, Any]:
    return {
        m: d and {**asdict(d.estimate), "verdict": verdict(d.estimate), "at": d.at, "share": d.share}
        for m, d in line.differences.get(cost, {}).items()
    }


def _table(measure: Measure, lines: Sequence[Line], width: int) -> str:
    equal = tuple(f"at equal {cost}" for cost in EXACT)
    headers = ("", "n", "success", *equal, "reaches uniform", "no signal")
    rows = [
        (
            line.entry.label,
            str(len(line.seeds)),
            _mean(line.success[measure]),
            *(_difference(line, cost, measure) for cost in EXACT),
            _reach(line.reach[measure]),
            f"{line.zero_variance:.1%}",
        )
        for line in lines
    ]
    return _markdown(headers, rows, width)


def _wall_time(blocks: Blocks, width: int) -> str:
    headers = ("", "rollouts a prompt", *(f"at equal wall time, {NAMES[m]}" for m in MEASURES))
    rows = [
        (line.entry.label, str(budget), *(_difference(line, "seconds", m) for m in MEASURES))
        for budget, line in _flat(blocks)
        if line.differences
    ]
    return f"wall time\n\n{_markdown(headers, rows, width)}\n{WALL_TIME}"


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    table = Table(box=box.MARKDOWN)
    for place, header in enumerate(headers):
        table.add_column(header, justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(*row)
    text = StringIO()
    Console(file=text, width=width, color_system=None).print(table)
    return text.getvalue().strip() + "\n"


def _mean(estimate: Estimate, sign: str = "") -> str:
    error = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.4f}"
    return f"{estimate.mean:{sign}.4f}{error}"


def _difference(line: Line, cost: Cost, measure: Measure) -> str:
    if not line.differences:
        return ""
    found = line.differences[cost][measure]
    if found is None:
        return "cannot be compared"
    share = "" if round(found.share, 3) == 1 else f" @ {found.share:.1%}"
    return f"{_mean(found.estimate, '+')} {verdict(found.estimate)}{share}"


def _reach(found: Reach | None) -> str:
    if found is None:
        return "not reached"
    if found.rollouts == 0:
        return "at the start"
    error = "" if found.standard_error is None else f" ± {found.standard_error:,.0f}"
    return f"{found.rollouts:,.0f}{error} ({found.share:.0%})"
