"""Prompt ids: plain ints and strings, numbered in the order in which they come."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from allotment.errors import DuplicatePromptError, InvalidInputError, UnknownPromptError
from allotment.state import State, decode_json, encode_json, from_state
from allotment.types import IntArray, PromptId, PromptIds


def canonical_ids(ids: PromptIds, *, unique: bool = True) -> tuple[PromptId, ...]:
    """``ids`` as plain ints and strings.

    Raises:
        InvalidInputError: an id is neither an integer nor a string, or ``ids`` is no sequence of ids.
        DuplicatePromptError: an id stands twice and ``unique`` is set.
    """
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable) or getattr(ids, "ndim", 1) == 0:  # a lone id
        raise InvalidInputError(
            "the prompt ids are not a sequence", got=repr(ids), allowed="a list or array of ids", fix="pass [id]"
        )
    plain = tuple(_canonical_id(prompt) for prompt in ids)
    if unique and len(set(plain)) != len(plain):
        seen: set[PromptId] = set()
        twice = next(prompt for prompt in plain if prompt in seen or seen.add(prompt))  # type: ignore[func-returns-value]
        raise DuplicatePromptError(
            "a prompt id stands twice in the batch",
            got=f"{twice!r} at least twice among {len(plain)} ids",
            allowed="each prompt once in a batch",
            fix="merge the duplicates, or give copies ids of their own",
        )
    return plain


def _canonical_id(prompt: object) -> PromptId:
    if isinstance(prompt, str):
        return str(prompt)
    if isinstance(prompt, int | np.integer) and not isinstance(prompt, bool | np.bool_):
        return int(prompt)
    raise InvalidInputError(
        "a prompt id has the wrong type",
        got=f"{prompt!r} of type {type(prompt).__name__}",
        allowed="int or str",
        fix="use the data set's row index or a stable string key",
    )


class PromptIndex:
    """Numbers prompts 0, 1, 2, ... in the order in which they are first registered."""

    def __init__(self, ids: Iterable[PromptId] = ()) -> None:
        self._rows: dict[PromptId, int] = {}
        self.add(ids)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, prompt: object) -> bool:
        return prompt in self._rows

    @property
    def ids(self) -> list[PromptId]:
        """[M] every registered id, in order of its number."""
        return list(self._rows)

    def add(self, ids: Iterable[PromptId]) -> IntArray:
        """[Q] the numbers of ``ids``, new ids registered on the way."""
        rows = self._rows
        return np.array([rows.setdefault(prompt, len(rows)) for prompt in ids], dtype=np.int64)

    def rows(self, ids: Iterable[PromptId]) -> IntArray:
        """[Q] the numbers of registered ``ids``.

        Raises:
            UnknownPromptError: an id was never registered.
        """
        try:
            return np.array([self._rows[prompt] for prompt in ids], dtype=np.int64)
        except KeyError as error:
            raise UnknownPromptError(
                "a prompt is not registered with this predictor",
                got=repr(error.args[0]),
                allowed=f"one of the {len(self)} registered ids",
                fix="call register(ids, embeddings) for new prompts before asking for them",
            ) from None

    def known_rows(self, ids: Iterable[PromptId]) -> IntArray:
        """[Q] the numbers of ``ids``, -1 for those never registered."""
        return np.array([self._rows.get(prompt, -1) for prompt in ids], dtype=np.int64)

    def encoded(self) -> Any:
        """The ids as a byte array for a state file."""
        return encode_json(self.ids)

    @classmethod
    def decoded(cls, data: Any) -> PromptIndex:
        """Inverse of :meth:`encoded`."""
        return cls(decode_json(data))


def index_from_state(state: State) -> PromptIndex:
    """The prompt index stored under ``ids``. Raises :class:`StateError` where that is not a list of distinct ids."""
    return from_state(lambda: PromptIndex(canonical_ids(decode_json(state["ids"]))))


def prompt_hash(prompt: object, *, strict: bool = False) -> str:
    """32 hexadecimal digits that name a prompt by its content, a text or a list of messages.

    Raises:
        TypeError: ``strict``, and it holds what JSON cannot say, such as an image.
    """
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=None if strict else str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
