"""Any table of rollouts: what its columns hold, by their names and by what stands in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from allotment.audit.formats.base import (
    IDS,
    Columns,
    FirstRows,
    LogFormat,
    Row,
    completed,
    inside,
    prompt_id,
    prompt_text,
)
from allotment.audit.formats.rewards import COUNTED, TRIALS, found_reward
from allotment.audit.formats.rollouts import read_rollouts

PROMPTS = (
    "prompt",
    "input",
    "input_prompt",
    "question",
    "problem",
    "query",
    "instruction",
    "prompt_text",
    "messages",
    "text",
)
COMPLETIONS = (
    "completion",
    "completions",
    "output",
    "outputs",
    "output_response",
    "response",
    "responses",
    "generation",
    "generations",
)
NESTED = ("rollouts", "samples", "generations", "completions", "responses", "trajectories", "attempts", "results")


def found_columns(first: FirstRows) -> Columns | None:
    """The columns of a table of rollouts; None where no prompt, or no reward, is found.

    Raises InvalidInputError: several columns may be the reward, and differ.
    """
    named, rows = first.columns, first.rows
    nested = named.nested or _nested(rows)
    inner = [row for outer in rows for row in _tables(outer.get(nested))] if nested else rows
    used = replace(named, nested=nested)
    used = replace(used, prompt=used.prompt or _first(PROMPTS, rows))
    used = replace(used, id=used.id or _identity(rows, used.prompt))
    if used.prompt is None and not _comes_back(used.id, rows):
        tables = [name for name, value in rows[0].items() if isinstance(value, Mapping)]
        used = replace(used, prompt=_first([f"{table}.{name}" for table in tables for name in PROMPTS], rows))
        used = replace(used, id=named.id or _identity(rows, used.prompt))
    if used.reward is None:
        used = replace(used, reward=found_reward(first.path, inner))
    if used.trials is None and used.reward in COUNTED:
        used = replace(used, trials=next((n for n in TRIALS if n in rows[0]), None))
    if used.completion is None:
        used = replace(used, completion=next((n for n in COMPLETIONS if inner and n in inner[0] and n != nested), None))
    return completed(used, {**rows[0], **(inner[0] if inner else {})}) if used.complete() else None


def _first(names: Sequence[str], rows: Sequence[Row]) -> str | None:
    """The first of these columns that every row has a text in."""
    return next((n for n in names if all(prompt_text(row.get(n) or inside(row, n)) is not None for row in rows)), None)


def _comes_back(name: str | None, rows: Sequence[Row]) -> bool:
    """Whether a prompt is named by more than one of the rows, or by the only one."""
    found = [prompt_id(row.get(name)) for row in rows] if name else []
    return bool(found) and (len(found) == 1 or len(set(found)) < len(found))


def _identity(rows: Sequence[Row], prompt: str | None) -> str | None:
    """The column with the prompt's id: one that is the same wherever the text is, or that stands in for a text.

    A column that differs from row to row numbers rows, not prompts.
    """
    for name in IDS:
        ids = [prompt_id(row.get(name)) for row in rows]
        if any(value is None for value in ids):
            continue
        if prompt is None:
            return name
        texts = {(key, prompt_text(row.get(prompt) or inside(row, prompt))) for key, row in zip(ids, rows, strict=True)}
        if len(texts) == len(set(ids)) < len(ids):
            return name
    return None


def _nested(rows: Sequence[Row]) -> str | None:
    return next((name for name in NESTED if all(_tables(row.get(name)) for row in rows)), None)


def _tables(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list | tuple) else []


def _recognises(first: FirstRows) -> bool:
    return found_columns(first) is not None


def _columns(first: FirstRows) -> Columns:
    found = found_columns(first)
    return completed(first.columns, first.rows[0]) if found is None else found


TABLE = LogFormat(
    "a prompt (prompt, question, input, messages, or an id) and a reward (acc, correct, reward, score, ...), a row a "
    "rollout, or a list or counts of a prompt's rollouts",
    recognises=_recognises,
    columns=_columns,
    read=read_rollouts,
)
NAMED = LogFormat(
    "columns named with --prompt, --step, --reward",
    recognises=lambda first: first.all_named,
    columns=lambda first: completed(first.columns, first.rows[0]),
    read=read_rollouts,
)
