"""From files with a row a rollout to a :class:`~allotment.audit.log.Log`: groups by id or text, never by stride."""

from __future__ import annotations

import math
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import numpy as np

from allotment.audit.formats.base import Source
from allotment.audit.formats.columns import (
    Columns,
    Row,
    completion_length,
    number,
    prompt_id,
    prompt_text,
    text_key,
    whole,
)
from allotment.audit.formats.lines import LeftOut
from allotment.audit.formats.tables import rows
from allotment.audit.formats.tally import Prompts, Tally
from allotment.audit.log import Log, visit_numbers
from allotment.types import FloatArray, IntArray

Rollout = tuple[int, int | str, str | None, float, float]
"""Step, key of the prompt, its text, reward, length."""
Array = TypeVar("Array", IntArray, FloatArray)
SHOWN_VALUES = 6
"""Reward values that a note names."""


def read_rollouts(source: Source, success_above: float | None, *, drop_repeats: bool = False) -> Log:
    """The log of one run; it may hold no visit.

    Args:
        source: the run; its columns are complete, see :meth:`Columns.complete`.
        success_above: a rollout whose reward is larger succeeded; None for the middle between the largest and the
            smallest reward of the log, or between 0 and 1 where all are equal.
        drop_repeats: leave out a file with the rollouts of the one before it, as TRL writes them when it takes several
            steps with what it generated once.

    Raises:
        MissingExtraError: a parquet file, and pyarrow is not installed.
        OSError: a file cannot be read.
    """
    left_out, tally, prompts = LeftOut(), Tally(), Prompts()
    before = b""
    for path in source.files:
        rollouts = _rollouts(path, source.columns, left_out)
        if drop_repeats:
            kept = list(rollouts)  # a file of a step: as many rollouts as were generated at once
            digest = blake2b(repr([rollout[1:] for rollout in kept]).encode()).digest()
            if kept and digest == before:
                left_out.add("file with the rollouts of the one before it", path)
                continue
            before, rollouts = digest, iter(kept)
        for step, key, text, reward, length in rollouts:
            tally.add(step, prompts.row(key, text), reward, length)
    return _log(tally, prompts, left_out, source.columns, success_above)


def _rollouts(path: Path, columns: Columns, left_out: LeftOut) -> Iterator[Rollout]:
    stem_step = int(path.stem) if path.stem.isdecimal() and len(path.stem) < 16 else None
    for place, row in rows(path, left_out, tuple(columns.named().values())):
        reward, step = number(row.get(columns.reward or "")), whole(row.get(columns.step or ""))
        step = stem_step if step is None else step
        text = prompt_text(row.get(columns.prompt)) if columns.prompt else None
        key = prompt_id(row.get(columns.id)) if columns.id else text and text_key(text)
        if reward is None:
            left_out.add("rollout without a reward that is a number", path, place)
        elif step is None:
            left_out.add("rollout without a step", path, place)
        elif key is None:
            left_out.add("rollout without a prompt", path, place)
        else:
            yield step, key, text, reward, _length(row, columns)


def _length(row: Row, columns: Columns) -> float:
    if columns.tokens:
        found = number(row.get(columns.tokens))
        return found if found is not None and 0 <= found < 2**53 else math.nan
    return completion_length(row.get(columns.completion)) if columns.completion else math.nan


def _log(tally: Tally, prompts: Prompts, left_out: LeftOut, columns: Columns, success_above: float | None) -> Log:
    step_G, row_G, reward_G, counts_G, lengths_G = tally.groups()
    above, threshold_notes = _threshold(reward_G, success_above)
    new_G = np.ones(len(step_G), dtype=bool)
    new_G[1:] = (np.diff(step_G) != 0) | (np.diff(row_G) != 0)
    starts_V = np.flatnonzero(new_G)
    lengths_V = _sums(lengths_G, starts_V)
    notes = [*left_out.notes(), *threshold_notes, *step_notes(step_G[starts_V])]
    if prompts.texts is None and columns.prompt:
        notes.append("prompts' texts are not kept: they are too many, or some are missing")
    trials_V = _sums(counts_G, starts_V)
    if len(starts_V) and trials_V.min() < trials_V.max():
        notes.append(f"groups are of {trials_V.min()} to {trials_V.max()} rollouts, median {np.median(trials_V):g}")
    if unknown := int(np.isnan(lengths_V).sum()):
        notes.append(f"{unknown:,} of {len(starts_V):,} groups have no lengths: nothing is said of tokens")
    prompt_V = row_G[starts_V]
    return Log(
        tuple(prompts.row_of),
        prompt_V,
        visit_numbers(prompt_V),
        _sums(counts_G * (reward_G > above), starts_V),
        trials_V,
        step_G[starts_V],
        tuple(prompts.texts) if prompts.texts else None,
        tuple(notes),
        lengths_V if (columns.tokens or columns.completion) and not unknown else None,
        "tokens" if columns.tokens else "characters",
    )


def _sums(values_G: Array, starts_V: IntArray) -> Array:
    """[V] sums over the groups of each visit."""
    return np.add.reduceat(values_G, starts_V) if len(starts_V) else values_G


def _threshold(reward_G: FloatArray, success_above: float | None) -> tuple[float, list[str]]:
    """Above which reward a rollout succeeded, and what a reader should know about it."""
    values = np.unique(reward_G)
    if not len(values):
        return 0.0, []
    middle = 0.5 if len(values) == 1 else float(values[0] / 2 + values[-1] / 2)
    above = middle if success_above is None else success_above
    if set(values.tolist()) <= {0.0, 1.0} and 0 <= above < 1:
        return above, []
    shown = ", ".join(f"{value:g}" for value in values[:SHOWN_VALUES]) + (", ..." if len(values) > SHOWN_VALUES else "")
    note = f"rewards are {shown}: a rollout above {above:g} counts as a success"
    return above, [note if len(values) <= 2 else f"{note}; how much above is not looked at"]


def step_notes(step_V: IntArray) -> list[str]:
    """A note if steps are missing: the usual distance between two steps is taken for the interval of logging."""
    steps = np.unique(step_V)
    if len(steps) < 3:
        return []
    distances = np.diff(steps)
    usual = int(np.median(distances))
    missing = int((np.maximum(distances // usual, 1) - 1).sum())
    return [f"{missing:,} steps missing between step {steps[0]} and step {steps[-1]}"] if missing else []
