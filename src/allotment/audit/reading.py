"""From a JSONL file to a :class:`~allotment.audit.log.Log`. Two formats, told apart by their keys.

Counts: a line a prompt, ``{"prompt_id": 7, "prompt": "...", "rollouts_per_visit": 8, "successes": [0, 3, 5]}``;
``prompt`` may be missing, ``rollouts_per_visit`` may be a list, one number a visit. The log does not say which prompts
shared a step.

Runs: the ``rollouts.jsonl`` of a run directory, a line a prompt and step (and round):
``{"prompt_id": "gcd-20/3", "step": 1, "round": 0, "n": 8, "successes": 3}``. The rounds of a step are added up: they
are one visit. Further keys are passed over in both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from allotment.audit.log import Log
from allotment.errors import InvalidInputError, message
from allotment.types import PromptId

MOST_ROLLOUTS = 100_000
"""A larger count of one visit is taken for damage."""


@dataclass(frozen=True)
class Line:
    """One JSON object of the file, with getters that say where a value is wrong."""

    path: Path
    number: int
    values: dict[str, Any]

    def fail(self, wrong: str, got: object, allowed: str) -> NoReturn:
        """Raise :class:`~allotment.errors.InvalidInputError` naming the line."""
        shown = got if isinstance(got, str) else repr(got)
        raise InvalidInputError(
            message(f"{self.path}, line {self.number}: {wrong}", got=shown[:120], allowed=allowed, fix="mend the line")
        )

    def get(self, key: str) -> Any:
        """The value of ``key``."""
        if key not in self.values:
            self.fail(f"no {key!r}", ", ".join(self.values) or "no keys", f"a line with {key!r}")
        return self.values[key]

    def prompt_id(self) -> PromptId:
        """The prompt's id."""
        value = self.get("prompt_id")
        if type(value) not in (int, str):
            self.fail("prompt_id has the wrong type", value, "a whole number or a string")
        return value  # type: ignore[no-any-return]

    def text(self) -> str | None:
        """The prompt's text, None where there is none."""
        value = self.values.get("prompt")
        if not isinstance(value, str | None):
            self.fail("prompt is not a text", value, "a string")
        return value

    def count(self, key: str, least: int = 0) -> int:
        """The value of ``key``, a count."""
        return self.as_count(key, self.get(key), least)

    def as_count(self, what: str, value: Any, least: int = 0) -> int:
        """``value`` as a count of ``least`` or more."""
        if type(value) is not int or not least <= value <= MOST_ROLLOUTS:
            self.fail(f"{what} is not a count", value, f"a whole number from {least} to {MOST_ROLLOUTS:,}")
        return value

    def check_successes(self, successes: int, trials: int) -> None:
        """Refuse more successes than rollouts."""
        if successes > trials:
            self.fail("more successes than rollouts", f"{successes} of {trials}", "successes <= rollouts")


def read_log(path: str | Path) -> Log:
    """Read a log of success counts, in either format of this module.

    A last line that a killed writer cut short is left out, and a note says so.

    Raises:
        InvalidInputError: no visits, a line that is not a JSON object or lacks a key, a value of the wrong type, more
            successes than rollouts, a prompt that stands twice (in the same step and round). Names the line.
        OSError: the file cannot be read.
    """
    path = Path(path)
    lines, notes = _lines(path)
    if not lines:
        _refuse_empty(path, f"{len(notes)} lines cut short" if notes else "no lines")
    first = lines[0]
    if "step" in first.values:
        log = _run_log(lines, notes)
    elif "rollouts_per_visit" in first.values:
        log = _count_log(lines, notes)
    else:
        first.fail(
            "unknown format",
            ", ".join(first.values),
            "prompt_id, rollouts_per_visit, successes; or prompt_id, step, n, successes",
        )
    if not len(log.visit):
        _refuse_empty(path, f"{len(lines)} lines without a visit")
    if single := int((log.trials == 1).sum()):
        log = replace(log, notes=(*log.notes, f"{single} visits of one rollout say nothing about variance"))
    return log


def _refuse_empty(path: Path, got: str) -> NoReturn:
    fix = "pass the success log of a run that was not stopped before its first step"
    raise InvalidInputError(message(f"{path} holds no visits", got=got, allowed="at least one visit", fix=fix))


