"""What is kept of each prompt: a few numbers, one row per prompt, in a table that grows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import numpy as np

from allotment.prompts.ids import PromptIndex, index_from_state
from allotment.state import State, array_from_state, check_state
from allotment.types import FloatArray, PromptId


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
        """Take over what :meth:`state_dict` gave, all or nothing.

        Raises:
            StateError: keys are missing, or values do not fit.
        """
        check_state(state, self.KIND, ("ids", "values"))
        loaded = self.from_state(state, "values", *self._room.shape[1:])
        self.index, self._room = loaded.index, loaded._room
