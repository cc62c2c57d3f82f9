"""The page: facts, notices and cards put into the template."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from allotment.config import RunConfig
from allotment.errors import AllotmentError
from allotment.registry import TRAINERS
from allotment.report.data import Arm, Study, setting_text
from allotment.report.figures import safe
from allotment.report.health import Check, health_table
from allotment.report.panel import Card, Table, cell_text
from allotment.report.predictions import Visits
from allotment.report.run import not_recorded
from allotment.report.style import AXIS, FAINT, FONT, GRID, INK, ON_DARK, PLANNERS, looks
from allotment.report.summary import Estimate, Measure, SummaryRow, critical_value, summarise
from allotment.report.trl_runs import MEASURED
from allotment.run_logs.files import write_atomically
from allotment.trainers import trainer_name

MOST_PROMPTS = 2000
"""Prompts shown of a run; those with the most rollouts stay."""
MOST_VISITS = 40_000
"""Lines of history in a page, over all its runs."""
MOST_CHARACTERS = 600
"""Of a prompt's text."""
MOST_TEXT = 300_000
"""Characters of all texts together; many prompts get shorter ones."""


@dataclass(frozen=True)
class Prompt:
    """One prompt in one run."""

    id: str
    visits: list[tuple[int, int, int, float | None, float | None]]
    """Step, rollouts, successes, prediction beforehand and its standard deviation; by step."""

    @property
    def rollouts(self) -> int:
        """Over all visits."""
        return sum(n for _, n, *_ in self.visits)

    @property
    def successes(self) -> int:
        """Over all visits."""
        return sum(k for _, _, k, *_ in self.visits)


@dataclass(frozen=True)
class Explorer:
    """What the card shows."""

    data: str
    """JSON that is safe inside a ``<script>`` element; empty if there is nothing to explore."""
    notes: list[str]
    """What is left out."""
    table: Table
    """All prompts of all runs, a line each."""


