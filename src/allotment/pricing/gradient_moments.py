"""The price of a prompt whose scores have moments of their own: no assumption that score and reward are independent.

The RLOO gradient of a prompt along one direction is the sample covariance of rewards r and scores s. From n rollouts
its variance is ``A / n + B / (n (n - 1))`` with ``A = E[(r - p)^2 (s - E s)^2] - Cov(r, s)^2`` and
``B = Var(r) Var(s) + Cov(r, s)^2`` (the variance of a sample covariance; Kendall and Stuart, vol. 1, ch. 13). For 0/1
rewards with success probability p, score variances V1 among successes and V0 among failures, and D2 the squared gap of
their means::

    A = p (1 - p) ((1 - p) V1 + p V0 + (1 - 2 p)^2 D2)
    B = p (1 - p) (p V1 + (1 - p) V0 + 2 p (1 - p) D2)

With V1 = V0 = V and D2 = 0 this is ``p (1 - p) V / (n - 1)``: VIP, proposition 4.3.
"""

from __future__ import annotations

import numpy as np

from allotment.prediction.posteriors import ScoreMoments
from allotment.pricing.second_look import SecondLookPrice
from allotment.types import Posterior


def gradient_moments_price(posterior: Posterior, moments: ScoreMoments) -> SecondLookPrice:
    """Expected variance of each prompt's RLOO gradient, given independent beliefs about p and about the scores."""
    pq_Q, ppq_Q, pqq_Q, ppqq_Q = (posterior.power_moment(i, j) for i, j in ((1, 1), (2, 1), (1, 2), (2, 2)))
    failure_Q, success_Q = moments.within_Q2.T
    uneven_Q = np.maximum(pq_Q - 4.0 * ppqq_Q, 0.0)  # E[p q (1 - 2 p)^2]
    first_Q = pqq_Q * success_Q + ppq_Q * failure_Q + uneven_Q * moments.gap_Q
    second_Q = ppq_Q * success_Q + pqq_Q * failure_Q + 2.0 * ppqq_Q * moments.gap_Q
    return SecondLookPrice(first_Q, second_Q, minimum_count=2)
