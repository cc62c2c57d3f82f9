"""PODS: of every group, the rollouts whose rewards vary most (arXiv 2504.13818)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from allotment.errors import InvalidInputError, message
from allotment.selection.base import Scored
from allotment.selection.subsets import BoolArray, Subset
from allotment.types import FloatArray, IntArray

TIE = 1e-12
"""Variances this close, relative to the squared distance of the farthest reward from the mean, count as equal."""


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
            message(
                "no subset of largest variance",
                got=f"m = {m}, rewards {rewards_N.shape}, {int((~np.isfinite(rewards_N)).sum())} not finite",
                allowed="finite rewards [n] and 2 <= m <= n",
                fix="keep a group that is smaller than m whole",
            )
        )
    order = np.argsort(rewards_N, kind="stable")
    distance_N = rewards_N[order] - rewards_N.mean()
    distance_N /= np.abs(distance_N).max() or 1.0
    high_K = np.arange(m + 1)
    first_K = _ends(distance_N, m, high_K) / m
    second_K = _ends(distance_N**2, m, high_K) / m
    variance_K = second_K - first_K**2
    high = int(np.argmax(variance_K >= variance_K.max() - TIE))
    return np.sort(np.concatenate([order[: m - high], order[len(order) - high :]]))


def _ends(values_N: FloatArray, m: int, high_K: IntArray) -> FloatArray:
    """[K] sum of the first ``m - high`` and the last ``high`` values."""
    total_N = np.concatenate([[0.0], np.cumsum(values_N)])
    return np.asarray(total_N[m - high_K] + total_N[-1] - total_N[len(values_N) - high_K], dtype=np.float64)


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
    rewards the lot decides who is kept. The released single-GPU trainer sorts the whole step as one group.
    """

    def _choose(self, scored: Scored, room_Q: IntArray, lots_N: FloatArray) -> BoolArray:
        order = np.lexsort((lots_N, scored.rows_N))
        ends_Q = np.cumsum(np.bincount(scored.rows_N, minlength=len(room_Q)))
        kept_N = np.zeros(len(scored), dtype=bool)
        for members, room in zip(np.split(order, ends_Q)[:-1], room_Q.tolist(), strict=True):
            chosen = max_variance_subset(scored.rewards_N[members], room) if room < len(members) else slice(None)
            kept_N[members[chosen]] = True
        return kept_N
