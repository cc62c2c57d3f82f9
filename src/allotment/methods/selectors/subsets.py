"""So many rollouts of every group: those whose rewards vary most (PODS), the largest rewards, or at random.

Down-sampling after generation (PODS, arXiv 2504.13818): n rollouts of a prompt are generated and verified, m of them
are trained on, as if they were all there is: advantages and denominators are those of the kept ones.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import numpy.typing as npt

from allotment.checks import check_setting
from allotment.errors import InvalidInputError
from allotment.registry import AFTER, UNBIASED, Row
from allotment.selection import Scored, Selection, SelectorEntry, Stateless, draws
from allotment.types import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]
TIE = 1e-12
"""Variances this close, relative to the squared distance of the farthest reward from the mean, count as equal."""


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


def max_variance_subset(rewards: npt.ArrayLike, m: int) -> IntArray:
    """The ``m`` of n rewards with the largest variance: sorted indices [m]. O(n log n).

    Some optimum is the k largest and the m - k smallest (PODS, its structure lemma): one sort, and prefix sums of the
    rewards and their squares give the variance of every k. Rewards are centred and scaled first; without that, sums of
    squares cancel (rewards near 1e8). Of several best k the smallest is taken, fewer of the high rewards, which is the
    rule of the released code for odd m and 0/1 rewards (that code tries the m largest first, so there they win a tie).
    Among equal rewards the earlier ones are the smaller.

    Args:
        rewards: [n] finite.
        m: from 2 to n.

    Raises:
        InvalidInputError: a reward is not finite, or m is out of its range. One reward has no variance.
    """
    rewards_N = np.asarray(rewards, dtype=np.float64)
    if rewards_N.ndim != 1 or not 2 <= m <= len(rewards_N) or not np.isfinite(rewards_N).all():
        raise InvalidInputError(
            "no subset of largest variance",
            got=f"m = {m}, rewards {rewards_N.shape}, {int((~np.isfinite(rewards_N)).sum())} not finite",
            allowed="finite rewards [n] and 2 <= m <= n",
            fix="keep a group that is smaller than m whole",
        )
    order = np.argsort(rewards_N, kind="stable")
    return np.sort(order[_chosen_places(rewards_N[None, order], m)[0]])


def _chosen_places(ascending_QN: FloatArray, m: int) -> BoolArray:
    """[Q, n] which places of each row of ascending rewards to take: the first m - k and the last k, for the best k."""
    distance_QN = ascending_QN - ascending_QN.mean(axis=1, keepdims=True)
    farthest_Q1 = np.abs(distance_QN).max(axis=1, keepdims=True)
    distance_QN /= np.where(farthest_Q1 > 0, farthest_Q1, 1.0)
    variance_QK = _sums_of_ends(distance_QN**2, m) / m - (_sums_of_ends(distance_QN, m) / m) ** 2
    high_Q1 = np.argmax(variance_QK >= variance_QK.max(axis=1, keepdims=True) - TIE, axis=1)[:, None]
    places_N = np.arange(ascending_QN.shape[1])
    return np.asarray((places_N < m - high_Q1) | (places_N >= len(places_N) - high_Q1), dtype=np.bool_)


def _sums_of_ends(values_QN: FloatArray, m: int) -> FloatArray:
    """[Q, m + 1] sum of the first m - k and the last k values of each row, for k from 0 to m."""
    total_QN = np.pad(np.cumsum(values_QN, axis=1), ((0, 0), (1, 0)))
    high_K = np.arange(m + 1)
    ends_QK = total_QN[:, m - high_K] + total_QN[:, -1:] - total_QN[:, values_QN.shape[1] - high_K]
    return np.asarray(ends_QK, dtype=np.float64)


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


class PODS(Subset):
    """Keeps the ``keep`` rollouts of every group whose rewards have the largest variance; args as :class:`Subset`.

    Decides after verification; saves the update, not the generation. Advantages are normalised on the kept rollouts
    (``baseline="kept"``): the paper's ablation prefers that to the whole group. Its own advantage is the standardised
    one with eps 1e-4, ``grpo`` here. There is no importance weight for the selection, so the objective changes: with
    0/1 rewards, S ~ Binomial(n, p) successes and a = clip(floor(m / 2), m - (n - S), S) of them kept, the effective
    weight of a prompt relative to the gradient of p is ``E[f (1 - f)] / (p (1 - p))`` with f = a / m. RLOO multiplies
    it by ``m / (m - 1)``; GRPO has ``sqrt(f (1 - f) (m - 1) / m)`` in place of ``f (1 - f)``. In large groups it is
    about ``1 / (4 p (1 - p))``. (Derived, not from the paper.) With m >= n nothing is selected.

    Source: PODS (arXiv 2504.13818), its O(n log n) procedure. Deviations: groups may be of unequal size; among equal
    rewards chance decides who is kept. The released single-GPU trainer sorts the whole step as one group.
    """

    def _choose(self, scored: Scored, room_Q: IntArray, draws_N: FloatArray) -> BoolArray:
        order = np.lexsort((draws_N, scored.rewards_N, scored.rows_N))
        sizes_Q = np.bincount(scored.rows_N, minlength=len(room_Q))
        starts_Q = np.cumsum(sizes_Q) - sizes_Q
        kept_N = np.ones(len(scored), dtype=bool)
        for size in np.unique(sizes_Q[room_Q < sizes_Q]):
            groups = np.flatnonzero(sizes_Q == size)
            members_QN = order[starts_Q[groups, None] + np.arange(size)]
            kept_N[members_QN] = _chosen_places(scored.rewards_N[members_QN], int(room_Q[groups[0]]))
        return kept_N


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


PODS_ENTRY = SelectorEntry(
    PODS,
    row=Row(
        "nothing",
        AFTER,
        "m of n rollouts of every group",
        "rare outcomes count more: `E[f(1-f)] m/(m-1) / (p(1-p))`, f the successes' share of the m; for large n "
        "`1/(4p(1-p))` times `m/(m-1)`",
        "arXiv 2504.13818",
        "one sort for the code's replacement scan (the same subset); groups of unequal size",
    ),
)
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
