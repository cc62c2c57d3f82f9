"""One number for each prompt, as a planner last saw it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from allotment.prompts.ids import PromptIndex, index_from_state
from allotment.prompts.table import grown
from allotment.state import State, array_from_state, check_state
from allotment.types import FloatArray, PromptId


class PromptRecord:
    """The last number told of each prompt; prompts appear when they are first told of."""

    KIND = "PromptRecord"

    def __init__(self) -> None:
        self._index = PromptIndex()
        self._values = np.empty(0)

    def of(self, ids: Iterable[PromptId]) -> FloatArray:
        """[Q] the number of each prompt, NaN for those never told of."""
        rows_Q = self._index.known_rows(ids)
        values_Q = np.full(len(rows_Q), np.nan)
        values_Q[rows_Q >= 0] = self._values[rows_Q[rows_Q >= 0]]
        return values_Q

    def update(self, ids: Iterable[PromptId], values_Q: FloatArray) -> None:
        """Remember these numbers, finite, instead of the earlier ones; both [Q]."""
        rows_Q = self._index.add(ids)
        self._values = grown(self._values, len(self._index))
        self._values[rows_Q] = values_Q

    def state_dict(self) -> State:
        """Ids and numbers."""
        return {"kind": self.KIND, "ids": self._index.encoded(), "values": self._values[: len(self._index)].copy()}

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave, all or nothing.

        Raises:
            StateError: keys are missing, or values do not fit.
        """
        check_state(state, self.KIND, ("ids", "values"))
        index = index_from_state(state)
        self._values = array_from_state(state, "values", (len(index),))
        self._index = index
