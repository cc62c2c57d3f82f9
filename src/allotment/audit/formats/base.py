"""What a log format is: how its files are recognised and how they become a log. Each format's own file declares one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import Any

from allotment.audit.log import Log
from allotment.errors import InvalidInputError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a log with a row a rollout; None where there is no such column, or it is not named."""

    id: str | None = None
    """Column with the prompt's id; without one a prompt is known by its text."""
    prompt: str | None = None
    """Column with the prompt's text, or its messages."""
    step: str | None = None
    """Column with the training step."""
    reward: str | None = None
    """Column with the reward."""
    completion: str | None = None
    """Column with the completion; its characters are counted where there is no column with tokens."""
    tokens: str | None = None
    """Column with the completion's number of tokens."""
    nested: str | None = None
    """Column with a list of a prompt's rollouts, each a table that has the other columns."""
    trials: str | None = None
    """Column with the number of rollouts, where the reward is how many succeeded, or which share."""
    group: str | None = None
    """Column that is new at every visit of a prompt, where there is one: it tells prompts of one text apart."""
    rollout: str | None = None
    """Column that names the rollout, where one has several rows that follow each other: the last of them counts."""

    def named(self) -> dict[str, str]:
        """What is named: role to column."""
        return {field.name: name for field in fields(self) if (name := getattr(self, field.name)) is not None}

    def over(self, preset: Columns) -> Columns:
        """``preset``, with what is named here in its place."""
        return replace(preset, **self.named())

    def complete(self) -> bool:
        """Whether a log can be read by these: a prompt, id or group, and a reward."""
        return self.reward is not None and (self.prompt or self.id or self.group) is not None


LENGTHS = ("completion_tokens", "response_length", "completion_length", "num_tokens", "tokens")
"""Columns that are taken for a completion's tokens where none is named."""
IDS = ("prompt_id", "problem_id", "question_id", "task_id", "example_id", "doc_id", "uid", "id", "index", "idx")
"""Columns that are taken for the prompt's id."""
STEPS = (
    "step",
    "global_step",
    "train_step",
    "training_step",
    "trainer_step",
    "iteration",
    "rollout_id",
    "tail_version",
    "epoch",
)
"""Columns that are taken for the step where none is named."""


def completed(named: Columns, first: Row) -> Columns:
    """``named``, with the column of ``first`` that counts tokens where none is named. Raises InvalidInputError: a
    column is not named without which a log cannot be read.
    """
    used = named
    if used.tokens is None:
        used = replace(used, tokens=next((name for name in LENGTHS if name in first), None))
    if used.step is None:
        used = replace(used, step=next((name for name in STEPS if name in first and _is_step(first[name])), None))
    if not used.complete():
        raise InvalidInputError(
            "not all columns are named",
            got=", ".join(f"--{role} {name}" for role, name in used.named().items()) or "none",
            allowed="--prompt or --id, and --reward; --step where there is one",
            fix="name the missing ones",
        )
    return used


def _is_step(value: Any) -> bool:
    """Whether a column that begins so may hold steps: with nothing, or a whole number."""
    return value is None or whole(value) is not None


