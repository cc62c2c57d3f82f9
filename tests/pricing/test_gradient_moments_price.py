"""The price against brute force: all groups of n rollouts of a small discrete distribution, enumerated."""

import itertools

import numpy as np
import pytest

from allotment.allocation import allocate_exact
from allotment.pricing import gradient_moments_price, posterior_weights
from allotment.types import BetaPosterior, GridPosterior, Posterior, ScoreMoments


def certain(p):
    p = np.atleast_1d(p)
    return Posterior(np.log(p) - np.log1p(-p), np.zeros(len(p)))


def brute_variance(outcomes, n):
    """Variance of the RLOO gradient over all groups of n; outcomes are (probability, reward, score)."""
    mean = square = 0.0
    for group in itertools.product(outcomes, repeat=n):
        probability = np.prod([o[0] for o in group])
        r, s = np.array([o[1] for o in group]), np.array([o[2] for o in group])
        gradient = ((r - r.mean()) * n / (n - 1) * s).mean()
        mean += probability * gradient
        square += probability * gradient**2
    return square - mean**2


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_it_is_the_variance_of_the_gradient(p, n):
    successes, failures = [(0.3, 4.0), (0.7, 1.0)], [(0.5, -2.0), (0.25, 0.0), (0.25, 1.5)]
    outcomes = [(p * q, 1.0, s) for q, s in successes] + [((1 - p) * q, 0.0, s) for q, s in failures]
    moments = []
    for part in (failures, successes):
        mean = sum(q * s for q, s in part)
        moments.append((mean, sum(q * (s - mean) ** 2 for q, s in part)))
    (m0, v0), (m1, v1) = moments
    price = gradient_moments_price(certain(p), ScoreMoments(np.array([[v0, v1]]), np.array([(m1 - m0) ** 2])))
    assert price.cost(np.array([n]))[0] == pytest.approx(brute_variance(outcomes, n), rel=1e-9)


BELIEFS = {
    "normal": Posterior(np.linspace(-4, 4, 6), np.linspace(0.1, 5, 6)),
    "beta": BetaPosterior.from_counts(np.linspace(0.3, 20, 6), np.linspace(9, 0.4, 6)),
    "grid": Posterior(np.linspace(-4, 4, 6), np.full(6, 2.0)).updated(np.arange(6), np.full(6, 8)),
}


@pytest.mark.parametrize("belief", BELIEFS)
def test_equal_scores_are_the_default_price(belief):
    posterior, counts = BELIEFS[belief], np.array([3, 4, 5, 8, 16, 32])
    assert (belief == "grid") == isinstance(posterior, GridPosterior)
    price = gradient_moments_price(posterior, ScoreMoments(np.full((6, 2), 7.0), np.zeros(6)))
    np.testing.assert_allclose(price.cost(counts), 7 * posterior_weights(posterior) / (counts - 1), rtol=1e-6)
    default = allocate_exact(posterior_weights(posterior), 60, lower=3, upper=20)
    np.testing.assert_array_equal(allocate_exact(price, 60, lower=3, upper=20).counts, default.counts)


@pytest.mark.parametrize("belief", BELIEFS)
def test_the_belief_about_p_is_averaged_over(belief):
    posterior = BELIEFS[belief]
    moments = ScoreMoments(np.random.default_rng(0).uniform(1, 9, (6, 2)), np.linspace(0, 9, 6))
    price = gradient_moments_price(posterior, moments)
    if isinstance(posterior, BetaPosterior):
        p_QM = np.random.default_rng(1).beta(posterior.alpha[:, None], posterior.beta[:, None], (6, 100_000))
        weights_QM = np.full(p_QM.shape, 1e-5)
    else:
        grid = getattr(posterior, "logits", None)
        if grid is None:
            grid = posterior.mean[:, None] + np.sqrt(posterior.variance)[:, None] * np.linspace(-8, 8, 2001)
        logits = grid
        weights_QM = getattr(posterior, "weights", None)
        if weights_QM is None:
            weights_QM = np.exp(-(np.linspace(-8, 8, 2001) ** 2) / 2)[None] * np.ones((6, 1))
            weights_QM = weights_QM / weights_QM.sum(1, keepdims=True)
        p_QM = 1 / (1 + np.exp(-logits))
    for n in (3, 8, 32):
        expected = [
            sum_of(gradient_moments_price(certain(np.clip(p, 1e-12, 1 - 1e-12)), one(moments, q, len(p))), n, w)
            for q, (p, w) in enumerate(zip(p_QM, weights_QM, strict=True))
        ]
        np.testing.assert_allclose(price.cost(np.full(6, n)), expected, rtol=0.02)


def one(moments, q, copies):
    return ScoreMoments(np.tile(moments.within_Q2[q], (copies, 1)), np.full(copies, moments.gap_Q[q]))


def sum_of(price, n, weights_M):
    return (price.cost(np.full(len(weights_M), n)) * weights_M).sum()


def test_scores_decided_by_the_reward_leave_nothing_to_price_at_one_half():
    """One right answer, one wrong one: at p = 1/2 the leading term of the variance is 0 (docs/experiments.md)."""
    price = gradient_moments_price(certain([0.5, 0.9]), ScoreMoments(np.zeros((2, 2)), np.ones(2)))
    many = np.full(2, 10**6)
    assert price.cost(many)[0] * 10**6 == pytest.approx(0.0, abs=1e-5)
    assert price.cost(many)[1] * 10**6 == pytest.approx(0.9 * 0.1 * 0.8**2, rel=1e-4)


def test_large_scores_get_more_and_their_unit_does_not_matter():
    random = np.random.default_rng(3)
    posterior = Posterior(random.normal(size=30), np.full(30, 0.5))
    moments = ScoreMoments(random.gamma(1.0, size=(30, 2)), random.gamma(1.0, size=30))
    counts = allocate_exact(gradient_moments_price(posterior, moments), 240, lower=3, upper=32).counts
    for factor in (2.0**-40, 2.0**30):
        scaled = ScoreMoments(factor * moments.within_Q2, factor * moments.gap_Q)
        again = allocate_exact(gradient_moments_price(posterior, scaled), 240, lower=3, upper=32).counts
        np.testing.assert_array_equal(again, counts)
    moments.within_Q2[7], moments.gap_Q[7] = 50.0, 50.0
    assert allocate_exact(gradient_moments_price(posterior, moments), 240, lower=3, upper=32).counts[7] > counts[7]
