"""Rollouts added up as they are read, and the prompts that they are of."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass

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

    def as_one_step(self) -> None:
        """Take all rollouts of a prompt for one visit."""
        self._add_up()
        self._keys_G2[:, 0] = 1
        self._add_up()

    def rename(self, row_M: IntArray) -> None:
        """Give the rows of prompts other numbers; rows with equal numbers become one."""
        self._add_up()
        self._keys_G2[:, 1] = row_M[self._keys_G2[:, 1]]
        self._add_up()

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
        self.others = 0  # rows whose text is not that which their prompt had first
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
        elif self.texts is not None and text is not None and self.texts[row] != text:
            self.others += 1
        return row


class Groups:
    """Rows of groups by their name, each with the row of its prompt and the first step in which it was met."""

    def __init__(self) -> None:
        self.row_of: dict[int | str, int] = {}
        self.prompt_of, self.first_step = array("q"), array("q")

    def row(self, name: int | str, prompt: int, step: int) -> int:
        """The row of the group, a new one if it was not met before."""
        row = self.row_of.get(name)
        if row is None:
            row = self.row_of[name] = len(self.row_of)
            self.prompt_of.append(prompt)
            self.first_step.append(step)
        return row


@dataclass(frozen=True)
class Known:
    """The prompts of a log."""

    ids: tuple[int | str, ...]
    texts: tuple[str, ...] | None
    apart: int = 0
    """How many groups count as prompts of their own, because another group of the step has their text."""


def known(prompts: Prompts) -> Known:
    """The prompts as they were met."""
    return Known(tuple(prompts.row_of), None if prompts.texts is None else tuple(prompts.texts))


def known_by_groups(tally: Tally, groups: Groups, prompts: Prompts, *, by_text: bool) -> Known:
    """The prompts of rollouts that were added up by group; afterwards they are added up by prompt.

    A group that comes back in another step names a prompt, not a visit. Else a group is of the prompt whose text it
    has. A text that groups of one step share, in most of its steps, does not tell prompts apart: groups with it are
    prompts of their own. Else the prompt was drawn twice in those few steps, and its groups are one visit.

    Args:
        tally: rollouts by row of their group.
        groups: the groups.
        prompts: what they are of.
        by_text: whether a prompt is known by its text alone.
    """
    prompt_of = np.array(groups.prompt_of, dtype=np.int64)
    names = tuple(groups.row_of)
    step_G, row_G, *_ = tally.groups()
    visits = np.unique(np.stack([step_G, row_G], axis=1), axis=0)
    own, apart = np.zeros(len(names), dtype=bool), 0
    if by_text and len(visits) > len(np.unique(visits[:, 1])):
        own[:] = True
    elif by_text:
        found = Counter(zip(visits[:, 0].tolist(), prompt_of[visits[:, 1]].tolist(), strict=True))
        met, shared = Counter(p for _, p in found), Counter(p for (_, p), number in found.items() if number > 1)
        unclear = [prompt for prompt, number in shared.items() if number > met[prompt] / 2]
        own = np.isin(prompt_of, np.array(unclear, dtype=np.int64))
        apart = int(own.sum())
    keys = tuple(prompts.row_of)
    firsts, row_of = np.unique(np.where(own, len(keys) + np.arange(len(names)), prompt_of), return_inverse=True)
    tally.rename(row_of)
    ids = tuple(names[f - len(keys)] if f >= len(keys) else keys[f] for f in firsts.tolist())
    texts = prompts.texts
    of = [int(prompt_of[f - len(keys)]) if f >= len(keys) else f for f in firsts.tolist()]
    return Known(ids, None if texts is None else tuple(texts[row] for row in of), apart)