def number(value: Any) -> float | None:
    """``value`` as a finite number; None where it is none. Text is read as JSON numbers and booleans are."""
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower(), value)
    try:
        found = float(value) if isinstance(value, bool | int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


RIGHT = {"correct", "right", "pass", "passed", "yes", "success", "successful", "solved", "c", "accepted", "ok"}
WRONG = {"incorrect", "wrong", "fail", "failed", "no", "failure", "unsolved", "i", "rejected", "error", "not ok"}
INSIDE = ("acc", "accuracy", "correct", "score", "reward", "value", "total")
"""Where a reward stands in a table, the first that is there."""


def reward(value: Any) -> float | None:
    """``value`` as a reward: a number, a decimal, a word for right or wrong, or a table with one; None where it is
    none.
    """
    if type(value) is float or type(value) is int or type(value) is bool:
        return number(value)
    if isinstance(value, str):
        word = value.strip().lower()
        return 1.0 if word in RIGHT else 0.0 if word in WRONG else number(value)
    if isinstance(value, Decimal):
        return number(float(value))
    if isinstance(value, Mapping):
        if len(value) == 1:
            return reward(next(iter(value.values())))
        return next((found for name in INSIDE if (found := reward(value.get(name))) is not None), None)
    return None


def whole(value: Any) -> int | None:
    """``value`` as a whole number below 2^53 in size; None where it is none."""
    found = number(value)
    return int(found) if found is not None and found.is_integer() and abs(found) < 2**53 else None


def prompt_id(value: Any) -> int | str | None:
    """``value`` as an id: a text, or a whole number; None where it is none."""
    if isinstance(value, str):
        return value or None
    return None if isinstance(value, bool) else whole(value)


def prompt_text(value: Any) -> str | None:
    """The text of a prompt: as it is, or its messages as JSON without an answer at the end; None where it is none."""
    if isinstance(value, str):
        if not value:
            return None
        return value if value.isascii() else value.encode("utf-8", "replace").decode()  # a lone surrogate is no text
    if not isinstance(value, list) or not value:
        return None
    last = value[-1]
    if len(value) > 1 and isinstance(last, Mapping) and last.get("role") == "assistant":
        value = value[:-1]
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return None


def text_key(text: str) -> str:
    """Sixteen hexadecimal digits that stand for a prompt without an id."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def completion_length(value: Any) -> float:
    """Characters of a completion, a text or messages; NaN where it is neither."""
    if isinstance(value, str):
        return float(len(value))
    if isinstance(value, list):
        contents = [message.get("content") for message in value if isinstance(message, dict)]
        return float(sum(len(content) for content in contents if isinstance(content, str)))
    return math.nan


def inside(row: Any, name: str) -> Any:
    """What stands at a path such as ``metrics.acc`` in nested tables and lists; None where there is nothing."""
    for part in name.split("."):
        if isinstance(row, Mapping):
            row = row.get(part)
        elif isinstance(row, list) and part.lstrip("-").isdecimal() and -len(row) <= int(part) < len(row):
            row = row[int(part)]
        else:
            return None
    return row


def with_paths(row: Row, names: Iterable[str]) -> Row:
    """The row with a column more for each of these names that is a path in it."""
    found = {name: inside(row, name) for name in names if "." in name and name not in row}
    return {**row, **found} if found else row


Adapter = Callable[[Path], Callable[[Row], Row | str]]
"""For a file, what makes of a row the one that the columns are of, or says in a few words why it does not count."""


@dataclass(frozen=True)
class FirstRows:
    """What a format is recognised by."""

    path: Path
    rows: Sequence[Row]
    """At least one."""
    columns: Columns
    """Those that the user named."""

    @property
    def all_named(self) -> bool:
        """Whether the user named every column that a log needs, and the file has them."""
        return self.columns.complete() and set(self.columns.named().values()) <= set(self.rows[0])

    def has(self, *names: str | None) -> bool:
        """Whether the first row has these columns, and the user named not all columns."""
        return not self.all_named and set(names) <= set(self.rows[0])


@dataclass(frozen=True)
class Source:
    """The files of one run, all of one format."""

    path: Path
    """What a person calls it: the file, or the folder with the files."""
    format: str
    """Name of the format of every file."""
    files: tuple[Path, ...]
    """The files, those of a folder by the numbers in their names."""
    columns: Columns = field(default_factory=Columns)
    """Which column holds what, for the formats with a row a rollout."""
    notes: tuple[str, ...] = ()
    """What a reader should know about the folder."""


@dataclass(frozen=True)
class LogFormat:
    """A format of logs, known by its name in :data:`~allotment.registry.LOG_FORMATS`."""

    summary: str
    """What its rows hold, in a few words."""
    recognises: Callable[[FirstRows], bool]
    """Whether a file that begins so has this format; formats are asked in the order of the table."""
    read: Callable[[Source, float | None], Log]
    """The log of one run, which may hold no visit. The number is the reward above which a rollout succeeded; None to
    find it out."""
    columns: Callable[[FirstRows], Columns] = lambda first: first.columns
    """Which column holds what; raises :class:`~allotment.errors.InvalidInputError` where the user must say more."""
    file_is_run: bool = False
    """Whether each file is a run of its own; else the files that lie directly in one folder are one run."""
    part: Callable[[Path], str] = lambda path: ""
    """Files of one folder for which this differs are of different runs."""
    again: Callable[[Path], str | None] = lambda path: None
    """The format of other files that hold a file's rollouts too: it is passed over where one of those is found."""
