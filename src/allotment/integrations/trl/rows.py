"""The rows of TRL's data sets: numbered without a copy, told apart by what is stored."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset

from allotment.errors import InvalidInputError
from allotment.prompts.contents import content_hash
from allotment.types import PromptId

log = logging.getLogger("allotment")

ROW = "allotment_row"
"""Entry of a row with its place in a map-style data set; taken off before TRL sees the row."""
SHOWN = ("prompt", "image", "images")
"""The columns that a model is shown."""

Row = Mapping[str, Any]


class NumberedRows(torch.utils.data.Dataset[dict[str, Any]]):
    """The rows of a map-style data set, each with its place in :data:`ROW`; nothing is copied or written."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {**self._dataset[place], ROW: place}

    def __getitems__(self, places: list[int]) -> list[dict[str, Any]]:
        """Several at once, as torch's data loader asks for them, so that a transform runs once."""
        rows = self._dataset.__getitems__(places)
        return [{**row, ROW: place} for row, place in zip(rows, places, strict=True)]


def places_of(rows: Sequence[Row]) -> list[int] | None:
    """[N] the places of rows in a map-style data set; None for rows of a stream."""
    return [row[ROW] for row in rows] if rows and ROW in rows[0] else None


def stored_hashes(stored: Dataset, places: Sequence[int]) -> list[str]:
    """[N] the hash of all that each of these rows of arrow holds."""
    return [content_hash(row) for row in stored[list(places)].to_pylist()] if len(places) else []


def check_named(stored: Dataset, ids: list[PromptId], column: str) -> None:
    """Refuse an id that names two different prompts; warn where rows of one prompt differ in something else."""
    places_of: dict[PromptId, list[int]] = {}
    for place, prompt in enumerate(ids):
        places_of.setdefault(prompt, []).append(place)
    places = [place for same in places_of.values() if len(same) > 1 for place in same]
    first = {place: same[0] for same in places_of.values() for place in same}
    differ = []
    for name in stored.column_names if places else ():
        values = dict(zip(places, stored_hashes(stored.select_columns([name]), places), strict=True))
        other = next((place for place in places if values[place] != values[first[place]]), None)
        if other is not None and name in SHOWN:
            shown = stored.select_columns([name])[[first[other], other]].to_pylist()
            raise collision(column, ids[other], *(str(row[name]) for row in shown))
        differ += [] if other is None else [name]
    if differ:
        log.warning("rows with the same %s are one prompt, and some differ in %s", column, ", ".join(differ))


def collision(column: str, prompt: PromptId, *shown: str) -> InvalidInputError:
    """The error of an id that names two different prompts, with both."""
    return InvalidInputError(
        f"two different prompts have the same {column}",
        got=f"{prompt!r}: {shown[0][:200]!r} and {shown[1][:200]!r}",
        allowed="an id of its own for each prompt",
        fix="number the prompts of all data sets together, or leave prompt_id_column out",
    )
