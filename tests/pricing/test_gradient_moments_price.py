"""The price against brute force: all groups of n rollouts of a small discrete distribution, enumerated."""

import itertools

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.special import expit
from scipy.stats import norm

from allotment.allocation import allocate_exact
from allotment.prediction.posteriors import BetaPosterior, GridPosterior, ScoreMoments, updated
from allotment.pricing import gradient_moments_price, posterior_weights
from allotment.types import Posterior


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
    "grid": updated(Posterior(np.linspace(-4, 4, 6), np.full(6, 2.0)), np.arange(6), np.full(6, 8)),
}


@pytest.mark.parametrize("belief", BELIEFS)
def test_equal_scores_are_the_default_price(belief):
    posterior, counts = BELIEFS[belief], np.array([3, 4, 5, 8, 16, 32])
    assert (belief == "grid") == isinstance(posterior, GridPosterior)
    price = gradient_moments_price(posterior, ScoreMoments(np.full((6, 2), 7.0), np.zeros(6)))
    np.testing.assert_allclose(price.cost(counts), 7 * posterior_weights(posterior) / (counts - 1), rtol=1e-6)
    default = allocate_exact(posterior_weights(posterior), 60, lower=3, upper=20)
    np.testing.assert_array_equal(allocate_exact(price, 60, lower=3, upper=20).counts, default.counts)


@pytest.mark.parametrize(("i", "j"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_power_moments_are_integrals(i, j):
    grid = np.linspace(-40, 40, 40_001)
    p, density = expit(grid), norm.pdf(grid[None], BELIEFS["normal"].mean[:, None], sd(BELIEFS["normal"])[:, None])
    np.testing.assert_allclose(
        BELIEFS["normal"].power_moment(i, j), trapezoid(density * p**i * (1 - p) ** j, grid), atol=1e-6
    )
    draws = np.random.default_rng(0).beta(BELIEFS["beta"].alpha, BELIEFS["beta"].beta, (100_000, 6))
    moment = draws**i * (1 - draws) ** j
    assert (np.abs(BELIEFS["beta"].power_moment(i, j) - moment.mean(0)) < 5 * moment.std(0) / np.sqrt(100_000)).all()


def sd(posterior):
    return np.sqrt(posterior.variance)


def test_uncertainty_about_p_is_averaged_over():
    logits, weights = np.array([[-3.0, 0.5, 2.0]]), np.array([[0.2, 0.5, 0.3]])
    belief = GridPosterior.of(logits, np.log(weights))
    moments = ScoreMoments(np.array([[2.0, 5.0]]), np.array([3.0]))
    for n in (2, 3, 8, 32):
        each = [gradient_moments_price(certain(expit(g)), moments).cost(np.array([n]))[0] for g in logits[0]]
        assert gradient_moments_price(belief, moments).cost(np.array([n]))[0] == pytest.approx(weights[0] @ each)


def test_scores_decided_by_the_reward_leave_nothing_to_price_at_one_half():
    """One right answer, one wrong one: at p = 1/2 the leading term of the variance is 0 (docs/experiments/)."""
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
