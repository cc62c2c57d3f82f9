"""The count format: a line a prompt.

``{"prompt_id": 7, "prompt": "...", "rollouts_per_visit": 8, "successes": [0, 3, 5]}``; ``prompt`` may be missing,
``rollouts_per_visit`` may be a list, one number a visit. The log does not say which prompts shared a step. Further
keys are ignored.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from allotment.audit.formats.base import LogFormat
from allotment.audit.formats.lines import Line, strict_lines
from allotment.audit.log import Log
from allotment.types import PromptId


def read_counts(path: Path) -> Log:
    """The log of a file in the count format; it may hold no visit.

    Raises:
        InvalidInputError: see :func:`~allotment.audit.read_log`. Names the line.
        OSError: the file cannot be read.
    """
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


FORMAT = LogFormat(
    "prompt_id, rollouts_per_visit, successes",
    recognises=lambda first: first.has("rollouts_per_visit"),
    read=lambda source, success_above: read_counts(source.path),
    file_is_run=True,
)
