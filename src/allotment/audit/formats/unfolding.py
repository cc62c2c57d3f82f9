"""The rollouts of a row: one, a list of rewards, a list of tables, or a number of successes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from allotment.audit.formats.base import Columns, completion_length, number, reward, whole

MOST = 100_000
"""More rollouts of one row are taken for damage."""


Rollout = tuple[float | None, float]
"""Reward of a rollout, None where the row says nothing that is one; and its length, NaN where it is not known."""


def rollouts(row: Mapping[str, Any], columns: Columns) -> Sequence[Rollout]:
    """The rollouts of a row; none where it is no row of a log."""
    value = row.get(columns.reward or "")
    if isinstance(value, float | bool) and columns.nested is None and columns.trials is None:  # nearly all of most logs
        return ((float(value) if math.isfinite(value) else None, _length(row, columns)),)
    if columns.nested is not None:
        inner = row.get(columns.nested)
        tables = [item for item in inner if isinstance(item, Mapping)] if isinstance(inner, Sequence) else []
        return [(reward(item.get(columns.reward or "")), _length(item, columns)) for item in tables]
    if columns.trials is not None:
        return _counted(value, row.get(columns.trials))
    if isinstance(value, list | tuple):
        return _listed(value, row, columns)
    return ((reward(value), _length(row, columns)),)


def _listed(values: Sequence[Any], row: Mapping[str, Any], columns: Columns) -> list[Rollout]:
    """A reward for each rollout; a length too where a list of completions, or of lengths, has as many."""
    lengths = [math.nan] * len(values)
    for name, measure in ((columns.completion, completion_length), (columns.tokens, _tokens)):
        given = row.get(name) if name is not None else None
        if isinstance(given, list | tuple) and len(given) == len(values):
            lengths = [measure(item) for item in given]
    return [(reward(value), length) for value, length in zip(values, lengths, strict=True)]


def _counted(value: Any, trials: Any) -> list[Rollout]:
    """As many rollouts as are counted, of which ``value`` succeeded: a whole number, or a share from 0 to 1."""
    n, found = whole(trials), number(value)
    if n is None or found is None or not 0 < n <= MOST:
        return []
    is_share = isinstance(value, float) and found <= 1
    successes = found * n if is_share else found
    if not (0 <= successes <= n) or abs(successes - round(successes)) > 0.01 * max(1, math.sqrt(n)):
        return []
    return [(float(i < round(successes)), math.nan) for i in range(n)]


def _length(row: Mapping[str, Any], columns: Columns) -> float:
    if columns.tokens:
        return _tokens(row.get(columns.tokens))
    return completion_length(row.get(columns.completion)) if columns.completion else math.nan


def _tokens(value: Any) -> float:
    found = number(value)
    return found if found is not None and 0 <= found < 2**53 else math.nan
