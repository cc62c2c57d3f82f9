"""Each prompt's own record: what its past outcomes say about it, whatever is believed about other prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from allotment.checks import check_setting
from allotment.prompts.table import PromptTable
from allotment.state import State, from_state
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
        self._table = PromptTable(4)

    def of(self, ids: tuple[PromptId, ...], step: int) -> Own:
        """The records of ``ids`` as seen at ``step``."""
        table_Q4 = self._table.gather(ids)
        return Own(table_Q4[:, VALUE] - table_Q4[:, LEVEL], table_Q4[:, PRECISION], step - table_Q4[:, STEP])

    def write(
        self, ids: tuple[PromptId, ...], value_B: FloatArray, precision_B: FloatArray, level: float, step: int
    ) -> None:
        """Replace the records of ``ids`` [B]."""
        same = np.ones(len(ids))
        self._table.set(ids, np.column_stack([value_B, precision_B, level * same, float(step) * same]))

    def state(self) -> State:
        """The entries ``ids`` and ``records`` of a state."""
        return self._table.state("records")

    @classmethod
    def from_state(cls, state: State, step: int) -> Records:
        """Inverse of :meth:`state` at ``step``. Raises :class:`StateError` where the entries do not fit together."""
        made = cls()
        made._table = PromptTable.from_state(state, "records", 4)
        precision_V, step_V = made._table.rows[:, PRECISION], made._table.rows[:, STEP]
        good = (precision_V > 0).all() and (step_V >= 0).all() and (step_V < max(step, 1)).all()
        from_state(lambda: check_setting("records", "records", bool(good), "positive precisions, visits in the past"))
        return made
