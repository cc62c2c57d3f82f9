"""Dense prompt packing (Dynamic Pruning, arXiv 2603.04135): which groups share a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from allotment.checks import check_setting
from allotment.errors import InvalidInputError


@dataclass(frozen=True)
class Packing:
    """Groups in micro-batches."""

    batches: tuple[tuple[int, ...], ...]
    """The groups of each micro-batch, by position, in the order in which they were taken; each group once."""
    tokens: tuple[int, ...]
    """Of each micro-batch; at most ``cap``."""
    cap: int
    """Most tokens of a micro-batch."""

    @property
    def fill_rate(self) -> float:
        """Share of the room in all micro-batches that holds tokens; 1 for no groups."""
        return sum(self.tokens) / (self.cap * len(self.batches)) if self.batches else 1.0


def pack(tokens_Q: Sequence[int] | npt.NDArray[np.integer], cap: int, *, window: int = 32) -> Packing:
    """Groups packed greedily: of those in a first-in-first-out window, the longest that still fits.

    A micro-batch is closed when none fits. No group is taken more than ``window`` places after its turn, that is
    after where first-come would take it: one that has waited so long is next, in a new micro-batch if need be.
    ``window=1`` is first-come. (Waiting is counted from a group's turn because in a full window of W groups the mean
    wait is W in any order.) O(Q window).

    The window and the limit on waiting are a reconstruction. Packing changes no gradient as long as the weights are
    those of the whole batch (:func:`allotment.learning.rollout_weights` of all rollouts, sliced with the groups).

    Args:
        tokens_Q: [Q] tokens of each group that go through the model, > 0, in the order in which groups get ready.
        cap: most tokens of a micro-batch.
        window: W, groups to choose from, >= 1.

    Raises:
        InvalidInputError: a group has no tokens or more than the cap: the cap is what memory allows, so such a group
            needs a larger one, or must be split; or the window is below 1.
    """
    check_setting("window", window, window >= 1, "at least 1")
    lengths = [int(tokens) for tokens in tokens_Q]
    _check_lengths(lengths, cap)
    batches: list[list[int]] = []
    sums: list[int] = []
    waiting, ready, room = list(range(min(window, len(lengths)))), window, 0
    for turn in range(len(lengths)):
        choice = _choose(waiting, lengths, room, is_late=turn - waiting[0] >= window)
        if choice is None:  # nothing fits: a new micro-batch, in which everything does
            batches.append([])
            sums.append(0)
            room = cap
            choice = _choose(waiting, lengths, room, is_late=turn - waiting[0] >= window)
            assert choice is not None
        waiting.remove(choice)
        batches[-1].append(choice)
        sums[-1] += lengths[choice]
        room -= lengths[choice]
        if ready < len(lengths):
            waiting.append(ready)
            ready += 1
    return Packing(tuple(map(tuple, batches)), tuple(sums), cap)


def _choose(waiting: list[int], lengths: list[int], room: int, *, is_late: bool) -> int | None:
    """The longest group that fits, the oldest of equal ones; the oldest of all or none where it is late."""
    candidates = [group for group in (waiting[:1] if is_late else waiting) if lengths[group] <= room]
    return max(candidates, key=lambda group: lengths[group], default=None)


def _check_lengths(lengths: list[int], cap: int) -> None:
    wrong = next((group for group, tokens in enumerate(lengths) if not 0 < tokens <= cap), None)
    if wrong is not None:
        raise InvalidInputError(
            f"group {wrong} does not fit into a micro-batch",
            got=f"{lengths[wrong]} tokens",
            allowed=f"1 to {cap}, the cap",
            fix="leave out groups of which nothing is kept; raise the cap, or split the group before packing",
        )
