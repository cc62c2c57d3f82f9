"""The variance that some rollouts of a visit would have left, estimated without bias from the visit's own counts.

Rewards are 0/1 with success probability p, scores independent of them (assumption 4.1 of VIP), variance in units of the
size of a score. An estimator that compares with the other rollouts leaves ``p (1 - p) g(n)``. One that compares with
``w m + (1 - w) (mean of the others)``, m and w fixed before the visit, leaves::

    V(n) = (1 / n) (a + w^2 (p - m)^2 + (1 - w)^2 a / (n - 1)),   a = p (1 - p)

Of a and ``(p - m)^2`` the visit's k successes of n tell unbiased estimates, however wrong the belief is about m.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from allotment.audit.figures import unbiased_pairs
from allotment.types import FloatArray, IntArray


def unbiased_square_error(successes_V: IntArray, trials_V: IntArray, mean_V: FloatArray) -> FloatArray:
    """[V] the unbiased estimate of ``(p - m)^2``, 0 where n = 1; not below ``-p (1 - p) / n``, as estimated."""
    square_V = successes_V * (successes_V - 1.0) / unbiased_pairs(trials_V)
    error_V = square_V - 2.0 * mean_V * successes_V / trials_V + mean_V**2
    return np.where(trials_V > 1, error_V, 0.0)


def unbiased_variance_square(successes_V: IntArray, trials_V: IntArray) -> FloatArray:
    """[V] the unbiased estimate of ``(p (1 - p))^2``; NaN where n < 4, which cannot tell it."""
    k_V, n_V = successes_V.astype(np.float64), trials_V.astype(np.float64)
    failures_V = n_V - k_V
    ways_V = n_V * (n_V - 1.0) * (n_V - 2.0) * (n_V - 3.0)
    found_V = k_V * (k_V - 1.0) * failures_V * (failures_V - 1.0)
    return np.divide(found_V, ways_V, out=np.full_like(k_V, np.nan), where=n_V > 3)


def shrinkage_variance(
    variance_V: npt.ArrayLike, error_V: npt.ArrayLike, share: npt.ArrayLike, counts: npt.ArrayLike
) -> FloatArray:
    """V(n), any shape that broadcasts.

    Args:
        variance_V: a, the variance of a reward.
        error_V: ``(p - m)^2``, the squared error of the belief.
        share: w, the weight of the belief, in [0, 1]; at n = 1, where there are no other rollouts, it is taken as 1.
        counts: n >= 1.
    """
    a, n = np.asarray(variance_V, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    w = np.where(n > 1.0, share, 1.0)
    others = a / np.maximum(n - 1.0, 1.0)
    return np.asarray((a + w**2 * error_V + (1.0 - w) ** 2 * others) / n, dtype=np.float64)
