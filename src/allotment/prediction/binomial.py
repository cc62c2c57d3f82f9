"""Success counts: checked, as Gaussian likelihoods of a logit, and how likely they were before they came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.special import expit, log_expit, logit

from allotment.errors import InvalidInputError
from allotment.prompts.ids import PromptIndex, canonical_ids
from allotment.types import FloatArray, IntArray, PromptId, PromptIds, gauss_hermite

NODES = 24
"""Quadrature nodes of a one-dimensional integral; enough here, where the integrand is centred on its mode."""
CURVATURE_FLOOR = 1e-10
"""Least curvature of a log likelihood, where a probability has underflown."""
LONGEST_MOVE = 32.0
"""How far the counts of one prompt may pull its f in one Newton step: where p has underflown, curvature is no guide."""
NEWTON_STEPS = 50
TOLERANCE = 1e-9
"""Newton's method ends when the log posterior density rises by less."""


def visits(
    ids: PromptIds, successes: Any, trials: Any, known: PromptIndex | None = None
) -> tuple[tuple[PromptId, ...], IntArray, IntArray]:
    """``(ids, successes, trials)`` of the prompts that were visited: those with at least one trial; all [B].

    Errors are those of :meth:`Predictor.observe`; every id must be in ``known``, where that is given.
    """
    plain = canonical_ids(ids)
    try:
        successes_Q, trials_Q = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            "counts are not numbers", got=error, allowed="whole numbers", fix="pass one count per prompt"
        ) from None
    if not successes_Q.shape == trials_Q.shape == (len(plain),):
        raise InvalidInputError(
            "counts and ids differ in length",
            got=f"{len(plain)} ids, successes {successes_Q.shape}, trials {trials_Q.shape}",
            allowed="one success count and one trial count per id",
            fix="pass aggregated counts: one entry per prompt",
        )
    whole = (np.floor(successes_Q) == successes_Q) & (np.floor(trials_Q) == trials_Q)
    good = whole & (successes_Q >= 0) & (successes_Q <= trials_Q) & (trials_Q < np.inf)
    if not good.all():
        i = int(good.argmin())
        raise InvalidInputError(
            "an observation is not a success count",
            got=f"{successes_Q[i]:g} successes in {trials_Q[i]:g} trials for prompt {plain[i]!r}",
            allowed="whole numbers with 0 <= successes <= trials",
            fix="count rollouts whose reward passes the success rule",
        )
    if known is not None:
        known.rows(plain)
    seen = np.flatnonzero(trials_Q > 0)
    return tuple(plain[i] for i in seen), successes_Q[seen].astype(np.int64), trials_Q[seen].astype(np.int64)


@dataclass(frozen=True, eq=False)
class BatchPrior:
    """The model of a batch before its outcomes: ``f = rows . z + offset + u``, z ~ N(mean, precision^-1)."""

    rows: FloatArray
    """[B, F]."""
    offset: FloatArray
    """[B]."""
    variance: FloatArray
    """[B] of the independent u, > 0."""
    mean: FloatArray
    """[F] of z = (c, d, w)."""
    precision: FloatArray
    """[F, F] of z."""


def drift_evidence(prior: BatchPrior, value_B: FloatArray, variance_B: FloatArray, drifts_J: FloatArray) -> FloatArray:
    """[J] log likelihood ratio of the batch if the variance of d were greater by ``drift``, against what it is.

    A move of d shifts all prompts alike, so it shows in the batch as a whole: matrix determinant and inversion lemmas.
    """
    rows_BF, ones_B = prior.rows / variance_B[:, None], 1 / variance_B
    factor = cholesky(prior.precision + prior.rows.T @ rows_BF, lower=True), True
    residual_B = value_B - prior.offset - prior.rows @ prior.mean
    explained_F = cho_solve(factor, rows_BF.T @ np.ones(len(value_B)))
    alpha = float(ones_B.sum() - explained_F @ (prior.rows.T @ ones_B))
    beta = float(residual_B @ ones_B - explained_F @ (rows_BF.T @ residual_B))
    ratio_J = np.maximum(1 + drifts_J * alpha, 1e-12)  # of the batch's covariance determinants
    return np.asarray(0.5 * (drifts_J * beta**2 / ratio_J - np.log(ratio_J)))


