"""From files with a row a rollout to a :class:`~allotment.audit.log.Log`: groups by id or text, never by stride."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from allotment.audit.formats.base import (
    Adapter,
    Columns,
    Row,
    Source,
    prompt_id,
    prompt_text,
    text_key,
    whole,
    with_paths,
)
from allotment.audit.formats.left_out import LeftOut
from allotment.audit.formats.rewards import threshold
from allotment.audit.formats.steps import Visits, step_of
from allotment.audit.formats.tables import rows
from allotment.audit.formats.tally import Groups, Known, Prompts, Tally, known, known_by_groups
from allotment.audit.formats.unfolding import rollouts
from allotment.audit.log import Log, visit_numbers
from allotment.types import FloatArray, IntArray

LARGEST = 2**53
"""Steps are smaller."""
UID = "uid"
"""Column of verl that names a prompt in its step; in some runs anew at every visit, so that texts must tell."""
Array = TypeVar("Array", IntArray, FloatArray)
Rollout = tuple[int, int, int | str, float, float, str | None]
"""Step, row of the group or prompt, its key, reward, length and, where it has one, the name of a rollout."""


def read_rollouts(
    source: Source,
    success_above: float | None,
    *,
    drop_repeats: bool = False,
    adapter: Adapter | None = None,
    one_visit: bool = False,
) -> Log:
    """The log of one run; it may hold no visit.

    Args:
        source: the run; its columns are complete, see :meth:`Columns.complete`.
        success_above: a rollout whose reward is larger succeeded; None for the middle between the two most common
            rewards of the log, or between 0 and 1 where all are equal.
        drop_repeats: leave out of a file the rollouts of the one before it, with which it begins: TRL writes them anew
            when it takes several steps with what it generated once, wandb when a table grows.
        adapter: makes the rows that the columns are of.
        one_visit: whether rollouts without a step are of one visit of their prompt, as in an evaluation.

    Raises:
        MissingExtraError: a parquet file, and pyarrow is not installed.
        OSError: a file cannot be read.
    """
    reader = Reader(source.columns, adapter, is_alone=len(source.files) == 1, one_visit=one_visit)
    add = reader.tally.add
    before: list[tuple[int | str, float, str]] = []
    for path in source.files:
        found = reader.rollouts(path)
        if drop_repeats and len(source.files) > 1:
            kept = list(found)  # a file of a step: as many rollouts as were generated at once
            marks = [(key, reward, repr(length)) for _, _, key, reward, length, _ in kept]
            again = len(before) if before and marks[: len(before)] == before else 0
            if again and again == len(kept):
                reader.left_out.add("file with the rollouts of the one before it", path)
                continue
            before, found = marks, islice(kept, again, None)
        for step, row, _, reward, length, _ in found:
            add(step, row, reward, length)
    return _log(reader, success_above)


class Reader:
    """Rollouts of the files of a run, and what is noted on the way."""

    def __init__(
        self, columns: Columns, adapter: Adapter | None = None, *, is_alone: bool = False, one_visit: bool = False
    ) -> None:
        self.columns, self._adapter = columns, adapter
        self._is_alone = is_alone  # whether there is one file: its name may say when it was written, not a row's step
        self._one_visit = one_visit
        self.left_out, self.tally, self.visits = LeftOut(), Tally(), Visits()
        self.prompts, self.groups = Prompts(), Groups()
        self._names = tuple(columns.named().values())
        self._paths = tuple(name for name in self._names if "." in name)
        self._folds = columns.nested is not None or columns.trials is not None
        uid = columns.id if columns.id == UID and columns.prompt else None
        self.group = columns.group or uid
        self._id = None if uid else columns.id
        self.by_text = self._id is None

    def rollouts(self, path: Path) -> Iterator[Rollout]:
        """The rollouts of a file that count."""
        found = self._rollouts(path)
        return _joined(found) if self.columns.rollout else found

    def _rollouts(self, path: Path) -> Iterator[Rollout]:
        columns, left_out, named_step, row_of = self.columns, self.left_out, step_of(path), self.prompts.row
        named_id, named_group = self._id, self.group
        key: int | str | None = None
        last_text: str | None = None
        for place, row in self._rows(path):
            text = prompt_text(row.get(columns.prompt)) if columns.prompt else None
            if named_id:
                key = prompt_id(row.get(named_id))
            elif text != last_text or key is None:  # else the row before had the same prompt
                last_text, key = text, text and text_key(text)
            step = row.get(columns.step) if columns.step else None
            step = step if type(step) is int and abs(step) < LARGEST else whole(step)
            group = prompt_id(row.get(named_group)) if named_group else None
            if key is None and group is None:
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
            own = f"group {group}" if key is None else key
            if step is None:
                step = 1 if self._one_visit else self.visits.number(own, is_whole=is_whole)
            prompt = row_of(own, text)
            if named_group:
                prompt, step = self._group_row(own, prompt, group, step)
            name = row.get(columns.rollout) if columns.rollout else None
            for reward, length in found:
                if reward is None:
                    left_out.add("rollout without a reward", path, place)
                else:
                    yield step, prompt, own, reward, length, None if name is None else str(name)

    def _rows(self, path: Path) -> Iterable[tuple[int, Row]]:
        """The rows that the columns are of."""
        wanted = self._names if self._adapter is None else None
        found = rows(path, self.left_out, wanted and {part for n in wanted for part in (n, n.partition(".")[0])})
        if self._adapter is None:
            return found if not self._paths else ((place, with_paths(row, self._paths)) for place, row in found)
        return self._adapted(found, path, self._adapter(path))

    def _adapted(
        self, found: Iterable[tuple[int, Row]], path: Path, adapt: Callable[[Row], Row | str]
    ) -> Iterator[tuple[int, Row]]:
        for place, row in found:
            try:
                made = adapt(row)
            except RecursionError:
                made = "row that is nested too deeply"
            if isinstance(made, str):
                self.left_out.add(made, path, place)
            else:
                yield place, with_paths(made, self._paths) if self._paths else made

    def _group_row(self, key: int | str, prompt: int, group: int | str | None, step: int) -> tuple[int, int]:
        """The row of a rollout's group, and its step: that in which the group was first met, if it is of one visit."""
        row = self.groups.row(f"{step} {key}" if group is None else group, prompt, step)
        return row, self.groups.first_step[row] if self.columns.group else step

    def known(self) -> Known:
        """The prompts; their rows are final from here on."""
        if self.group is None:
            return known(self.prompts)
        return known_by_groups(self.tally, self.groups, self.prompts, by_text=self.by_text)


