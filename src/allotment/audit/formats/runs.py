"""The ``rollouts.jsonl`` of a run directory: a line a prompt and step (and round).

``{"prompt_id": "gcd-20/3", "step": 1, "round": 0, "n": 8, "successes": 3, "tokens": 512}``. The rounds of a step are
added up: they are one visit. ``tokens`` may be missing. Further keys are ignored.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from allotment.audit.formats.base import LogFormat
from allotment.audit.formats.lines import Line, strict_lines
from allotment.audit.log import Log, visit_numbers
from allotment.types import PromptId

MOST_TOKENS = 2**40
"""A larger number of tokens of one line is taken for damage."""


def read_runs(path: Path) -> Log:
    """The log of a run's ``rollouts.jsonl``; it may hold no visit.

    Raises:
        InvalidInputError: see :func:`~allotment.audit.read_log`. Names the line.
        OSError: the file cannot be read.
    """
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
            line.fail(
                "a prompt stands twice", f"{prompt!r} in step {step}, round {turn}", "one line a prompt and round"
            )
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


FORMAT = LogFormat(
    "prompt_id, step, n, successes",
    recognises=lambda first: first.has("prompt_id", "step") and (first.has("n") or first.has("successes")),
    read=lambda source, success_above: read_runs(source.path),
    file_is_run=True,
)
