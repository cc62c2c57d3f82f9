"""Rollouts one by one, kept as counts: memory grows with prompts and visits, not with rollouts."""

from __future__ import annotations

from array import array

import numpy as np

from allotment.types import FloatArray, IntArray

ROOM = 2**18
"""Rollouts that are collected before they are added up."""


class Tally:
    """Adds up rollouts by (step, prompt, reward): how many, and the sum of their lengths."""

    def __init__(self) -> None:
        self._keys, self._rewards, self._lengths = array("q"), array("d"), array("d")
        self._keys_G2, self._rewards_G = np.empty((0, 2), dtype=np.int64), np.empty(0)
        self._counts_G, self._lengths_G = np.empty(0, dtype=np.int64), np.empty(0)

    def add(self, step: int, row: int, reward: float, length: float) -> None:
        """One rollout; ``length`` is NaN where it is not known."""
        self._keys.extend((step, row))
        self._rewards.append(reward)
        self._lengths.append(length)
        if len(self._rewards) >= ROOM:
            self._add_up()

    def groups(self) -> tuple[IntArray, IntArray, FloatArray, IntArray, FloatArray]:
        """Step, row, reward, number of rollouts and sum of lengths of every group; all [G], sorted by the first three.

        A sum of lengths is NaN where one of them is.
        """
        self._add_up()
        return self._keys_G2[:, 0], self._keys_G2[:, 1], self._rewards_G, self._counts_G, self._lengths_G

    def _add_up(self) -> None:
        keys_G2 = np.concatenate([self._keys_G2, np.array(self._keys, dtype=np.int64).reshape(-1, 2)])
        rewards_G = np.concatenate([self._rewards_G, np.array(self._rewards)])
        counts_G = np.concatenate([self._counts_G, np.ones(len(self._rewards), dtype=np.int64)])
        lengths_G = np.concatenate([self._lengths_G, np.array(self._lengths)])
        self._keys, self._rewards, self._lengths = array("q"), array("d"), array("d")
        if not len(rewards_G):
            return
        order_G = np.lexsort((rewards_G, keys_G2[:, 1], keys_G2[:, 0]))
        keys_G2, rewards_G = keys_G2[order_G], rewards_G[order_G]
        new_G = (np.diff(keys_G2, axis=0) != 0).any(axis=1) | (np.diff(rewards_G) != 0)
        starts = np.concatenate([[0], np.flatnonzero(new_G) + 1])
        self._keys_G2, self._rewards_G = keys_G2[starts], rewards_G[starts]
        self._counts_G = np.add.reduceat(counts_G[order_G], starts)
        self._lengths_G = np.add.reduceat(lengths_G[order_G], starts)


class Prompts:
    """Rows of prompts by their key, with their texts while these take little room."""

    MOST_TEXT = 2**26
    """Characters kept; a log with more is read without texts."""

    def __init__(self) -> None:
        self.row_of: dict[int | str, int] = {}
        self.texts: list[str] | None = []
        self._room = self.MOST_TEXT

    def row(self, key: int | str, text: str | None) -> int:
        """The row of the prompt, a new one if it was not met before."""
        row = self.row_of.get(key)
        if row is None:
            row = self.row_of[key] = len(self.row_of)
            self._room -= len(text or "")
            if text is None or self._room < 0:
                self.texts = None
            elif self.texts is not None:
                self.texts.append(text)
        return row