def _joined(found: Iterable[Rollout]) -> Iterator[Rollout]:
    """The same with the rows of one rollout, which follow each other, as one: the last reward, the whole length."""
    last: Rollout | None = None
    for step, row, key, reward, length, name in found:
        if last is not None and name is not None and last[5] == name and last[1] == row:
            last = (step, row, key, reward, last[4] + length, name)
            continue
        if last is not None:
            yield last
        last = (step, row, key, reward, length, name)
    if last is not None:
        yield last


def _log(reader: Reader, success_above: float | None) -> Log:
    tally, left_out, columns = reader.tally, reader.left_out, reader.columns
    if reader.visits.are_mixed:
        tally.as_one_step()
    prompts = reader.known()
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
    if prompts.apart:
        notes.append(
            f"{prompts.apart:,} groups have a text that another group of their step has too: each counts as a prompt "
            "of its own"
        )
    trials_V = _sums(counts_G, starts_V)
    if len(starts_V) and trials_V.min() < trials_V.max():
        notes.append(f"groups are of {trials_V.min()} to {trials_V.max()} rollouts, median {np.median(trials_V):g}")
    if unknown := int(np.isnan(lengths_V).sum()):
        notes.append(f"{unknown:,} of {len(starts_V):,} groups have no lengths: nothing is said of tokens")
    prompt_V = row_G[starts_V]
    doubts = [*_doubts_of_rule(threshold_notes, reward_G), *(() if reader.visits else decimated(step_G[starts_V]))]
    if others := reader.prompts.others:
        doubts.append(
            f"{others:,} rows have an id under which another prompt stood before: prompts are merged; to know them by "
            "their texts, name the columns: --format columns --prompt NAME --reward NAME"
        )
    if reader.group and columns.prompt is None and columns.id is None:
        doubts.append("the log does not say which prompt a group is of: each group counts as a prompt met once")
    return Log(
        prompts.ids,
        prompt_V,
        visit_numbers(prompt_V),
        _sums(counts_G * (reward_G > above), starts_V),
        trials_V,
        None if reader.visits else step_G[starts_V],
        prompts.texts or None,
        tuple(notes),
        lengths_V if (columns.tokens or columns.completion) and not unknown else None,
        "tokens" if columns.tokens else "characters",
        read_as=f"{read_as}, {len(prompts.ids):,} prompts",
        doubts=tuple(doubts),
    )


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
