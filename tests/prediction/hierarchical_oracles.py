"""What the hierarchical predictor approximates recursively, done densely, in function space, or by brute force."""

import itertools

import numpy as np
from scipy.optimize import minimize
from scipy.spatial.distance import cdist, pdist
from scipy.special import expit, log_expit
from scipy.stats import multivariate_normal

from allotment.prediction.hierarchy import STARTING_PRECISION

EXACT = {
    "learn": False,
    "memory": np.inf,
    "level_drift": 0.0,
    "prompt_drift": 0.0,
    "unseen_variance": 0.7,
    "prompt_variance": 0.7,
}
"""No process noise, nothing learnt, one variance for a prompt's own effect."""


def kernel(x, *, scale, own, level, bandwidth=1.0):
    """[N, N] prior covariance of f: level, Gaussian process on embeddings, own effects."""
    x = np.asarray(x, dtype=np.float64)
    h = bandwidth * np.median(pdist(x))
    process = scale**2 * np.exp(-(cdist(x, x) ** 2) / (2 * h * h))
    return level + 1 / STARTING_PRECISION + process + own * np.eye(len(x))


def dense_posterior(covariance, mean, rows, values, noise):
    """Mean [N] and variance [N] of f ~ N(mean, covariance) after values at ``rows`` with independent noise."""
    gain = np.linalg.solve(covariance[np.ix_(rows, rows)] + np.diag(noise), covariance[rows]).T
    return mean + gain @ (values - mean), np.diag(covariance - gain @ covariance[rows])


def exact_moments(mean, variance, successes, trials):
    """Mean, variance and log normaliser of ``p^s (1 - p)^(n - s) N(f; mean, variance)`` for scalars, adaptively."""

    def log_density(f):
        return successes * log_expit(f) + (trials - successes) * log_expit(-f) - (f - mean) ** 2 / (2 * variance)

    reach = variance * trials + 12 * np.sqrt(variance)
    grid = np.linspace(mean - reach, mean + reach, 20_001)
    for _ in range(3):  # zoom in on where the density is
        relative = log_density(grid) - log_density(grid).max()
        inside = np.flatnonzero(relative > -60)
        grid = np.linspace(grid[max(inside[0] - 1, 0)], grid[min(inside[-1] + 1, len(grid) - 1)], 20_001)
    top = log_density(grid).max()
    weights = np.exp(log_density(grid) - top)
    total = np.trapezoid(weights, grid)
    new_mean = np.trapezoid(weights * grid, grid) / total
    new_variance = np.trapezoid(weights * (grid - new_mean) ** 2, grid) / total
    return new_mean, new_variance, top + np.log(total) - 0.5 * np.log(2 * np.pi * variance)


def dense_sites(mean, covariance, s, n):
    """Value and precision, both [B], of Gaussian likelihoods: Laplace's mode, one sweep of expectation propagation."""
    root = np.linalg.inv(covariance)
    f = minimize(
        lambda f: 0.5 * (f - mean) @ root @ (f - mean) - (s * log_expit(f) + (n - s) * log_expit(-f)).sum(),
        mean,
        jac=lambda f: root @ (f - mean) - (s - n * expit(f)),
        hess=lambda f: root + np.diag(n * expit(f) * expit(-f)),
        method="trust-exact",
        options={"gtol": 1e-8},
    ).x
    curvature = n * expit(f) * expit(-f)
    variance = np.diag(np.linalg.inv(root + np.diag(curvature)))
    before = 1 / variance - curvature
    pull = f / variance - curvature * f - (s - n * expit(f))
    tilted = np.array([exact_moments(m, v, *c) for m, v, *c in zip(pull / before, 1 / before, s, n, strict=True)])
    precision = 1 / tilted[:, 1] - before
    return (tilted[:, 0] / tilted[:, 1] - pull) / precision, precision


def brute_force(mean, covariance, s, n, points=121):
    """Posterior mean and variance of two or three logits on a grid of all of them; prompts without trials included."""
    deviation = np.sqrt(np.diag(covariance))
    axes = [m + d * np.linspace(-6, 6, points) for m, d in zip(mean, deviation, strict=True)]
    f = np.array(list(itertools.product(*axes)))
    log_density = multivariate_normal.logpdf(f, mean, covariance) + s @ log_expit(f).T + (n - s) @ log_expit(-f).T
    weights = np.exp(log_density - log_density.max())
    weights /= weights.sum()
    at = weights @ f
    return at, weights @ (f - at) ** 2
