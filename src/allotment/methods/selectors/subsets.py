"""So many rollouts of every group: the largest rewards, or at random. The baselines of PODS.

Down-sampling after generation (PODS, arXiv 2504.13818): n rollouts of a prompt are generated and verified, m of them
are trained on, as if they were all there is: advantages and denominators are those of the kept ones.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import numpy.typing as npt

from allotment.checks import check_setting
from allotment.registry import AFTER, UNBIASED, Row
from allotment.selection.base import Scored, Selection, SelectorEntry, Stateless, draws
from allotment.types import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]


def kept_counts(keep: float, sizes_Q: IntArray) -> IntArray:
    """[Q] rollouts kept of groups of these sizes: ``keep`` of each, or all where there are fewer.

    ``keep`` below 1 is a share: ``ceil(keep * n)``, and at least 2, because one rollout has nothing to compare with.
    """
    wanted_Q = np.maximum(ceil_share(keep, sizes_Q), 2) if keep < 1 else int(keep)
    return np.minimum(wanted_Q, sizes_Q)


def ceil_share(share: float, sizes_Q: IntArray) -> IntArray:
    """[Q] ``ceil(share * size)``; 0.07 of 100 is 7, although the floating-point product lies above it."""
    return np.ceil(np.round(share * sizes_Q, 9)).astype(np.int64)


def first_of_groups(rows_N: IntArray, room_Q: IntArray, *keys_N: npt.NDArray[np.generic]) -> BoolArray:
    """[N] whether a rollout is among the first ``room_Q`` of its group, in ascending order of ``keys_N``.

    The first key decides, the next where it is equal. O(N log N).
    """
    order = np.lexsort((*reversed(keys_N), rows_N))
    sizes_Q = np.bincount(rows_N, minlength=len(room_Q))
    places_N = np.arange(len(rows_N)) - (np.cumsum(sizes_Q) - sizes_Q)[rows_N[order]]
    is_first_N = np.zeros(len(rows_N), dtype=bool)
    is_first_N[order] = places_N < room_Q[rows_N[order]]
    return is_first_N


class Subset(Stateless):
    """Keeps ``keep`` rollouts of every group, and groups that have no more than that whole; no group is emptied.

    Args:
        keep: rollouts of a group that are trained on, from 2; or a share of the group in (0, 1), rounded up and at
            least 2. The default is the ratio of the paper's settings (64 to 16, 32 to 8, 128 to 32).
        seed: decides at random between rollouts that are otherwise equal.

    Raises:
        InvalidInputError: ``keep`` is 1, or neither a number of rollouts nor a share.
    """

    def __init__(self, *, keep: float = 0.25, seed: int = 0) -> None:
        is_number = not isinstance(keep, bool) and isinstance(keep, int | float | np.integer)
        is_allowed = is_number and (0 < keep < 1 or (keep >= 2 and keep == keep // 1 < np.inf))
        check_setting("keep", keep, is_allowed, "2, 3, ... rollouts of a group, or a share of it in (0, 1)")
        self.keep = keep
        self.seed = seed

    def select(self, scored: Scored) -> Selection:
        """Each kept rollout at weight 1, against the kept ones of its group."""
        room_Q = kept_counts(self.keep, np.bincount(scored.rows_N, minlength=len(scored.prompt_ids)))
        kept_N = self._choose(scored, room_Q, draws(self.seed, scored.step, scored.numbers_N, "subset"))
        return Selection(kept_N.astype(np.float64), baseline="kept", denominator="kept")

    @abstractmethod
    def _choose(self, scored: Scored, room_Q: IntArray, draws_N: FloatArray) -> BoolArray:
        """[N] whether a rollout is kept, ``room_Q`` of each group; ``draws_N`` are random numbers."""


class MaxReward(Subset):
    """The largest rewards of every group, ties at random (PODS, "max-reward").

    With 0/1 rewards a kept group is all successes where there are enough, and then has no advantage: the effective
    weight of a prompt relative to the gradient of p is ``E[f (1 - f)] / (p (1 - p))`` with ``f = min(S, m) / m`` and
    ``S ~ Binomial(n, p)`` (times ``m / (m - 1)`` for RLOO).
    """

    def _choose(self, scored: Scored, room_Q: IntArray, draws_N: FloatArray) -> BoolArray:
        return first_of_groups(scored.rows_N, room_Q, -scored.rewards_N, draws_N)


class RandomSubset(Subset):
    """Rollouts of every group at random (PODS, "random"): in expectation the same as generating fewer."""

    def _choose(self, scored: Scored, room_Q: IntArray, draws_N: FloatArray) -> BoolArray:
        return first_of_groups(scored.rows_N, room_Q, draws_N)


MAX_REWARD = SelectorEntry(
    MaxReward,
    row=Row(
        "nothing",
        AFTER,
        "m of n rollouts of every group",
        "prompts that hardly ever succeed, and no others: as `pods` with `f = min(S, m)/m`",
        "arXiv 2504.13818, its baseline",
        "ties at random",
    ),
)


RANDOM = SelectorEntry(
    RandomSubset,
    row=Row(
        "nothing",
        AFTER,
        "m of n rollouts of every group",
        UNBIASED,
        "arXiv 2504.13818, its baseline",
        "none",
    ),
)
