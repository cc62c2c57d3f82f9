"""A log of success counts, in time order, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from allotment.types import FloatArray, IntArray, PromptId


@dataclass(frozen=True, eq=False)
class Log:
    """The visits of a run; a visit is one prompt's rollouts of one step. Arrays are [V], one entry a visit.

    :func:`~allotment.audit.read_log` makes it from a file.
    """

    ids: tuple[PromptId, ...]
    """[M] the prompts."""
    prompt: IntArray
    """[V] whose visit it is, as an index into ``ids``."""
    visit: IntArray
    """[V] how many times the prompt has been visited, this time included: 1, 2, ... Its epoch."""
    successes: IntArray
    """[V] successful rollouts."""
    trials: IntArray
    """[V] rollouts, >= 1."""
    step: IntArray | None = None
    """[V] the step that the visit belonged to; None where the log does not say which prompts shared a step."""
    texts: tuple[str, ...] | None = None
    """[M] the prompts' texts; None unless every prompt has one."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures should know about the file."""
    lengths: FloatArray | None = None
    """[V] length of the visit's completions, all rollouts together; None where the log does not say."""
    length_unit: Literal["tokens", "characters"] = "tokens"
    """Unit of ``lengths``."""
    read_as: str | None = None
    """The format, which column was taken for what, and how much was found; None in our own formats."""
    doubts: tuple[str, ...] = ()
    """Conditions found on reading under which a verdict does not hold."""

    @property
    def order_is_assumed(self) -> bool:
        """Whether the log does not say which prompts shared a step."""
        return self.step is None

    def batches(self, size: int, seed: int) -> list[IntArray]:
        """The visits of each step, in time order; each [B], distinct prompts.

        The recorded steps where there are any. Else one random order of the prompts is assumed for all epochs:
        ``numpy.random.default_rng(seed).permutation(M)``. Epoch e takes the prompts that have an e-th visit in that
        order, ``size`` a step; its last step may be smaller.
        """
        if self.step is not None:
            order_V = np.argsort(self.step, kind="stable")
            return _split(order_V, np.flatnonzero(np.diff(self.step[order_V])) + 1)
        place_M = np.argsort(np.random.default_rng(seed).permutation(len(self.ids)))
        order_V = np.lexsort((place_M[self.prompt], self.visit))
        epochs = _split(order_V, np.flatnonzero(np.diff(self.visit[order_V])) + 1)
        return [batch_B for epoch_B in epochs for batch_B in _split(epoch_B, np.arange(size, len(epoch_B), size))]


def visit_numbers(prompt_V: IntArray) -> IntArray:
    """[V] how many visits of the same prompt there are up to and including each; visits in time order."""
    order_V = np.argsort(prompt_V, kind="stable")
    sorted_V = prompt_V[order_V]
    starts_V = np.searchsorted(sorted_V, sorted_V)
    numbers_V = np.empty(len(prompt_V), dtype=np.int64)
    numbers_V[order_V] = np.arange(1, len(prompt_V) + 1) - starts_V
    return numbers_V


def _split(rows: IntArray, starts: IntArray) -> list[IntArray]:
    return [part for part in np.split(rows, starts) if len(part)]
