"""Each prompt's own record: what its past outcomes say about it, whatever is believed about other prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from allotment.checks import check_setting
from allotment.prompts.ids import PromptIndex, index_from_state
from allotment.prompts.table import grown
from allotment.state import State, array_from_state, from_state
from allotment.types import FloatArray, PromptId

VALUE, PRECISION, LEVEL, STEP = range(4)


@dataclass(frozen=True, eq=False)
class Own:
    """The records of Q prompts: Gaussian likelihoods of their latent values. Precision 0 where nothing is recorded."""

    value: FloatArray
    """[Q] likelihood's mean, relative to the level at the time of the last visit."""
    precision: FloatArray
    """[Q] likelihood's precision right after the last visit."""
    age: FloatArray
    """[Q] steps since the last visit."""

    def now(self, drift: float) -> FloatArray:
        """[Q] precision today, if a prompt's own effect is a random walk of variance ``drift`` per step."""
        return self.precision / (1 + self.precision * drift * self.age)


class Records:
    """Four numbers for each visited prompt: value, precision, level and step at the last visit."""

    def __init__(self) -> None:
        self.index = PromptIndex()
        self._room = np.empty((0, 4))

    def of(self, ids: tuple[PromptId, ...], step: int) -> Own:
        """The records of ``ids`` as seen at ``step``."""
        rows_Q = self.index.known_rows(ids)
        known_Q = rows_Q >= 0
        table_Q4 = np.zeros((len(ids), 4))
        table_Q4[known_Q] = self._room[rows_Q[known_Q]]
        return Own(
            table_Q4[:, VALUE] - table_Q4[:, LEVEL],
            table_Q4[:, PRECISION],
            np.where(known_Q, step - table_Q4[:, STEP], 0.0),
        )

    def write(
        self, ids: tuple[PromptId, ...], value_B: FloatArray, precision_B: FloatArray, level: float, step: int
    ) -> None:
        """Replace the records of ``ids`` [B]."""
        rows_B = self.index.add(ids)
        self._room = grown(self._room, len(self.index))
        self._room[rows_B] = np.column_stack(
            [value_B, precision_B, np.full(len(ids), level), np.full(len(ids), float(step))]
        )

    def state(self) -> State:
        """The entries ``ids`` and ``records`` of a state."""
        return {"ids": self.index.encoded(), "records": self._room[: len(self.index)].copy()}

    @classmethod
    def from_state(cls, state: State, step: int) -> Records:
        """Inverse of :meth:`state` at ``step``. Raises :class:`StateError` where the entries do not fit together."""
        made = cls()
        made.index = index_from_state(state)
        made._room = array_from_state(state, "records", (len(made.index), 4))
        precision_V, step_V = made._room[:, PRECISION], made._room[:, STEP]
        good = (precision_V > 0).all() and (step_V >= 0).all() and (step_V < max(step, 1)).all()
        from_state(lambda: check_setting("records", "records", bool(good), "positive precisions, visits in the past"))
        return made
