"""Prompt ids, plain ints and strings, numbered in the order in which they come; and numbers kept of each prompt."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import Any, Self

import numpy as np

from allotment.checks import shown
from allotment.errors import DuplicatePromptError, InvalidInputError, UnknownPromptError
from allotment.state import State, array_from_state, check_state, decode_json, encode_json, from_state
from allotment.types import FloatArray, IntArray, PromptId, PromptIds


def canonical_ids(ids: PromptIds, *, unique: bool = True) -> tuple[PromptId, ...]:
    """``ids`` as plain ints and strings.

    Raises:
        InvalidInputError: an id is neither an integer nor a string, or ``ids`` is no sequence of ids.
        DuplicatePromptError: an id stands twice and ``unique`` is set.
    """
    is_other = isinstance(ids, str | bytes | set | frozenset) or not isinstance(ids, Iterable)
    if is_other or getattr(ids, "ndim", 1) == 0:  # a lone id, or ids without an order
        raise InvalidInputError(
            "the prompt ids are not a sequence", got=shown(ids), allowed="a list or array of ids", fix="pass [id]"
        )
    each = ids.tolist() if isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iuU" else ids
    plain = tuple(each)
    if not {int, str}.issuperset(map(type, plain)):
        plain = tuple(map(_canonical_id, plain))
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
    if isinstance(prompt, int | np.integer) and not isinstance(prompt, bool | np.timedelta64):
        return int(prompt)
    raise InvalidInputError(
        "a prompt id has the wrong type",
        got=f"{shown(prompt)} of type {type(prompt).__name__}",
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
        """[Q] the numbers of registered ``ids``; UnknownPromptError where one was never registered."""
        try:
            return np.fromiter(map(self._rows.__getitem__, ids), np.int64)
        except KeyError as error:
            raise UnknownPromptError(
                "a prompt is not registered with this predictor",
                got=shown(error.args[0]),
                allowed=f"one of the {len(self)} registered ids",
                fix="call register(ids, embeddings) for new prompts before asking for them",
            ) from None

    def known_rows(self, ids: Iterable[PromptId]) -> IntArray:
        """[Q] the numbers of ``ids``, -1 for those never registered."""
        return np.fromiter(map(self._rows.get, ids, repeat(-1)), np.int64)

    def encoded(self) -> Any:
        """The ids as a byte array for a state file; :func:`index_from_state` is the inverse."""
        return encode_json(self.ids)


def index_from_state(state: State) -> PromptIndex:
    """The prompt index stored under ``ids``. Raises :class:`StateError` where that is not a list of distinct ids."""
    return from_state(lambda: PromptIndex(canonical_ids(decode_json(state["ids"]))))


def enlarged(array: FloatArray, rows: int, fill: float = 0.0) -> FloatArray:
    """``array`` with room for at least ``rows`` rows, new ones set to ``fill``.

    The room is doubled whenever it runs out, so that adding M rows one by one costs O(M).
    """
    if rows <= len(array):
        return array
    bigger = np.full((max(rows, 2 * len(array)), *array.shape[1:]), fill)
    bigger[: len(array)] = array
    return bigger


class PromptTable:
    """Numbers of M prompts, [M] or [M, K]; a prompt gets its row when something is first set for it."""

    KIND = "PromptRecord"

    def __init__(self, *columns: int) -> None:
        """An empty table: one number per prompt, or with ``columns`` = K a row of K numbers."""
        self.index = PromptIndex()
        self._room = np.empty((0, *columns))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def rows(self) -> FloatArray:
        """[M] or [M, K] the numbers of every prompt, in the order in which prompts came; a view."""
        return self._room[: len(self)]

    def gather(self, ids: Iterable[PromptId], missing: float = 0.0) -> FloatArray:
        """[Q] or [Q, K] the numbers of each prompt; ``missing`` for prompts without any."""
        rows_Q = self.index.known_rows(ids)
        known_Q = rows_Q >= 0
        values = np.full((len(rows_Q), *self._room.shape[1:]), missing)
        values[known_Q] = self._room[rows_Q[known_Q]]
        return values

    def set(self, ids: Iterable[PromptId], values: FloatArray) -> None:
        """Replace the numbers of these prompts; ``values`` [Q] or [Q, K]."""
        rows_Q = self.index.add(ids)
        self._room = enlarged(self._room, len(self))
        self._room[rows_Q] = values

    def state(self, name: str) -> State:
        """The entries ``ids`` and ``name`` of a state."""
        return {"ids": self.index.encoded(), name: self.rows.copy()}

    @classmethod
    def from_state(cls, state: State, name: str, *columns: int) -> Self:
        """Inverse of :meth:`state`. Raises :class:`StateError` where the entries do not fit together."""
        table = cls(*columns)
        table.index = index_from_state(state)
        table._room = array_from_state(state, name, (len(table), *columns))
        return table

    def state_dict(self) -> State:
        """Ids and numbers."""
        return {"kind": self.KIND, **self.state("values")}

    def load_state_dict(self, state: State) -> None:
        """See :class:`~allotment.state.Stateful`."""
        check_state(state, self.KIND, ("ids", "values"))
        loaded = self.from_state(state, "values", *self._room.shape[1:])
        self.index, self._room = loaded.index, loaded._room
