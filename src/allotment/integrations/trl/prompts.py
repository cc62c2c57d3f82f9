"""Which prompt a row of the data set is: the identity under which a planner remembers it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from datasets import Dataset, IterableDataset

from allotment.errors import ConfigError, InvalidInputError
from allotment.integrations.trl.rows import SHOWN, Row, check_named, collision, places_of, stored_hashes
from allotment.prompts.contents import content_hash
from allotment.types import PromptId


class PromptIdentity:
    """Prompt ids of rows: the named column, else a hash of everything the row holds, as it is stored.

    So rows are one prompt only if no column tells them apart, whatever a transform hides, and a prompt keeps its id in
    another order or selection of the rows. Nothing is read before it is asked for, but for a named column.

    Args:
        dataset: what TRL trains on.
        column: the named column.
        makes_prompts: whether environments make the prompts, so that equal rows may be different tasks: a row's place
            is then a part of its id.

    Raises:
        ConfigError: the data set has no such column, or a stream's rows cannot be told apart.
        InvalidInputError: an id is neither int nor str, or stands for two different prompts.
    """

    def __init__(self, dataset: Dataset | IterableDataset, column: str | None, *, makes_prompts: bool = False) -> None:
        self.column, self._makes_prompts = column, makes_prompts
        if column is not None and dataset.column_names is not None and column not in dataset.column_names:
            raise ConfigError(
                "the data set has no such column for prompt ids",
                got=f"prompt_id_column={column!r}",
                allowed=", ".join(dataset.column_names),
                fix="name a column, or leave prompt_id_column out",
            )
        self.stored: Dataset | None = None
        """A map-style data set without its transform and without decoding, by rows of arrow; None of a stream."""
        self._named: list[PromptId] | None = None
        self._hashes: dict[int, str] = {}
        self._shown: dict[PromptId, tuple[str, str]] = {}
        if isinstance(dataset, Dataset):
            self.stored = dataset.with_format("arrow")
            if column is not None:
                values = self.stored.select_columns([column])[:].column(0).to_pylist()
                self._named = [_checked(value, column) for value in values]
                check_named(self.stored, self._named, column)
        elif makes_prompts and column is None:
            raise ConfigError(
                "the prompts that environments make cannot be told apart in a stream",
                got="an iterable data set without prompt_id_column",
                allowed="a map-style data set, or a column that names the task",
                fix="set prompt_id_column, or load the data set without streaming",
            )

    def of(self, rows: Sequence[Row]) -> list[PromptId]:
        """[N] the ids of rows as the data loader gives them, with their place where the data set is map-style.

        Raises:
            InvalidInputError: the named column of a stream holds something else than an int or a string, is missing, or
                stands for two different prompts.
            ConfigError: rows of a map-style data set have lost their place.
        """
        if (places := places_of(rows)) is not None:
            return self.at(places)
        if self.stored is not None:
            raise ConfigError(
                "rows of a map-style data set come without their place",
                got=f"columns {', '.join(map(str, rows[0]))}",
                allowed="rows as the adapter's data loader gives them",
                fix="leave get_train_dataloader and the data collator as TRL has them",
            )
        if self.column is None:
            return [content_hash(dict(row)) for row in rows]
        ids = [_checked(row.get(self.column), self.column) for row in rows]
        images: dict[PromptId, str] = {}
        for prompt, row in zip(ids, rows, strict=True):
            prompt_of, text = content_hash(row.get("prompt")), str(row.get("prompt"))
            known = self._shown.setdefault(prompt, (prompt_of, text[:200]))
            own = content_hash([row.get(name) for name in SHOWN[1:]])  # may be augmented at each visit
            if known[0] != prompt_of or images.setdefault(prompt, own) != own:
                raise collision(self.column, prompt, known[1], text)
        return ids

    def at(self, places: Sequence[int]) -> list[PromptId]:
        """[N] the ids of rows of a map-style data set."""
        assert self.stored is not None
        if self._named is not None:
            return [self._named[place] for place in places]
        hashes = self._hashes
        new = [place for place in dict.fromkeys(places) if place not in hashes]
        hashes.update(zip(new, stored_hashes(self.stored, new), strict=True))
        return [f"{hashes[place]}/{place}" if self._makes_prompts else hashes[place] for place in places]

    def all(self) -> list[PromptId]:
        """[M] the ids of a map-style data set, in its order; reads all of it."""
        assert self.stored is not None
        return self.at(range(len(self.stored)))

    def has(self, prompts: int) -> bool:
        """Whether a map-style data set has so many different prompts; reads no more of it than it takes to say so."""
        assert self.stored is not None
        seen: set[PromptId] = set()
        for start in range(0, len(self.stored), max(prompts, 1)):
            seen.update(self.at(range(start, min(start + max(prompts, 1), len(self.stored)))))
            if len(seen) >= prompts:
                return True
        return len(seen) >= prompts


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
