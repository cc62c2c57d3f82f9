"""The rollouts of the last steps that a selector may train on again, and how often it has."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from allotment.errors import StateError
from allotment.methods.selectors.subsets import BoolArray
from allotment.selection.base import Scored
from allotment.state import State, array_from_state, check_state, rows_from_state
from allotment.types import IntArray

LARGEST = int(np.iinfo(np.int64).max)


class Entry(NamedTuple):
    """One rollout."""

    step: int
    """Of its generation."""
    reward: float
    uses: int
    """How often it was trained on."""


class RolloutBuffer:
    """First in, first out, ``window`` steps: rollouts by number. The completions are the trainer's to keep."""

    KIND = "RolloutBuffer"

    def __init__(self, window: int) -> None:
        self.window = window
        self._entries: dict[int, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def uses(self, scored: Scored) -> IntArray:
        """[N] how often each rollout was trained on; 0 for those of this step.

        Raises:
            StateError: a rollout of this step is in the buffer, or one of an earlier step is not in it as it was shown
                then: buffer and rollouts are of different runs.
        """
        entries = [self._entries.get(number) for number in scored.numbers_N.tolist()]
        for entry, number, step, reward in zip(entries, *_columns(scored), strict=True):
            if entry is not None if step == scored.step else entry is None or entry[:2] != (step, reward):
                raise StateError(
                    "the rollouts do not belong to the run of this buffer",
                    got=f"number {number}, generated at step {step}, at step {scored.step}; in the buffer: {entry}",
                    allowed="new numbers for new rollouts, and older rollouts as they were shown at their own step",
                    fix="restore selector and rollouts from one and the same checkpoint, or start both anew",
                )
        return np.array([0 if entry is None else entry.uses for entry in entries], dtype=np.int64)

    def record(self, scored: Scored, kept_N: BoolArray) -> None:
        """Take in the rollouts of this step, count the uses of all that are kept, and forget what leaves the window."""
        first = scored.step - self.window + 1
        self._entries = {number: entry for number, entry in self._entries.items() if entry.step >= first}
        for number, step, reward, kept in zip(*_columns(scored), kept_N.tolist(), strict=True):
            entry = self._entries.get(number, Entry(step, reward, 0))
            self._entries[number] = entry._replace(uses=entry.uses + kept)

    def state_dict(self) -> State:
        """A row per rollout."""
        entries = list(self._entries.values())
        return {
            "kind": self.KIND,
            "numbers": np.array(list(self._entries), dtype=np.int64),
            "steps": np.array([entry.step for entry in entries], dtype=np.int64),
            "rewards": np.array([entry.reward for entry in entries], dtype=np.float64),
            "uses": np.array([entry.uses for entry in entries], dtype=np.int64),
        }

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave, all or nothing.

        Raises:
            StateError: keys are missing, or rows do not fit together.
        """
        check_state(state, self.KIND, ("numbers", "steps", "rewards", "uses"))
        numbers, steps, uses = (rows_from_state(state, key, LARGEST).tolist() for key in ("numbers", "steps", "uses"))
        rewards = array_from_state(state, "rewards", (len(numbers),)).tolist()
        if not len(set(numbers)) == len(numbers) == len(steps) == len(uses):
            raise StateError(
                "the rollout buffer of a state does not fit together",
                got=f"{len(set(numbers))} numbers, {len(steps)} steps, {len(uses)} uses",
                allowed="one of each per rollout",
                fix="load a whole state_dict(), or start anew",
            )
        self._entries = {n: Entry(*row) for n, row in zip(numbers, zip(steps, rewards, uses, strict=True), strict=True)}


def _columns(scored: Scored) -> tuple[list[int], list[int], list[float]]:
    """Number, step of generation and reward of each rollout; [N] each."""
    steps_N = scored.step - scored.ages_Q[scored.rows_N]
    return scored.numbers_N.tolist(), steps_N.tolist(), scored.rewards_N.tolist()
