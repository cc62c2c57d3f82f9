"""From files with a row a rollout to a :class:`~allotment.audit.log.Log`: groups by id or text, never by stride.

verl fills ``trainer.rollout_data_dir`` with a ``STEP.jsonl`` a step: ``input``, ``output``, ``gts``, ``score``,
``step`` and what the reward function adds. TRL writes a ``completions/completions_STEP.parquet`` a step with
``log_completions=True``: ``step``, ``prompt``, ``completion``, a column a reward function, ``advantage`` and what the
user adds; prompts may be conversations. Any other table is read whose columns the user names.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
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
    number,
    prompt_id,
    prompt_text,
    text_key,
    whole,
)
from allotment.audit.formats.left_out import LeftOut
from allotment.audit.formats.rewards import found_reward, threshold
from allotment.audit.formats.steps import Visits, step_of
from allotment.audit.formats.tables import rows
from allotment.audit.formats.unfolding import rollouts
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

    def as_one_step(self) -> None:
        """Take all rollouts of a prompt for one visit."""
        self._add_up()
        self._keys_G2[:, 0] = 1
        self._add_up()

    def rename(self, row_M: IntArray) -> None:
        """Give the rows of prompts other numbers; rows with equal numbers become one."""
        self._add_up()
        self._keys_G2[:, 1] = row_M[self._keys_G2[:, 1]]
        self._add_up()

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

    @classmethod
    def of(cls, row_of_text: Mapping[str, int]) -> Prompts:
        """Prompts that are known by their texts."""
        made = cls()
        for text in row_of_text:
            made.row(text_key(text), text)
        return made

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


IDS = ("prompt_id", "problem_id", "question_id", "task_id", "example_id", "doc_id", "uid", "id", "index", "idx")
LARGEST = 2**53
"""Steps are smaller."""
UID = "uid"
"""Column of verl that names a prompt in its step; in some runs anew at every visit, so that texts must tell."""
Array = TypeVar("Array", IntArray, FloatArray)


def read_rollouts(
    source: Source,
    success_above: float | None,
    *,
    drop_repeats: bool = False,
    adapt: Callable[[Row], Row] | None = None,
) -> Log:
    """The log of one run; it may hold no visit.

    Args:
        source: the run; its columns are complete, see :meth:`Columns.complete`.
        success_above: a rollout whose reward is larger succeeded; None for the middle between the largest and the
            smallest reward of the log, or between 0 and 1 where all are equal.
        drop_repeats: leave out a file with the rollouts of the one before it, as TRL writes them when it takes several
            steps with what it generated once.
        adapt: makes the row that the columns are of.

    Raises:
        MissingExtraError: a parquet file, and pyarrow is not installed.
        OSError: a file cannot be read.
    """
    reader = Reader(source.columns, adapt, is_alone=len(source.files) == 1)
    before = b""
    for path in source.files:
        found = reader.rollouts(path)
        if drop_repeats and len(source.files) > 1:
            kept = list(found)  # a file of a step: as many rollouts as were generated at once
            digest = blake2b(repr([rollout[1:] for rollout in kept]).encode()).digest()
            if kept and digest == before:
                reader.left_out.add("file with the rollouts of the one before it", path)
                continue
            before, found = digest, iter(kept)
        for step, key, text, reward, length in found:
            reader.tally.add(step, reader.prompts.row(key, text), reward, length)
    return _log(reader, success_above)


class Reader:
    """Rollouts of the files of a run, and what is noted on the way."""

    def __init__(self, columns: Columns, adapt: Callable[[Row], Row] | None = None, *, is_alone: bool = False) -> None:
        self.columns, self._adapt = columns, adapt
        self._is_alone = is_alone  # whether there is one file: its name may say when it was written, not a row's step
        self.left_out, self.tally, self.prompts, self.visits = LeftOut(), Tally(), Prompts(), Visits()
        self._names = tuple(columns.named().values())
        self._folds = columns.nested is not None or columns.trials is not None

    def rollouts(self, path: Path) -> Iterator[tuple[int, int | str, str | None, float, float]]:
        """Step, or visit where no step is known, key of the prompt, its text, reward and length of each rollout."""
        columns, left_out, named_step = self.columns, self.left_out, step_of(path)
        for place, found_row in rows(path, left_out, None if self._adapt else self._names):
            row = found_row if self._adapt is None else self._adapt(found_row)
            text = prompt_text(row.get(columns.prompt)) if columns.prompt else None
            key = prompt_id(row.get(columns.id)) if columns.id else text and text_key(text)
            step = row.get(columns.step) if columns.step else None
            step = step if type(step) is int and abs(step) < LARGEST else whole(step)
            if key is None:
                left_out.add("row without a prompt", path, place)
                continue
            found = rollouts(row, columns)
            if not found:
                left_out.add("row without rollouts", path, place)
                continue
            is_whole = self._folds or len(found) > 1
            if step is None and not (is_whole and self._is_alone):
                step = named_step
            if step is None and columns.step:
                left_out.add("row without a step", path, place)
                continue
            if step is None:
                step = self.visits.number(key, is_whole=is_whole)
            for reward, length in found:
                if reward is None:
                    left_out.add("rollout without a reward", path, place)
                else:
                    yield step, key, text, reward, length


def _log(reader: Reader, success_above: float | None) -> Log:
    tally, prompts, left_out, columns = reader.tally, reader.prompts, reader.left_out, reader.columns
    if reader.visits.are_mixed:
        tally.as_one_step()
    if columns.id == UID and prompts.texts is not None and (row_of_text := _by_text(tally, prompts.texts)):
        tally.rename(np.array([row_of_text[text] for text in prompts.texts]))
        prompts = Prompts.of(row_of_text)
    step_G, row_G, reward_G, counts_G, lengths_G = tally.groups()
    above, threshold_notes = threshold(reward_G, counts_G, success_above)
    new_G = np.ones(len(step_G), dtype=bool)
    new_G[1:] = (np.diff(step_G) != 0) | (np.diff(row_G) != 0)
    starts_V = np.flatnonzero(new_G)
    lengths_V = _sums(lengths_G, starts_V)
    notes = [*left_out.notes(), *threshold_notes]
    notes += [reader.visits.note] if reader.visits else step_notes(step_G[starts_V])
    read_as = ", ".join(f"{role} = {name}" for role, name in columns.named().items())
    read_as += f", success = {columns.reward} above {above:g}; {counts_G.sum():,} rollouts, {len(starts_V):,} groups"
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
        None if reader.visits else step_G[starts_V],
        tuple(prompts.texts) if prompts.texts else None,
        tuple(notes),
        lengths_V if (columns.tokens or columns.completion) and not unknown else None,
        "tokens" if columns.tokens else "characters",
        read_as=f"{read_as}, {len(prompts.row_of):,} prompts",
        doubts=(*_doubts_of_rule(threshold_notes, reward_G), *(() if reader.visits else decimated(step_G[starts_V]))),
    )


def _by_text(tally: Tally, texts: list[str]) -> dict[str, int]:
    """A row for each text, where ids are of one visit each and texts tell prompts of a step apart; else nothing."""
    step_G, row_G, *_ = tally.groups()
    visits = np.unique(np.stack([step_G, row_G], axis=1), axis=0)
    distinct = {(step, texts[row]) for step, row in visits.tolist()}
    row_of: dict[str, int] = {}
    if len(visits) == len(texts) == len(distinct) and len(set(texts)) < len(texts):
        for text in texts:
            row_of.setdefault(text, len(row_of))
    return row_of


def _sums(values_G: Array, starts_V: IntArray) -> Array:
    """[V] sums over the groups of each visit."""
    return np.add.reduceat(values_G, starts_V) if len(starts_V) else values_G


def step_notes(step_V: IntArray) -> list[str]:
    """A note if steps are missing: the usual distance between two steps is taken for the interval of logging."""
    steps = np.unique(step_V)
    if len(steps) < 3:
        return []
    distances = np.diff(steps)
    usual = int(np.median(distances))
    missing = int((np.maximum(distances // usual, 1) - 1).sum())
    return [f"{missing:,} steps missing between step {steps[0]} and step {steps[-1]}"] if missing else []


def _doubts_of_rule(notes: list[str], reward_G: FloatArray) -> tuple[str, ...]:
    """What is said of rewards that are more than two, as loud as the verdict."""
    return tuple(notes) if len(np.unique(reward_G)) > 2 else ()


def decimated(step_V: IntArray) -> tuple[str, ...]:
    """A doubt where the log holds every second step, or fewer, at regular distances."""
    steps = np.unique(step_V)
    distances = np.diff(steps)
    if len(steps) < 3 or distances.min() < 2 or np.median(distances) != distances.min():
        return ()
    every = int(distances.min())
    shown = ", ".join(map(str, steps[:3].tolist()))
    return (
        f"only every {every}th step is in the log (steps {shown}, ...): prompts were visited about {every} times as "
        "often as it shows, and most of what is known of a prompt is not in the figures",
    )


TRL_COLUMNS = Columns(prompt="prompt", step="step", completion="completion")
TRL_OWN = ("rollouts_of_prompt", "answer", "ground_truth", "solution", "target")
"""Columns beside the rewards that may hold numbers."""


def _trl_columns(first: FirstRows) -> Columns:
    """Raises InvalidInputError if no reward is named and not exactly one column may be one."""
    used = first.columns.over(TRL_COLUMNS)
    known = {*used.named().values(), "advantage", *LENGTHS, *IDS, *TRL_OWN}
    empty = [name for name in _rewards(first.rows[0], known) if all(name in _rewards(r, known) for r in first.rows)]
    names = [name for name in empty if any(row.get(name) is not None for row in first.rows)]
    if used.reward is None and not names:
        by_name = found_reward(first.path, first.rows)
        names = empty if by_name is None else [by_name]
    if used.reward is None and len(names) != 1:
        raise InvalidInputError(
            f"{first.path}: which column is the reward?",
            got=", ".join(names) or "no column of numbers",
            allowed="one column; TRL does not log the weights of its reward functions",
            fix="name the one that says whether a rollout succeeded: --reward NAME",
        )
    return completed(used if used.reward is not None else replace(used, reward=names[0]), first.rows[0])


def _rewards(row: Row, known: set[str]) -> list[str]:
    """The columns that may be a reward: numbers, or nothing yet."""
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
    has_step = first.has(used.step) or step_of(first.path) is not None
    return has_step and first.has(used.prompt, used.reward, used.completion)


def _verl_columns(first: FirstRows) -> Columns:
    """``uid`` tells prompts of equal text apart, and ``acc`` says whether a rollout succeeded, where they are there."""
    used = first.columns.over(VERL_COLUMNS)
    if used.id is None and used.prompt == VERL_COLUMNS.prompt:
        used = replace(used, id=UID if all(prompt_id(row.get(UID)) is not None for row in first.rows) else None)
    if first.columns.reward is None and all(number(row.get("acc")) is not None for row in first.rows):
        used = replace(used, reward="acc")
    return completed(used, first.rows[0])


VERL = LogFormat(
    "input, output, score, step",
    recognises=_recognises_verl,
    columns=_verl_columns,
    read=read_rollouts,
)
NEMO_COLUMNS = Columns(prompt="prompt", reward="rewards", completion="completion")


def _split_content(row: Row) -> Row:
    """A row of NeMo-RL, whose ``content`` is the messages of prompt and completion."""
    content = row.get("content")
    if not isinstance(content, list) or len(content) < 2:
        return row
    prompt = content[0] if len(content) == 2 else content[:-1]
    return {**row, "prompt": prompt, "completion": content[-1]}


NEMO = LogFormat(
    "content (prompt and completion), rewards",
    recognises=lambda first: first.has("content", "rewards") and isinstance(first.rows[0]["content"], list),
    columns=lambda first: completed(first.columns.over(NEMO_COLUMNS), first.rows[0]),
    read=partial(read_rollouts, adapt=_split_content),
)
NAMED = LogFormat(
    "columns named with --prompt, --step, --reward",
    recognises=lambda first: first.all_named,
    columns=lambda first: completed(first.columns, first.rows[0]),
    read=read_rollouts,
)
