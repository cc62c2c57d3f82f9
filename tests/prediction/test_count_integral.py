"""The predictive likelihood of counts against brute-force integration."""

import numpy as np
from scipy.special import log_expit, logsumexp

from allotment.prediction.binomial import log_predictive


def brute_force(mean, variance, successes, trials):
    """log of the integral on a grid sixty standard deviations to each side."""
    f = mean + np.sqrt(variance) * np.linspace(-60, 60, 20_001)
    log_likelihood = successes * log_expit(f) + (trials - successes) * log_expit(-f)
    log_prior = -0.5 * (f - mean) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)
    return logsumexp(log_prior + log_likelihood) + np.log(f[1] - f[0])


def test_every_prompt_of_a_batch_is_integrated_around_its_own_mode():
    """Counts that surprise beside counts that do not: searching one mode must not disturb another."""
    rng = np.random.default_rng(0)
    mean, variance = 1.5 * rng.standard_normal(400), np.minimum(np.exp(rng.standard_normal(400)), 12.0)
    trials = rng.integers(1, 200, 400)
    successes = rng.binomial(trials, rng.beta(0.3, 0.3, 400))
    exact = [brute_force(*row) for row in zip(mean, variance, successes, trials, strict=True)]
    got = log_predictive(mean, variance, successes.astype(float), trials.astype(float))
    np.testing.assert_allclose(got, exact, rtol=0, atol=1e-3)