def _lines(path: Path) -> tuple[list[Line], list[str]]:
    """The lines, and a note if the last one is cut short: without its newline and not JSON."""
    parts = path.read_bytes().split(b"\n")
    lines: list[Line] = []
    for number, part in enumerate(parts, start=1):
        if not part.strip():
            continue
        try:
            values = json.loads(part)  # bytes: a kill may cut a character in two
        except (ValueError, RecursionError) as error:
            if number == len(parts):
                return lines, [f"1 line left out: line {number}, the last one, is cut short"]
            Line(path, number, {}).fail("not JSON", str(error), "one JSON object a line; the last may be cut short")
        if not isinstance(values, dict):
            Line(path, number, {}).fail("not a JSON object", values, "one JSON object a line")
        lines.append(Line(path, number, values))
    return lines, []


def _count_log(lines: Sequence[Line], notes: Sequence[str]) -> Log:
    """One line a prompt."""
    line_of: dict[PromptId, int] = {}
    rows: list[tuple[int, int, int, int]] = []
    for line in lines:
        prompt = line.prompt_id()
        if line_of.setdefault(prompt, line.number) != line.number:
            line.fail("a prompt stands twice", f"{prompt!r}, first in line {line_of[prompt]}", "one line a prompt")
        row = len(line_of) - 1
        rows += [(row, visit, k, n) for visit, (k, n) in enumerate(_visits(line), start=1)]
    texts = [line.text() for line in lines]
    prompt_V, visit_V, successes_V, trials_V = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    known = tuple(text for text in texts if text is not None)
    if 0 < len(known) < len(texts):
        notes = (*notes, f"{len(texts) - len(known)} of {len(texts)} prompts have no text")
    all_texts = known if len(known) == len(texts) else None
    return Log(tuple(line_of), prompt_V, visit_V, successes_V, trials_V, texts=all_texts, notes=tuple(notes))


def _visits(line: Line) -> list[tuple[int, int]]:
    """(successes, rollouts) of each visit of a prompt."""
    values, per_visit = line.get("successes"), line.get("rollouts_per_visit")
    if not isinstance(values, list):
        line.fail("successes is not a list", values, "a list of counts, one a visit")
    trials = per_visit if isinstance(per_visit, list) else [per_visit] * len(values)
    if len(trials) != len(values):
        lengths = f"{len(trials)} numbers for {len(values)} visits"
        line.fail("rollouts_per_visit does not fit successes", lengths, "one number, or one a visit")
    visits = [
        (line.as_count("successes", k), line.as_count("rollouts_per_visit", n, least=1))
        for k, n in zip(values, trials, strict=True)
    ]
    for k, n in visits:
        line.check_successes(k, n)
    return visits


def _run_log(lines: Sequence[Line], notes: Sequence[str]) -> Log:
    """One line a prompt, step and round."""
    ids: dict[PromptId, int] = {}
    counts: dict[tuple[int, int], list[int]] = {}  # (step, row of the prompt): [successes, rollouts]
    seen: set[tuple[PromptId, int, int]] = set()
    for line in lines:
        prompt, step = line.prompt_id(), line.count("step")
        turn = line.as_count("round", line.values.get("round", 0))
        if (prompt, step, turn) in seen:
            line.fail(
                "a prompt stands twice", f"{prompt!r} in step {step}, round {turn}", "one line a prompt and round"
            )
        seen.add((prompt, step, turn))
        successes, trials = line.count("successes"), line.count("n")
        line.check_successes(successes, trials)
        total = counts.setdefault((step, ids.setdefault(prompt, len(ids))), [0, 0])
        total[0] += successes
        total[1] += trials
    if any(turn for _, _, turn in seen):
        notes = (*notes, "some steps had further rounds, which depend on the first: a visit's variance is then biased")
    visits = [0] * len(ids)
    rows: list[tuple[int, int, int, int, int]] = []
    for (step, row), (successes, trials) in sorted(counts.items(), key=lambda item: item[0][0]):  # stable: file order
        if trials:
            visits[row] += 1
            rows.append((row, visits[row], successes, trials, step))
    prompt_V, visit_V, successes_V, trials_V, step_V = np.array(rows, dtype=np.int64).reshape(-1, 5).T
    return Log(tuple(ids), prompt_V, visit_V, successes_V, trials_V, step_V, notes=tuple(notes))
