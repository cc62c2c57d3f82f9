"""Which prompt a row of the data set is: the identity under which a planner remembers it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from allotment.errors import ConfigError, InvalidInputError
from allotment.prompts.ids import prompt_hash
from allotment.types import PromptId

ROW = "allotment_row"
"""Column with the place of a row in a map-style data set; taken off before TRL sees the row."""

Row = Mapping[str, Any]


class PromptIdentity:
    """Prompt ids of rows.

    A named column, else the place of the first row with the same prompt, else a hash of the prompt. Rows with images
    or without a prompt of their own (environments make it) are prompts of their own.

    Args:
        dataset: what TRL trains on; :attr:`dataset` is the same with the column :data:`ROW`, where it is map-style.
        column: the named column.
        distinct_rows: whether equal prompts may be different tasks (environments).

    Raises:
        ConfigError: the data set has no such column.
    """

    def __init__(self, dataset: Dataset | IterableDataset, column: str | None, *, distinct_rows: bool = False) -> None:
        self.column = column
        self.dataset = dataset
        self.ids: list[PromptId] | None = None
        """[M] by row of a map-style data set, else None."""
        if column is not None and dataset.column_names is not None and column not in dataset.column_names:
            raise ConfigError(
                "the data set has no such column for prompt ids",
                got=f"prompt_id_column={column!r}",
                allowed=", ".join(dataset.column_names),
                fix="name a column, or leave prompt_id_column out",
            )
        if isinstance(dataset, Dataset):
            dataset = dataset.remove_columns([ROW] if ROW in dataset.column_names else [])  # of an earlier trainer
            distinct_rows = distinct_rows or not {"image", "images"}.isdisjoint(dataset.column_names)
            self.ids = _ids(dataset.with_format(None), column, distinct_rows)
            self.dataset = dataset.add_column(ROW, np.arange(len(dataset)))

    def of(self, row: Row) -> PromptId:
        """The id of a row as the data loader gives it.

        Raises:
            InvalidInputError: the named column holds something else than an int or a string, or is missing.
        """
        if self.ids is not None and ROW in row:
            return self.ids[row[ROW]]
        if self.column is not None:
            return _checked(row.get(self.column), self.column)
        return prompt_hash(row.get("prompt"))


def _ids(dataset: Dataset, column: str | None, distinct_rows: bool) -> list[PromptId]:
    if column is not None:
        return [_checked(value, column) for value in dataset[column]]
    if distinct_rows or "prompt" not in dataset.column_names:
        return list(range(len(dataset)))
    first: dict[str, int] = {}
    return [first.setdefault(prompt_hash(prompt), row) for row, prompt in enumerate(dataset["prompt"])]


def _checked(value: object, column: str) -> PromptId:
    if isinstance(value, int | str) and not isinstance(value, bool):
        return value
    raise InvalidInputError(
        f"{column!r} is not a prompt id", got=repr(value), allowed="an int or a string", fix="mend the column"
    )


def prompt_texts(prompts: Iterable[object]) -> list[str]:
    """The text of each prompt; of a list of messages, the contents of all, one after another."""
    return [prompt if isinstance(prompt, str) else "\n".join(_contents(prompt)) for prompt in prompts]


def _contents(messages: Any) -> list[str]:
    contents = [entry.get("content") for entry in messages]
    parts = [[c] if isinstance(c, str) else [p.get("text") or "" for p in c or []] for c in contents]
    return [text for part in parts for text in part]
