"""Success counts as Gaussian likelihoods: against brute-force integrals and a dense inference in function space."""

import numpy as np
import pytest
from hierarchical_oracles import dense_sites, exact_moments
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import comb, expit
from scipy.stats import norm

from allotment.prediction.binomial import BatchPrior, _mode, _single_mode, binomial_sites, log_predictive

seeds = st.integers(0, 10**6)


def arrays(*values):
    return (np.array([value], dtype=float) for value in values)


def single(mean, variance, own):
    """A batch of one prompt: f = z + u, z of the rest of the variance."""
    return BatchPrior(np.array([mean]), np.sqrt([[variance - own]]), np.array([own]))


def batch_prior(seed, prompts=7, factors=3, scale=1.0):
    rng = np.random.default_rng(seed)
    root, own = scale * rng.normal(size=(factors, prompts)), scale * rng.uniform(0.1, 2, prompts)
    return BatchPrior(2 * rng.normal(size=prompts), root, own), rng


def moments(prior):
    """Prior mean [B] and covariance [B, B] of f."""
    return prior.mean, prior.root.T @ prior.root + np.diag(prior.variance)


def some_counts(rng, prompts):
    trials = rng.choice([1, 3, 8, 32], prompts)
    return rng.binomial(trials, rng.choice([0.0, 0.3, 0.9, 1.0], prompts)).astype(float), trials.astype(float)


COUNTS = [(4, 8), (0, 32), (32, 32), (0, 8), (1, 1), (0, 1), (31, 32), (1, 8)]


class TestLogPredictive:
    @pytest.mark.parametrize(
        ("variance", "tolerance"), [(1e-4, 1e-9), (1.0, 1e-8), (5.0, 1e-4), (9.0, 5e-4), (50.0, 0.03)]
    )
    @pytest.mark.parametrize("mean", [-6.0, -1.0, 0.0, 3.0])
    def test_it_is_the_integral(self, mean, variance, tolerance):
        for s, n in COUNTS:
            got = log_predictive(*arrays(mean, variance, s, n))[0]
            assert got == pytest.approx(exact_moments(mean, variance, s, n)[2], abs=tolerance)

    def test_the_reference_is_right(self):
        integral = quad(lambda f: expit(f) ** 3 * expit(-f) ** 5 * norm.pdf(f, 0.7, 2.0), -20, 20, epsabs=1e-13)[0]
        assert exact_moments(0.7, 4.0, 3, 8)[2] == pytest.approx(np.log(integral), abs=1e-9)

    @given(st.floats(-5, 5), st.floats(0.01, 5.0), st.integers(1, 32))
    def test_all_counts_together_are_certain(self, mean, variance, trials):
        s = np.arange(trials + 1.0)
        full = np.full(trials + 1, 1.0)
        log_p = log_predictive(mean * full, variance * full, s, trials * full)
        assert (comb(trials, s) * np.exp(log_p)).sum() == pytest.approx(1.0, abs=1e-4)

    @given(st.floats(-5, 5), st.floats(0.01, 4.0), st.integers(1, 12), st.data())
    def test_a_count_is_so_many_bernoulli_rows(self, mean, variance, trials, data):
        rows = data.draw(st.lists(st.booleans(), min_size=trials, max_size=trials))
        f = mean + np.sqrt(variance) * np.linspace(-9, 9, 4001)
        likelihood = np.prod([expit(f) if row else expit(-f) for row in rows], axis=0)
        expected = np.trapezoid(likelihood * norm.pdf(f, mean, np.sqrt(variance)), f)
        got = log_predictive(*arrays(mean, variance, sum(rows), trials))[0]
        assert got == pytest.approx(np.log(expected), abs=2e-4)

    def test_success_and_failure_are_symmetric(self):
        rng = np.random.default_rng(0)
        mean, variance, (s, n) = 3 * rng.normal(size=50), rng.uniform(0.1, 20, 50), some_counts(rng, 50)
        np.testing.assert_allclose(
            log_predictive(mean, variance, s, n), log_predictive(-mean, variance, n - s, n), rtol=1e-9
        )


class TestSingleMode:
    @given(
        seeds,
        st.sampled_from([1.0, 6.0, 40.0, 300.0]),
        st.sampled_from([1e-8, 1e-3, 1.0, 60.0, 1e5]),
        st.sampled_from([1, 8, 33, 10_000, 1_000_000]),
    )
    def test_it_is_where_the_density_is_flat(self, seed, reach, variance, trials):
        rng = np.random.default_rng(seed)
        share = np.array([0, 0, 1e-4, 0.1, 0.5, 0.9, 1, 1])
        mean, n = reach * rng.normal(size=8), np.full(8, float(trials))
        s, v = np.round(share * trials), variance * rng.uniform(0.5, 2, 8)
        f = _single_mode(mean, v, s, n, 1e-5)
        curvature = 1 / v + n * expit(f) * expit(-f)
        newton = ((f - mean) / v + n * expit(f) - s) / curvature
        assert (np.abs(newton) < 1e-6 / np.sqrt(curvature) + 1e-12 * np.abs(f)).all()


