"""What a step of training brought, as the contextual bandit counts it (arXiv 2602.08499)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from allotment.selection.base import Scored
from allotment.types import FloatArray, IntArray


@dataclass(frozen=True)
class Level:
    """How good and how random the policy of a step is."""

    reward: float
    """V: mean over the step's groups of their mean reward."""
    entropy: float
    """E: the same of the mean entropy, in nats."""


def level_of(scored: Scored) -> Level | None:
    """The level at the rollouts of this step; None if there are none."""
    is_new_N = scored.ages_Q[scored.rows_N] == 0
    if not is_new_N.any():
        return None
    rows_N = scored.rows_N[is_new_N]
    return Level(*(_mean_of_means(column_N[is_new_N], rows_N) for column_N in (scored.rewards_N, scored.entropies_N)))


def _mean_of_means(values_N: FloatArray, rows_N: IntArray) -> float:
    """Mean over groups; sorted, so that no bit depends on their order."""
    sizes_Q = np.bincount(rows_N)
    means_Q = np.bincount(rows_N, values_N)[sizes_Q > 0] / sizes_Q[sizes_Q > 0]
    return float(np.sort(means_Q).mean())


def arm_reward(before: Level, after: Level, *, entropy_weight: float, entropy_floor: float) -> float:
    """What a step brought: ``V' - V - entropy_weight 1[E > entropy_floor] (E' - E)``."""
    penalty = entropy_weight * (after.entropy - before.entropy) if before.entropy > entropy_floor else 0.0
    return after.reward - before.reward - penalty