def explorer(study: Study, visited: Sequence[Visits]) -> Explorer:
    """The prompts of all runs; ``visited`` has one entry per arm."""
    runs = [
        (f"{arm.label}, {run.seed}", run.config, _prompts(seen, number))
        for arm, seen in zip(study.arms, visited, strict=True)
        for number, run in enumerate(arm.runs)
    ]
    table = Table(
        ("run", "prompt", "visits", "rollouts", "successes", "last prediction"),
        [(name, p.id, len(p.visits), p.rollouts, p.successes, p.visits[-1][3]) for name, _, own in runs for p in own],
    )
    runs = [run for run in runs if run[2]]
    if not runs:
        return Explorer("", ["no run has rollouts logged yet."], table)
    kept = [_most_rolled_out(prompts, MOST_VISITS // len(runs)) for _, _, prompts in runs]
    texts = _texts([config for _, config, _ in runs], {p.id for own in kept for p in own})
    notes = [
        f"{len(prompts) - len(shown):,} of {len(prompts):,} prompts of {name}, those with the fewest rollouts."
        for (name, _, prompts), shown in zip(runs, kept, strict=True)
        if len(shown) < len(prompts)
    ]
    if not texts:
        notes.append("the texts of the prompts: a run directory holds their ids, and the data set is not at hand here.")
    shown = [
        {"name": name, "prompts": [[p.id, p.visits] for p in own]} for (name, _, _), own in zip(runs, kept, strict=True)
    ]
    return Explorer(safe(json.dumps({"texts": texts, "runs": shown}, separators=(",", ":"))), notes, table)


def _prompts(seen: Visits, run: int) -> list[Prompt]:
    """The prompts of one run, in the order of their first visit."""
    found: dict[str, Prompt] = {}
    for v in np.flatnonzero(seen.run == run):
        prompt = found.setdefault(seen.names[v], Prompt(seen.names[v], []))
        belief = [None if np.isnan(x[v]) else round(float(x[v]), 3) for x in (seen.predicted, seen.deviation)]
        prompt.visits.append((int(seen.step[v]), int(seen.n[v]), int(seen.successes[v]), belief[0], belief[1]))
    return list(found.values())


def _most_rolled_out(prompts: list[Prompt], visits: int) -> list[Prompt]:
    """At most MOST_PROMPTS prompts with at most so many visits in all."""
    by_rollouts = sorted(prompts, key=lambda prompt: -prompt.rollouts)[:MOST_PROMPTS]
    total = np.cumsum([len(prompt.visits) for prompt in by_rollouts])
    return by_rollouts[: int((total <= visits).sum())]


def _texts(configs: Sequence[RunConfig], ids: set[str]) -> dict[str, str]:
    """Texts by prompt id, for the ids that the data sets of the runs hold; data sets that cannot be read hold none."""
    found: dict[str, str] = {}
    length = min(MOST_CHARACTERS, MOST_TEXT // len(ids))
    for config in {(trainer_name(config), config.data): config for config in configs}.values():
        try:
            rows = TRAINERS[trainer_name(config)].texts(config)
        except (AllotmentError, ImportError, OSError):
            continue
        found |= {name: text[:length] for name, text in rows.items() if name in ids}
    return found


def render(
    study: Study, checks: Sequence[Check], cards: Sequence[Card], prompts: Explorer, command: str | None = None
) -> str:
    """The whole page as one string of HTML that loads nothing from elsewhere."""
    arm_looks, rows = looks(study.arms), summarise(study)
    look_of = {arm.label: look for arm, look in zip(study.arms, arm_looks, strict=True)}
    return fill(
        "page.html.j2",
        {"integer": integer, "between": between, "estimate": estimate, "signed": signed, "own_rates": own_rates},
        title=f"{', '.join(dict.fromkeys(arm.config.planner for arm in study.arms))}: Allotment report",
        study=study,
        measured=measured(study),
        facts=facts(study),
        notices=notices(study),
        findings=[finding(row) for row in rows],
        rows=rows,
        looks=arm_looks,
        look_of=look_of,
        pairs=sorted({d.n for row in rows for d in row.difference.values() if d is not None and d.n > 1}),
        critical_value=critical_value,
        checks=checks,
        cards=cards,
        explorer=prompts,
        written=_written(command),
    )


def _written(command: str | None) -> str:
    """When, by which version and by which command the page was written."""
    by = "" if command is None else f", by {command}"
    return f"{datetime.now():%Y-%m-%d %H:%M}, Allotment {version('allotment')}{by}"


def facts(study: Study) -> list[tuple[str, str]]:
    """What was run, as (name, value); a setting in which arms differ shows all its values."""
    configs = [run.config for run in study.runs]
    by_seed = sorted(configs, key=lambda c: c.seed)

    def values(what: list[Any]) -> str:
        return ", ".join(map(str, dict.fromkeys(what)))

    def known(name: str, say: Callable[[RunConfig], Any], of: Sequence[RunConfig] = configs) -> str:
        return values(["not recorded" if name in not_recorded(c) else say(c) for c in of])

    per_step = [f"{c.budget} rollouts ({c.prompts_per_step} prompts × {c.rollouts_per_prompt})" for c in configs]
    return [
        ("Runs", str(len(configs))),
        ("Planners", values([arm.config.planner for arm in study.arms])),
        ("Random seeds", known("seed", lambda c: f"seed {c.seed}", by_seed)),
        ("Task", values([c.task for c in configs])),
        ("Steps", known("steps", lambda c: c.steps)),
        ("Budget of a step", values(per_step)),
        ("Rollouts of a prompt", known("bounds", lambda c: f"{c.lower} to {c.upper}")),
        ("Estimator", known("estimator", lambda c: c.weighting)),
        ("Learning rate", known("learning_rate", lambda c: f"{c.learning_rate:g}")),
    ]


def measured(study: Study) -> str:
    """How the runs' success was measured."""
    ways = [MEASURED if run.from_python else TRAINERS[trainer_name(run.config)].measured for run in study.runs]
    return " or ".join(dict.fromkeys(ways))


def notices(study: Study) -> list[str]:
    """What a reader must know before believing the numbers."""
    found = [*study.repeated, *(note for run in study.runs if run.from_python for note in run.from_python.notes)]
    if study.differing:
        what = "; ".join(
            f"{name.replace('_', ' ')} ({_unless_named(values)})" for name, values in study.differing.items()
        )
        found.append(
            f"The runs differ in more than the planner: {what}. Lines with different settings are drawn together, but "
            "a difference to uniform is only taken between runs of equal settings, seed and step, or each at its own "
            "learning rate where uniform ran at one."
        )
    for arm in study.arms:
        found += _arm_notices(arm)
    for run in study.runs:
        if run.cut_logs:
            logs = " and ".join(run.cut_logs)
            found.append(f"{run.path}: the last line of {logs} was cut short by a kill and is left out.")
    single = [arm.label for arm in study.arms if len(arm.counted) == 1]
    if single:
        found.append(
            f"One seed only: {'; '.join(single)}. A single run has no standard error: another seed might turn any "
            "order round."
        )
    return found


def finding(row: SummaryRow) -> str:
    """One sentence about an arm's held-out success."""
    held_out = row.success["held_out_success"]
    measure: Measure = "pool_success" if held_out is None else "held_out_success"
    success, difference = row.success[measure], row.difference[measure]
    of = "" if "steps" in not_recorded(row.arm.config) else f" of {row.arm.config.steps}"
    what = "success on the pool" if held_out is None else "held-out success"
    text = f"{what} {estimate(success)} after {row.step}{of} steps"
    if row.arm.is_uniform:
        return f"{text}."
    if difference is None:
        return f"{text}; not compared, {row.reference.missing or 'for want of a uniform run of equal seed and step'}."
    pairs = f"{difference.n} pair{'s' if difference.n > 1 else ''}{own_rates(row)}"
    return f"{text}; {signed(difference)} to uniform ({pairs}): {difference.verdict}."


def own_rates(row: SummaryRow) -> str:
    """What to add to a difference between runs of different learning rates."""
    rates = row.reference.rates
    return "" if rates is None or row.arm.is_uniform else f", learning rate {rates[0]:g} against {rates[1]:g}"


def integer(value: float) -> str:
    """A whole number with separators."""
    return f"{round(value):,}"


def between(ends: tuple[int, int]) -> str:
    """A range of whole numbers; one number if its ends are equal."""
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def estimate(value: Estimate | None) -> str:
    """A probability with its standard error, if it has one."""
    return "–" if value is None else f"{value.mean:.3f}" + _error(value, digits=3)


def signed(value: Estimate) -> str:
    """A difference of probabilities with its standard error, if it has one."""
    return f"{value.mean:+.4f}".replace("-", "−") + _error(value, digits=4)


def _unless_named(values: list[Any]) -> str:
    return f"{setting_text(values[0])} unless the name says {' or '.join(map(setting_text, values[1:]))}"


def _error(value: Estimate, digits: int) -> str:
    error = value.standard_error
    return "" if error is None or not math.isfinite(error) else f"\u00a0±\u00a0{error:.{digits}f}"


def _arm_notices(arm: Arm) -> list[str]:
    found = []
    for run in arm.runs:
        if not run.evaluations:
            found.append(f"{run.path} ({arm.label}) ended before its first evaluation: it has no success to show.")
        elif run not in arm.counted:
            found.append(
                f"{run.path} ({arm.label}) stopped after {run.last_step} of {run.config.steps} steps: drawn as a thin "
                "line, left out of means and differences."
            )
    if arm.counted and not arm.counted[0].finished:
        what = "is known to have finished" if "steps" in not_recorded(arm.config) else "has finished"
        found.append(f"No run of {arm.label} {what}: its numbers are those after step {arm.step}.")
    return found


PLOTLY_JS = files("allotment.report") / "plotly" / "plotly-cartesian.min.js"
"""A third of the library that the Python package brings along, see the README beside it."""


def fill(name: str, filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """The whole page as one string of HTML that loads nothing from elsewhere."""
    loader = PackageLoader("allotment.report", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"cell": cell_text, **filters}
    return environment.get_template(name).render(
        font=FONT,
        on_dark=ON_DARK,
        colours={"ink": INK, "faint": FAINT, "grid": GRID, "axis": AXIS, "line": PLANNERS["vip"][0]},
        plotly_js=Markup(PLOTLY_JS.read_text("utf-8")),
        **values,
    )


def write_page(text: str, out: Path, usual_name: str) -> Path:
    """Write a page to ``out``, or under its usual name where that is a folder; parent folders are made. The file."""
    file = out / usual_name if out.is_dir() else out
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, text)
    return file


FORMAT = 1
"""Raised when a name changes its meaning or goes."""


def figures_json(study: Study, checks: Sequence[Check], cards: Sequence[Card], prompts: Explorer) -> dict[str, Any]:
    """``runs``, ``health``, ``prompts``, and each card's figures as ``columns`` and ``rows``, or why it is left out."""
    return {
        "format": FORMAT,
        "runs": [
            {"path": str(run.path), "planner": arm.label, "seed": run.config.seed, "steps": run.last_step}
            for arm in study.arms
            for run in arm.runs
        ],
        "health": health_table(checks).to_json(),
        "cards": [_card_json(card) for card in cards],
        "prompts": prompts.table.to_json(),
    }


def _card_json(card: Card) -> dict[str, Any]:
    return {
        "id": card.id,
        "title": card.text.title,
        "left_out": card.absent,
        "figures": [{"title": p.title, "label": p.label, "note": p.note, **p.table.to_json()} for p in card.panels],
    }