class TestSites:
    @pytest.mark.parametrize(("variance", "tolerance"), [(0.01, 1e-6), (1.0, 1e-6), (4.0, 1e-3), (9.0, 3e-3)])
    @pytest.mark.parametrize(("s", "n"), COUNTS)
    def test_a_single_prompt_gets_its_exact_moments(self, variance, tolerance, s, n):
        for mean in (-4.0, 0.0, 2.5):
            value, precision = binomial_sites(single(mean, variance, variance / 3), *arrays(s, n))
            after = 1 / (1 / variance + precision[0])
            expected = exact_moments(mean, variance, s, n)
            assert after * (mean / variance + precision[0] * value[0]) == pytest.approx(expected[0], abs=tolerance)
            assert after == pytest.approx(expected[1], rel=tolerance)

    @settings(max_examples=25)
    @given(seeds)
    def test_it_is_laplace_and_one_sweep_of_expectation_propagation(self, seed):
        prior, rng = batch_prior(seed)
        s, n = some_counts(rng, 7)
        mean, covariance = moments(prior)
        expected_value, expected_precision = dense_sites(mean, covariance, s, n)
        value, precision = binomial_sites(prior, s, n)
        np.testing.assert_allclose(precision, expected_precision, rtol=5e-3, atol=1e-3)
        np.testing.assert_allclose(value * precision, expected_value * expected_precision, rtol=5e-3, atol=5e-3)

    def test_the_order_of_prompts_does_not_matter(self):
        prior, rng = batch_prior(1)
        s, n = some_counts(rng, 7)
        order = rng.permutation(7)
        moved = BatchPrior(prior.mean[order], prior.root[:, order], prior.variance[order])
        for one, other in zip(binomial_sites(prior, s, n), binomial_sites(moved, s[order], n[order]), strict=True):
            np.testing.assert_allclose(one[order], other, rtol=1e-7, atol=1e-9)

    def test_success_and_failure_are_symmetric(self):
        prior, rng = batch_prior(2)
        s, n = some_counts(rng, 7)
        mirrored = BatchPrior(-prior.mean, prior.root, prior.variance)
        value, precision = binomial_sites(prior, s, n)
        other_value, other_precision = binomial_sites(mirrored, n - s, n)
        np.testing.assert_allclose(precision, other_precision, rtol=1e-7)
        np.testing.assert_allclose(value, -other_value, rtol=1e-6, atol=1e-7)


class TestNewton:
    """Damped Newton cannot diverge: a further step would move f by next to none of its standard deviation."""

    @settings(max_examples=60)
    @given(
        seeds,
        st.floats(-40, 40),
        st.sampled_from([1e-6, 1e-3, 1.0, 50.0, 1e4]),
        st.sampled_from([1e-6, 1e-3, 1.0, 50.0, 1e4]),
        st.sampled_from([1, 8, 32, 10_000, 1_000_000]),
    )
    def test_it_ends_at_the_mode_from_extreme_priors(self, seed, mean, own, common, trials):
        rng = np.random.default_rng(seed)
        root = np.sqrt(common) * np.vstack([np.ones(6), rng.normal(size=(2, 6))])
        prior = BatchPrior(mean + rng.normal(size=6), root, np.full(6, own))
        n = np.full(6, float(trials))
        s = np.round(n * np.array([0, 1, 1, 0, 0.5, rng.uniform()]))
        f = _mode(prior, s, n)
        at, covariance = moments(prior)
        p = expit(f)
        after = np.eye(6) + covariance * (n * p * (1 - p))
        newton = np.linalg.solve(after, at + covariance @ (s - n * p) - f)
        assert (np.abs(newton) < 0.05 * np.sqrt(np.diag(np.linalg.solve(after, covariance)))).all()
        value, precision = binomial_sites(prior, s, n)
        assert np.isfinite(value).all()
        assert np.isfinite(precision).all()
        assert (precision > 0).all()

    def test_no_prompt_disturbs_another(self):
        """Prompts that are independent given the prior get the sites that they would get alone."""
        means, own, s, n = np.array([-40.0, 0.0, 40.0, 3.0]), np.full(4, 4.0), [0, 8, 32, 0], [32, 8, 32, 1]
        prior = BatchPrior(means, np.zeros((1, 4)), own)
        value, precision = binomial_sites(prior, np.array(s, dtype=float), np.array(n, dtype=float))
        for i in range(4):
            alone = BatchPrior(means[[i]], np.zeros((1, 1)), own[[i]])
            lone_value, lone_precision = binomial_sites(alone, *arrays(s[i], n[i]))
            assert precision[i] == pytest.approx(lone_precision[0], rel=1e-6)
            assert precision[i] * value[i] == pytest.approx(lone_precision[0] * lone_value[0], rel=1e-6, abs=1e-12)
