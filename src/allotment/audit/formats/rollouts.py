"""From files with a row a rollout to a :class:`~allotment.audit.log.Log`: groups by id or text, never by stride.

verl fills ``trainer.rollout_data_dir`` with a ``STEP.jsonl`` a step: ``input``, ``output``, ``gts``, ``score``,
``step`` and what the reward function adds. TRL writes a ``completions/completions_STEP.parquet`` a step with
``log_completions=True``: ``step``, ``prompt``, ``completion``, a column a reward function, ``advantage`` and what the
user adds; prompts may be conversations. Any other table is read whose columns the user names.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import numpy as np

from allotment.audit.formats.base import (
    LENGTHS,
    Columns,
    FirstRows,
    LogFormat,
    Row,
    Source,
    completed,
    completion_length,
    number,
    prompt_id,
    prompt_text,
    text_key,
    whole,
)
from allotment.audit.formats.tables import LeftOut, rows
from allotment.audit.log import Log, visit_numbers
from allotment.errors import InvalidInputError
from allotment.types import FloatArray, IntArray

ROOM = 2**18
"""Rollouts that are collected before they are added up."""


class Tally:
    """Adds up rollouts by (step, prompt, reward): how many, and the sum of their lengths."""

    def __init__(self) -> None:
        self._keys, self._rewards, self._lengths = array("q"), array("d"), array("d")
        self._keys_G2, self._rewards_G = np.empty((0, 2), dtype=np.int64), np.empty(0)
        self._counts_G, self._lengths_G = np.empty(0, dtype=np.int64), np.empty(0)

    def add(self, step: int, row: int, reward: float, length: float) -> None:
        """One rollout; ``length`` is NaN where it is not known."""
        self._keys.extend((step, row))
        self._rewards.append(reward)
        self._lengths.append(length)
        if len(self._rewards) >= ROOM:
            self._add_up()

    def groups(self) -> tuple[IntArray, IntArray, FloatArray, IntArray, FloatArray]:
        """Step, row, reward, number of rollouts and sum of lengths of every group; all [G], sorted by the first three.

        A sum of lengths is NaN where one of them is.
        """
        self._add_up()
        return self._keys_G2[:, 0], self._keys_G2[:, 1], self._rewards_G, self._counts_G, self._lengths_G

    def _add_up(self) -> None:
        keys_G2 = np.concatenate([self._keys_G2, np.array(self._keys, dtype=np.int64).reshape(-1, 2)])
        rewards_G = np.concatenate([self._rewards_G, np.array(self._rewards)])
        counts_G = np.concatenate([self._counts_G, np.ones(len(self._rewards), dtype=np.int64)])
        lengths_G = np.concatenate([self._lengths_G, np.array(self._lengths)])
        self._keys, self._rewards, self._lengths = array("q"), array("d"), array("d")
        if not len(rewards_G):
            return
        order_G = np.lexsort((rewards_G, keys_G2[:, 1], keys_G2[:, 0]))
        keys_G2, rewards_G = keys_G2[order_G], rewards_G[order_G]
        new_G = (np.diff(keys_G2, axis=0) != 0).any(axis=1) | (np.diff(rewards_G) != 0)
        starts = np.concatenate([[0], np.flatnonzero(new_G) + 1])
        self._keys_G2, self._rewards_G = keys_G2[starts], rewards_G[starts]
        self._counts_G = np.add.reduceat(counts_G[order_G], starts)
        self._lengths_G = np.add.reduceat(lengths_G[order_G], starts)


class Prompts:
    """Rows of prompts by their key, with their texts while these take little room."""

    MOST_TEXT = 2**26
    """Characters kept; a log with more is read without texts."""

    def __init__(self) -> None:
        self.row_of: dict[int | str, int] = {}
        self.texts: list[str] | None = []
        self._room = self.MOST_TEXT

    def row(self, key: int | str, text: str | None) -> int:
        """The row of the prompt, a new one if it was not met before."""
        row = self.row_of.get(key)
        if row is None:
            row = self.row_of[key] = len(self.row_of)
            self._room -= len(text or "")
            if text is None or self._room < 0:
                self.texts = None
            elif self.texts is not None:
                self.texts.append(text)
        return row


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
        if drop_repeats and len(source.files) > 1:
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


TRL_COLUMNS = Columns(prompt="prompt", step="step", completion="completion")


def _trl_columns(first: FirstRows) -> Columns:
    """Raises InvalidInputError if no reward is named and not exactly one column may be one."""
    used = first.columns.over(TRL_COLUMNS)
    names = [name for name in _rewards(first.rows[0]) if all(name in _rewards(row) for row in first.rows)]
    if used.reward is None and len(names) != 1:
        raise InvalidInputError(
            f"{first.path}: which column is the reward?",
            got=", ".join(names) or "no column of numbers",
            allowed="one column; TRL does not log the weights of its reward functions",
            fix="name the one that says whether a rollout succeeded: --reward NAME",
        )
    return completed(used if used.reward is not None else replace(used, reward=names[0]), first.rows[0])


def _rewards(row: Row) -> list[str]:
    """The columns that may be a reward: numbers, or nothing yet."""
    known = {"step", "prompt", "completion", "advantage", *LENGTHS}
    return [name for name, value in row.items() if name not in known and (value is None or number(value) is not None)]


TRL = LogFormat(
    "step, prompt, completion and a reward",
    recognises=lambda first: first.has(*first.columns.over(TRL_COLUMNS).named().values()),
    columns=_trl_columns,
    read=partial(read_rollouts, drop_repeats=True),
)
VERL_COLUMNS = Columns(prompt="input", step="step", reward="score", completion="output")


def _recognises_verl(first: FirstRows) -> bool:
    used = first.columns.over(VERL_COLUMNS)
    has_step = first.has(used.step) or first.path.stem.isdecimal()
    return has_step and first.has(used.prompt, used.reward, used.completion)


VERL = LogFormat(
    "input, output, score, step",
    recognises=_recognises_verl,
    columns=lambda first: completed(first.columns.over(VERL_COLUMNS), first.rows[0]),
    read=read_rollouts,
)
NAMED = LogFormat(
    "columns named with --prompt, --step, --reward",
    recognises=lambda first: first.all_named,
    columns=lambda first: completed(first.columns, first.rows[0]),
    read=read_rollouts,
)
