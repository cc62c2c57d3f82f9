"""Success counts as Gaussian likelihoods of a logit, and their predictive log likelihood."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.special import expit, log_expit, logsumexp

from allotment.prediction.hierarchy import BatchPrior
from allotment.types import FloatArray

NODES = 24
"""Quadrature nodes of a one-dimensional integral; enough here, where the integrand is centred on its mode."""
CURVATURE_FLOOR = 1e-10
"""Least curvature of a log likelihood, where a probability has underflown."""
NEWTON_STEPS = 50
TOLERANCE = 1e-9
"""Newton's method ends when the log posterior density rises by less."""


def log_predictive(mean: FloatArray, variance: FloatArray, successes: FloatArray, trials: FloatArray) -> FloatArray:
    """``log E[p^s (1 - p)^(n - s)]`` for ``logit p ~ N(mean, variance)``; all [B].

    The binomial coefficient is left out. Gauss-Hermite quadrature around the mode of the integrand.
    """
    return _tilted(mean, variance, successes, trials)[2]


def binomial_sites(prior: BatchPrior, successes: FloatArray, trials: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Gaussian likelihoods (value, precision) of f_q that stand for the counts of a batch; all [B].

    Damped Newton to the joint mode of the batch (the log posterior is concave: halving the step until it rises cannot
    diverge), then one sweep of expectation propagation from there: each prompt's Gaussian likelihood is replaced by the
    one that gives the mean and variance of the exact binomial likelihood times what all others say. At a count of 0 or
    n the mode alone would be biased. A single prompt gets its exact posterior moments.
    """
    f_B = _mode(prior, successes, trials)
    p_B = expit(f_B)
    curvature_B = np.maximum(trials * p_B * (1 - p_B), CURVATURE_FLOOR)
    variance_B = _marginal_variance(prior, curvature_B)
    before_B = np.maximum(1 / variance_B - curvature_B, 1 / _prior_variance(prior))
    pull_B = f_B / variance_B - (curvature_B * f_B + successes - trials * p_B)  # natural mean of what the others say
    mean_B, tilted_B, _ = _tilted(pull_B / before_B, 1 / before_B, successes, trials)
    precision_B = np.maximum(1 / tilted_B - before_B, CURVATURE_FLOOR)
    return (mean_B / tilted_B - pull_B) / precision_B, precision_B


def _mode(prior: BatchPrior, successes: FloatArray, trials: FloatArray) -> FloatArray:
    """[B] f at the joint mode of z and u."""
    z_F, u_B = prior.mean, np.zeros(len(successes))
    value = _log_posterior(prior, z_F, u_B, successes, trials)
    for _ in range(NEWTON_STEPS):
        to_z_F, to_u_B = _newton_target(prior, z_F, u_B, successes, trials)
        step, before = 1.0, value
        while True:
            new_z_F, new_u_B = z_F + step * (to_z_F - z_F), u_B + step * (to_u_B - u_B)
            value = _log_posterior(prior, new_z_F, new_u_B, successes, trials)
            if value >= before or step < TOLERANCE:
                break
            step /= 2
        if value < before:
            break
        z_F, u_B = new_z_F, new_u_B
        if value - before < TOLERANCE * max(1.0, abs(value)):
            break
    return np.asarray(prior.rows @ z_F + prior.offset + u_B)


def _log_posterior(
    prior: BatchPrior, z_F: FloatArray, u_B: FloatArray, successes: FloatArray, trials: FloatArray
) -> float:
    f_B, move_F = prior.rows @ z_F + prior.offset + u_B, z_F - prior.mean
    likelihood = successes * log_expit(f_B) + (trials - successes) * log_expit(-f_B)
    return float(likelihood.sum() - 0.5 * (move_F @ prior.precision @ move_F) - 0.5 * (u_B**2 / prior.variance).sum())


def _newton_target(
    prior: BatchPrior, z_F: FloatArray, u_B: FloatArray, successes: FloatArray, trials: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Where the quadratic approximation at (z, u) has its maximum."""
    f_B = prior.rows @ z_F + prior.offset + u_B
    p_B = expit(f_B)
    curvature_B = np.maximum(trials * p_B * (1 - p_B), CURVATURE_FLOOR)
    response_B = f_B - prior.offset + (successes - trials * p_B) / curvature_B
    noise_B = prior.variance + 1 / curvature_B
    scaled_BF = prior.rows / noise_B[:, None]
    residual_B = response_B - prior.rows @ prior.mean
    factor = cholesky(prior.precision + prior.rows.T @ scaled_BF, lower=True), True
    to_z_F = prior.mean + cho_solve(factor, scaled_BF.T @ residual_B)
    return to_z_F, prior.variance / noise_B * (response_B - prior.rows @ to_z_F)


def _prior_variance(prior: BatchPrior) -> FloatArray:
    factor_FF = cholesky(prior.precision, lower=True)
    return np.asarray((solve_triangular(factor_FF, prior.rows.T, lower=True) ** 2).sum(axis=0) + prior.variance)


def _marginal_variance(prior: BatchPrior, curvature_B: FloatArray) -> FloatArray:
    """[B] variance of f_q after Gaussian likelihoods of these precisions for the whole batch."""
    noise_B = prior.variance + 1 / curvature_B
    factor_FF = cholesky(prior.precision + prior.rows.T @ (prior.rows / noise_B[:, None]), lower=True)
    common_B = (solve_triangular(factor_FF, prior.rows.T, lower=True) ** 2).sum(axis=0)
    rest_B = 1 / (1 + prior.variance * curvature_B)
    return np.asarray(prior.variance * rest_B + rest_B**2 * common_B)


@lru_cache(maxsize=1)
def _gauss_hermite() -> tuple[FloatArray, FloatArray]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    return nodes, np.log(weights / weights.sum())


def _tilted(
    mean_B: FloatArray, variance_B: FloatArray, successes: FloatArray, trials: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean, variance and log normaliser of ``p^s (1 - p)^(n - s) N(f; mean, variance)``; all [B]."""
    f_B = _single_mode(mean_B, variance_B, successes, trials)
    p_B = expit(f_B)
    spread_B = 1 / np.sqrt(trials * p_B * (1 - p_B) + 1 / variance_B)
    nodes_K, log_weights_K = _gauss_hermite()
    f_BK = f_B[:, None] + spread_B[:, None] * nodes_K
    log_BK = successes[:, None] * log_expit(f_BK) + (trials - successes)[:, None] * log_expit(-f_BK)
    log_BK += -0.5 * (f_BK - mean_B[:, None]) ** 2 / variance_B[:, None] + 0.5 * nodes_K**2 + log_weights_K
    total_B = logsumexp(log_BK, axis=1)
    weights_BK = np.exp(log_BK - total_B[:, None])
    new_mean_B = (weights_BK * f_BK).sum(axis=1)
    new_variance_B = (weights_BK * (f_BK - new_mean_B[:, None]) ** 2).sum(axis=1)
    return new_mean_B, new_variance_B, total_B + np.log(spread_B) - 0.5 * np.log(variance_B)


def _single_mode(mean_B: FloatArray, variance_B: FloatArray, successes: FloatArray, trials: FloatArray) -> FloatArray:
    """[B] mode of the same density. The root of a rising function, bracketed: Newton inside, bisection outside."""
    low_B = mean_B - variance_B * (trials - successes)
    high_B = mean_B + variance_B * successes
    f_B = mean_B
    for _ in range(NEWTON_STEPS):
        p_B = expit(f_B)
        slope_B = (f_B - mean_B) / variance_B + trials * p_B - successes
        low_B, high_B = np.where(slope_B < 0, f_B, low_B), np.where(slope_B > 0, f_B, high_B)
        new_B = f_B - slope_B / (1 / variance_B + trials * p_B * (1 - p_B))
        new_B = np.where((new_B > low_B) & (new_B < high_B), new_B, 0.5 * (low_B + high_B))
        if np.abs(new_B - f_B).max(initial=0.0) < TOLERANCE:
            break
        f_B = new_B
    return f_B
