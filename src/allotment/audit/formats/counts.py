"""Formats with counts: a line a prompt, and the ``rollouts.jsonl`` of a run directory. Further keys are ignored.

A line a prompt is ``{"prompt_id": 7, "prompt": "...", "rollouts_per_visit": 8, "successes": [0, 3, 5]}``; ``prompt``
may be missing, ``rollouts_per_visit`` may be a list, one number a visit. It does not say which prompts shared a step.

``rollouts.jsonl`` has a line a prompt and step (and round):
``{"prompt_id": "gcd-20/3", "step": 1, "round": 0, "n": 8, "successes": 3, "tokens": 512}``. The rounds of a step are
added up: they are one visit. ``tokens`` may be missing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from allotment.audit.formats.base import LogFormat
from allotment.audit.formats.tables import Line, strict_lines
from allotment.audit.log import Log, visit_numbers
from allotment.types import PromptId


def _read_counts(path: Path) -> Log:
    """The log of a file with a line a prompt; it may hold no visit."""
    line_of: dict[PromptId, int] = {}
    rows: list[tuple[int, int, int, int]] = []
    texts: list[str | None] = []
    notes: list[str] = []
    for line in strict_lines(path, notes):
        prompt = line.prompt_id()
        if line_of.setdefault(prompt, line.number) != line.number:
            line.fail("a prompt stands twice", f"{prompt!r}, first in line {line_of[prompt]}", "one line a prompt")
        row = len(line_of) - 1
        rows += [(row, visit, k, n) for visit, (k, n) in enumerate(_visits(line), start=1)]
        texts.append(line.text())
    known = tuple(text for text in texts if text is not None)
    if 0 < len(known) < len(texts):
        notes.append(f"{len(texts) - len(known)} of {len(texts)} prompts have no text")
    prompt_V, visit_V, successes_V, trials_V = np.array(rows, dtype=np.int64).reshape(-1, 4).T
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


COUNTS = LogFormat(
    "prompt_id, rollouts_per_visit, successes",
    recognises=lambda first: first.has("rollouts_per_visit"),
    read=lambda source, success_above: _read_counts(source.path),
    file_is_run=True,
)


MOST_TOKENS = 2**40
"""A larger number of tokens of one line is taken for damage."""


def _read_run(path: Path) -> Log:
    """The log of a run's ``rollouts.jsonl``; it may hold no visit."""
    ids: dict[PromptId, int] = {}
    counts: dict[tuple[int, int], list[int]] = {}  # (step, row of the prompt): successes, rollouts, tokens
    seen: set[tuple[int, int, int]] = set()
    notes: list[str] = []
    has_tokens = True
    for line in strict_lines(path, notes):
        prompt, step = line.prompt_id(), line.count("step")
        turn = line.as_count("round", line.values.get("round", 0))
        row = ids.setdefault(prompt, len(ids))
        if (row, step, turn) in seen:
            where = f"{prompt!r} in step {step}, round {turn}"
            line.fail("a prompt stands twice", where, "one line a prompt and round")
        seen.add((row, step, turn))
        has_tokens = has_tokens and "tokens" in line.values
        total = counts.setdefault((step, row), [0, 0, 0])
        for place, number in enumerate(_numbers(line)):
            total[place] += number
    if any(turn for _, _, turn in seen):
        notes.append("some steps had further rounds, which depend on the first: a visit's variance is then biased")
    rows = [(row, step, *total) for (step, row), total in sorted(counts.items(), key=lambda i: i[0][0]) if total[1]]
    prompt_V, step_V, successes_V, trials_V, tokens_V = np.array(rows, dtype=np.int64).reshape(-1, 5).T
    return Log(
        tuple(ids),
        prompt_V,
        visit_numbers(prompt_V),
        successes_V,
        trials_V,
        step_V,
        notes=tuple(notes),
        lengths=tokens_V.astype(np.float64) if has_tokens else None,
    )


def _numbers(line: Line) -> tuple[int, int, int]:
    """Successes, rollouts and tokens of a line."""
    successes, trials = line.count("successes"), line.count("n")
    line.check_successes(successes, trials)
    return successes, trials, line.as_count("tokens", line.values.get("tokens", 0), most=MOST_TOKENS)


RUN = LogFormat(
    "prompt_id, step, n, successes",
    recognises=lambda first: first.has("prompt_id", "step") and (first.has("n") or first.has("successes")),
    read=lambda source, success_above: _read_run(source.path),
    file_is_run=True,
)
