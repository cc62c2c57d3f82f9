"""Posterior: expectations by quadrature; BetaPosterior: closed forms. Both against scipy's adaptive integration."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad
from scipy.special import expit

from allotment.prediction.posteriors import BetaPosterior, updated
from allotment.types import Allocation, Plan, Posterior

means = st.floats(-12, 12)
variances = st.floats(0, 9)
pseudo_counts = st.floats(0.5, 60)


def normal_expectation(function, mean, variance):
    scale = np.sqrt(variance)
    return quad(lambda z: function(mean + scale * z) * stats.norm.pdf(z), -12, 12, epsabs=1e-11, limit=200)[0]


@settings(deadline=None, max_examples=40)
@given(means, variances)
@example(1.0, 2.0)  # the largest with 41 nodes
@example(1.0, 4.0)  # with 61
def test_quadrature_equals_adaptive_integration(mean, variance):
    posterior = Posterior(np.array([mean]), np.array([variance]))
    assert posterior.success_probability()[0] == pytest.approx(normal_expectation(expit, mean, variance), abs=1e-7)
    expected = normal_expectation(lambda g: expit(g) * expit(-g), mean, variance)
    assert posterior.expected_variance()[0] == pytest.approx(expected, abs=1e-7)


def test_what_is_done_to_a_result_does_not_reach_the_belief():
    posterior = Posterior(np.zeros(2), np.ones(2))
    for ask in (posterior.success_probability, posterior.expected_variance):
        before = ask()
        ask()[:] = 7.0
        np.testing.assert_array_equal(ask(), before)


@settings(deadline=None)
@given(means)
def test_without_variance_everything_is_the_plug_in(mean):
    posterior = Posterior(np.array([mean]), np.array([0.0]))
    p = 1 / (1 + np.exp(-mean))
    np.testing.assert_allclose(posterior.plug_in_probability(), p, rtol=1e-12)
    np.testing.assert_allclose(posterior.success_probability(), p, rtol=1e-12)
    np.testing.assert_allclose(posterior.expected_variance(), p * (1 - p), rtol=1e-7)
    np.testing.assert_allclose(posterior.standard_deviation(), 0, atol=1e-7)


@settings(deadline=None)
@given(means, variances)
def test_success_and_failure_are_symmetric(mean, variance):
    one, other = (Posterior(np.array([m]), np.array([variance])) for m in (mean, -mean))
    np.testing.assert_allclose(one.success_probability(), 1 - other.success_probability(), atol=1e-12)
    np.testing.assert_allclose(one.expected_variance(), other.expected_variance(), atol=1e-12)


@settings(deadline=None)
@given(st.floats(-4, 4), st.floats(0.1, 9))
def test_the_law_of_total_variance_bounds_the_expected_variance(mean, variance):
    posterior = Posterior(np.array([mean]), np.array([variance]))
    p = posterior.success_probability()[0]
    assert 0 < posterior.expected_variance()[0] < p * (1 - p)


@settings(deadline=None, max_examples=40)
@given(pseudo_counts, pseudo_counts)
def test_beta_closed_forms_equal_integration(alpha, beta):
    posterior = BetaPosterior.from_counts(np.array([alpha]), np.array([beta]))
    law = stats.beta(alpha, beta)
    assert posterior.success_probability()[0] == pytest.approx(law.mean(), rel=1e-12)
    assert posterior.standard_deviation()[0] == pytest.approx(law.std(), rel=1e-6)
    # In logits the density is smooth: alpha g - (alpha + beta) log(1 + e^g), up to a constant.
    centre, width = posterior.mean[0], np.sqrt(posterior.variance[0])

    def moment(function):
        peak = alpha * centre - (alpha + beta) * np.logaddexp(0, centre)
        return quad(
            lambda g: function(g) * np.exp(alpha * g - (alpha + beta) * np.logaddexp(0, g) - peak),
            centre - 14 * width,
            centre + 14 * width,
            epsabs=1e-9,
            epsrel=1e-9,
            limit=400,
        )[0]

    mass = moment(lambda g: 1.0)
    assert posterior.mean[0] == pytest.approx(moment(lambda g: g) / mass, rel=1e-4, abs=1e-4)
    assert posterior.variance[0] == pytest.approx(moment(lambda g: (g - centre) ** 2) / mass, rel=1e-3)
    expected = moment(lambda g: expit(g) * expit(-g)) / mass
    assert posterior.expected_variance()[0] == pytest.approx(expected, rel=1e-5)


def test_beta_closed_forms_equal_monte_carlo():
    alpha, beta = np.array([0.7, 3.0, 20.0]), np.array([5.0, 3.0, 1.5])
    draws = np.random.default_rng(0).beta(alpha, beta, size=(200_000, 3))
    posterior = BetaPosterior.from_counts(alpha, beta)
    np.testing.assert_allclose(posterior.expected_variance(), (draws * (1 - draws)).mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(posterior.standard_deviation(), draws.std(axis=0), atol=1e-3)


def test_a_posterior_of_no_prompts_has_empty_expectations():
    posterior = Posterior(np.empty(0), np.empty(0))
    assert len(posterior) == 0
    assert posterior.success_probability().shape == posterior.expected_variance().shape == (0,)


def test_plan_lays_groups_one_after_another():
    plan = Plan(("a", 7), np.array([2, 3]), step=0)
    assert plan.budget == 5
    assert plan.group_ids() == ["a", "a", 7, 7, 7]


@pytest.mark.parametrize(("multiplier", "certified"), [((0.1, 0.2), True), ((0.1, 0.1), True), ((0.2, 0.1), False)])
def test_the_certificate_is_an_ordered_interval(multiplier, certified):
    allocation = Allocation(np.array([3, 5]), 1.0, 1.0, multiplier)
    assert allocation.is_certified is certified
    assert allocation.budget == 8


@settings(max_examples=60)
@given(pseudo_counts, pseudo_counts, st.integers(1, 40), st.data())
def test_the_count_under_a_beta_belief_is_beta_binomial(alpha, beta, trials, data):
    counts = np.array([data.draw(st.integers(-1, trials)), trials])
    belief = BetaPosterior.from_counts(np.array([alpha, alpha]), np.array([beta, beta]))
    expected = stats.betabinom.cdf(counts, trials, alpha, beta)
    np.testing.assert_allclose(belief.count_cdf(counts, np.full(2, trials)), expected, rtol=1e-8, atol=1e-12)


@settings(max_examples=40)
@given(st.floats(-6, 6), st.floats(0, 6), st.integers(1, 12), st.data())
def test_the_count_under_a_normal_belief_is_a_binomial_mixture(mean, variance, trials, data):
    count = data.draw(st.integers(-1, trials))
    belief = Posterior(np.array([mean]), np.array([variance]))
    expected = normal_expectation(lambda g: stats.binom.cdf(count, trials, expit(g)), mean, variance)
    assert belief.count_cdf(np.array([count]), np.array([trials]))[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("steepness", [2.0, 2.1, 4.0, 4.1])
@pytest.mark.parametrize("trials", [8, 32, 256])
def test_a_count_gets_as_many_nodes_as_its_distribution_is_steep(trials, steepness):
    variance = steepness * 8 / trials
    for mean in (-3.0, 0.0, 1.0):
        for count in (0, trials // 3, trials - 1):
            belief = Posterior(np.array([mean, mean]), np.array([variance, 0.1 * variance]))
            expected = normal_expectation(lambda g, k=count: stats.binom.cdf(k, trials, expit(g)), mean, variance)
            got = belief.count_cdf(np.array([count, count]), np.array([trials, 1 + trials // 2]))[0]
            assert got == pytest.approx(expected, abs=3e-6)


def test_the_count_of_a_certain_prompt_is_certain():
    belief = Posterior(np.array([-800.0, 800.0, 800.0]), np.zeros(3))
    np.testing.assert_array_equal(belief.count_cdf(np.array([0, 7, 8]), np.full(3, 8)), [1, 0, 1])


@pytest.mark.parametrize("trials", [1, 4, 32])
def test_updating_is_the_rule_of_bayes(trials):
    """Against a fine grid of 200,001 logits; the Beta belief against its closed form, by way of the same grid."""
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(0, 2, 9), np.array([0.01, 0.1, 0.5, 1, 2, 3, 4, 6, 9])
    successes = rng.integers(0, trials + 1, 9)
    after = updated(Posterior(mean, variance), successes, np.full(9, trials))
    for q in range(9):
        g = mean[q] + np.sqrt(variance[q]) * np.linspace(-12, 12, 200_001)
        p = 1 / (1 + np.exp(-g))
        log_weights = -((g - mean[q]) ** 2) / (2 * variance[q]) + successes[q] * np.log(p)
        log_weights += (trials - successes[q]) * np.log1p(-p)
        weights = np.exp(log_weights - log_weights.max())
        weights /= weights.sum()
        assert after.success_probability()[q] == pytest.approx(weights @ p, abs=1e-9)
        assert after.expected_variance()[q] == pytest.approx(weights @ (p * (1 - p)), abs=1e-9)
        assert after.mean[q] == pytest.approx(weights @ g, abs=1e-6)
        assert after.variance[q] == pytest.approx(weights @ (g - weights @ g) ** 2, abs=1e-6)


def test_updating_twice_is_updating_once_with_the_sum():
    some, more = (np.array([0, 2, 5]), np.array([3, 4, 5])), (np.array([1, 0, 4]), np.array([2, 3, 9]))
    both = tuple(a + b for a, b in zip(some, more, strict=True))
    beta = BetaPosterior.from_counts(np.array([0.5, 2.0, 3.0]), np.array([0.7, 1.0, 4.0]))
    for belief in (Posterior(np.array([0.0, -2.0, 1.0]), np.array([0.0, 1.0, 5.0])), beta):
        one, two = updated(belief, *both), updated(updated(belief, *some), *more)
        np.testing.assert_allclose(two.success_probability(), one.success_probability(), rtol=1e-12)
        np.testing.assert_allclose(two.expected_variance(), one.expected_variance(), rtol=1e-12)
        np.testing.assert_allclose(two.variance, one.variance, rtol=1e-9)
    assert updated(Posterior(np.zeros(1), np.zeros(1)), np.array([3]), np.array([3])).success_probability() == [0.5]
    np.testing.assert_array_equal(beta.updated(*some).alpha, [0.5, 4.0, 8.0])
