"""Completion pruning (Dynamic Pruning, arXiv 2603.04135): rollouts of small advantage are left out at random."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from allotment.checks import check_setting
from allotment.methods.selectors.subsets import first_of_groups
from allotment.registry import AFTER, Row
from allotment.selection import Scored, Selection, SelectorEntry, SelectorNeeds, Stateless, draws
from allotment.types import FloatArray, IntArray

ROUNDING = 1e-12
"""Share of the mean by which a value must lie below it: equal values are not below their mean by rounding."""


class CompletionPruning(Stateless):
    """Leaves out rollouts whose absolute advantage is below the mean of their group, with probability ``rate``.

    The survivors among them count ``1 / (1 - rate)``: the loss has the expectation of the unpruned one, because
    advantages are those of the complete group and every denominator counts what was generated. What it saves is the
    forward and backward pass; all completions are generated. With ``P = rate`` for the rollouts at risk and fixed
    gradients g the variance added is ``sum P / (1 - P) g^2 / N^2``. No group is emptied: at least one of its rollouts
    is not below the mean. Exact for one on-policy step; clipping and a KL term are outside the proof.

    In a 0/1 group the rollouts at risk are the majority: successes where more than half succeed, else failures.

    Args:
        rate: probability of leaving out a rollout at risk, in [0, 1); the paper's sweep goes up to 0.9.
        random: False drops, in each group, the ``floor(rate n)`` smallest of the n at risk, with the same weights for
            the rest. That is biased.
        seed: of the draws, which are a function of seed, step and rollout.

    Raises:
        InvalidInputError: the rate is outside [0, 1).
    """

    NEEDS = SelectorNeeds(weighs_single=True)

    def __init__(self, *, rate: float = 0.5, random: bool = True, seed: int = 0) -> None:
        self.rate, self.random, self.seed = check_rate(rate), random, seed

    def select(self, scored: Scored) -> Selection:
        """The survivors, weighted."""
        draws_N = draws(self.seed, scored.step, scored.numbers_N, "completion-pruning")
        sizes_N = np.abs(scored.advantages_N)
        is_kept_N, keep_probability_N = prune(sizes_N, scored.rows_N, draws_N, self.rate, random=self.random)
        return Selection(is_kept_N / keep_probability_N)


def prune(
    values_N: FloatArray, rows_N: IntArray, draws_N: FloatArray, rate: float, *, random: bool = True
) -> tuple[npt.NDArray[np.bool_], FloatArray]:
    """Which values survive, and with which probability each was to survive; both [N], whatever the order.

    At risk are values below the mean of their group. Those go with probability ``rate``; or, if not ``random``, the
    ``floor(rate n)`` smallest of the n at risk in each group, of equal ones those with smaller draws.

    Args:
        values_N: [N] finite.
        rows_N: [N] group of each value.
        draws_N: [N] uniform on [0, 1).
        rate: in [0, 1).
        random: at random or by size.
    """
    order_N = np.lexsort((values_N, rows_N))  # the last bits of a sum depend on its order
    sums_Q = np.bincount(rows_N[order_N], values_N[order_N])
    mean_N = (sums_Q / np.maximum(np.bincount(rows_N), 1))[rows_N]
    is_low_N = values_N < mean_N - ROUNDING * np.abs(mean_N)
    if random:
        is_pruned_N = is_low_N & (draws_N < rate)
    else:
        low_L = np.flatnonzero(is_low_N)
        groups_L = rows_N[low_L]
        room_Q = np.floor(rate * np.bincount(groups_L) + ROUNDING)
        is_pruned_N = np.zeros(len(values_N), dtype=np.bool_)
        is_pruned_N[low_L] = first_of_groups(groups_L, room_Q, values_N[low_L], draws_N[low_L])
    return ~is_pruned_N, np.where(is_low_N, 1.0 - rate, 1.0)


def check_rate(rate: float) -> float:
    """The rate, if it leaves every candidate a chance.

    Raises:
        InvalidInputError: it is outside [0, 1).
    """
    check_setting("the pruning rate", rate, 0 <= rate < 1, "0 <= rate < 1: what is never kept cannot be weighted")
    return float(rate)


ENTRY = SelectorEntry(
    CompletionPruning,
    CompletionPruning.NEEDS,
    row=Row(
        "nothing",
        AFTER,
        "random, below what was generated",
        "the mean success probability, by importance weights `1/(1-P)`: 1, with more variance",
        "DPPO, arXiv 2603.04135",
        "rule and rate are a reconstruction",
    ),
)