def log_predictive(mean: FloatArray, variance: FloatArray, successes: FloatArray, trials: FloatArray) -> FloatArray:
    """``log E[p^s (1 - p)^(n - s)]`` for ``logit p ~ N(mean, variance)``; all [B], the first two also [..., B].

    The binomial coefficient is left out. Gauss-Hermite quadrature around the mode of the integrand.
    """
    _, weights_BK, log_scale_B = _quadrature(mean, variance, successes, trials)
    return np.asarray(np.log(weights_BK.sum(axis=-1)) + log_scale_B)


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
    before_B = np.maximum(1 / variance_B - curvature_B, 1 / (_explained(prior, prior.precision) + prior.variance))
    pull_B = f_B / variance_B - (curvature_B * f_B + successes - trials * p_B)  # natural mean of what the others say
    mean_B, tilted_B = _tilted(pull_B / before_B, 1 / before_B, successes, trials)
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
        if value - before < TOLERANCE * max(1.0, 1e-4 * abs(value)):
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
    """Where a quadratic approximation at (z, u) has its maximum: Newton's, or a steeper one far from the mode."""
    f_B = prior.rows @ z_F + prior.offset + u_B
    p_B = expit(f_B)
    pull_B = successes - trials * p_B
    curvature_B = np.maximum(trials * p_B * (1 - p_B), np.maximum(np.abs(pull_B) / LONGEST_MOVE, CURVATURE_FLOOR))
    response_B = f_B - prior.offset + pull_B / curvature_B
    noise_B = prior.variance + 1 / curvature_B
    scaled_BF = prior.rows / noise_B[:, None]
    residual_B = response_B - prior.rows @ prior.mean
    factor = cholesky(prior.precision + prior.rows.T @ scaled_BF, lower=True), True
    to_z_F = prior.mean + cho_solve(factor, scaled_BF.T @ residual_B)
    return to_z_F, prior.variance / noise_B * (response_B - prior.rows @ to_z_F)


def _explained(prior: BatchPrior, precision_FF: FloatArray) -> FloatArray:
    """[B] variance of ``rows . z`` where z has this precision."""
    factor_FF = cholesky(precision_FF, lower=True)
    return np.asarray((solve_triangular(factor_FF, prior.rows.T, lower=True) ** 2).sum(axis=0))


def _marginal_variance(prior: BatchPrior, curvature_B: FloatArray) -> FloatArray:
    """[B] variance of f_q after Gaussian likelihoods of these precisions for the whole batch."""
    noise_B = prior.variance + 1 / curvature_B
    common_B = _explained(prior, prior.precision + prior.rows.T @ (prior.rows / noise_B[:, None]))
    rest_B = 1 / (1 + prior.variance * curvature_B)
    return np.asarray(prior.variance * rest_B + rest_B**2 * common_B)


def _tilted(
    mean_B: FloatArray, variance_B: FloatArray, successes: FloatArray, trials: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Mean and variance of ``p^s (1 - p)^(n - s) N(f; mean, variance)``; both [B]."""
    f_BK, weights_BK, _ = _quadrature(mean_B, variance_B, successes, trials)
    weights_BK /= weights_BK.sum(axis=1, keepdims=True)
    new_mean_B = (weights_BK * f_BK).sum(axis=1)
    return new_mean_B, (weights_BK * (f_BK - new_mean_B[:, None]) ** 2).sum(axis=1)


def _quadrature(
    mean_B: FloatArray, variance_B: FloatArray, successes: FloatArray, trials: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Nodes f [B, K] and weights [B, K] of the same density; their sum is its integral up to ``exp`` of a scale [B].

    Written to be quick, as dozens of candidate hyper-parameters are scored at every step: log(1 - p) is log p - f.
    """
    f_B = _single_mode(mean_B, variance_B, successes, trials)
    p_B = expit(f_B)
    spread_B = 1 / np.sqrt(trials * p_B * (1 - p_B) + 1 / variance_B)
    nodes_K, weights_K = gauss_hermite(NODES)
    f_BK = f_B[..., None] + spread_B[..., None] * nodes_K
    log_BK = trials[:, None] * log_expit(f_BK)
    log_BK -= (trials - successes)[:, None] * f_BK
    log_BK -= ((f_BK - mean_B[..., None]) * np.sqrt(0.5 / variance_B)[..., None]) ** 2
    log_BK += 0.5 * nodes_K**2 + np.log(weights_K)
    peak_B = log_BK.max(axis=-1)
    log_BK -= peak_B[..., None]
    return f_BK, np.exp(log_BK, out=log_BK), peak_B + np.log(spread_B) - 0.5 * np.log(variance_B)


def _single_mode(mean_B: FloatArray, variance_B: FloatArray, successes: FloatArray, trials: FloatArray) -> FloatArray:
    """[B] mode of the same density: the root of a slope that rises, curving up below 0 and down above.

    It lies between the prior's mean and the counts' logit. Newton's method from the point nearest 0 of that interval
    goes to it from one side, without overshooting, wherever it is.
    """
    with np.errstate(divide="ignore"):
        counts_B = logit(successes / trials)
    f_B = np.clip(0.0, np.minimum(mean_B, counts_B), np.maximum(mean_B, counts_B))
    for _ in range(NEWTON_STEPS):
        p_B = expit(f_B)
        slope_B = (f_B - mean_B) / variance_B + trials * p_B - successes
        step_B = slope_B / (1 / variance_B + trials * p_B * (1 - p_B))
        f_B = f_B - step_B
        if np.abs(step_B).max(initial=0.0) < TOLERANCE:
            break
    return np.asarray(f_B)
