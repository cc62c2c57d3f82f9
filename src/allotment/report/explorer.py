"""The prompt explorer: every prompt of every run with its history, as data for the page's own search and sorting."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from allotment.config import RunConfig
from allotment.errors import AllotmentError
from allotment.registry import TRAINERS
from allotment.report.course import Visits
from allotment.report.data import Study
from allotment.report.figures import safe
from allotment.report.tables import Table
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
        (f"{arm.label}, seed {run.config.seed}", run.config, _prompts(seen, number))
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
