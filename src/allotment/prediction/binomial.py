"""Success counts: checked, as Gaussian likelihoods of a logit, and how likely they were before they came."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
from scipy.linalg.blas import dtrsm
from scipy.linalg.lapack import dpotrf, dpotrs

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
AT_ONCE = 512
"""Prompts whose likelihoods are computed at once: their nodes fit into the cache."""
CLOSE = 0.03
"""The mode of a single prompt is found where Newton's step is less: what is left is far below the nodes' distance."""
TOLERANCE = 1e-7
"""Newton's method ends where the log posterior density can rise by no more: f is off by 5e-4 standard deviations."""


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
    seen_Q = trials_Q > 0
    if not seen_Q.all():
        plain, successes_Q, trials_Q = tuple(compress(plain, seen_Q)), successes_Q[seen_Q], trials_Q[seen_Q]
    return plain, successes_Q.astype(np.int64), trials_Q.astype(np.int64)


@dataclass(frozen=True, eq=False)
class BatchPrior:
    """The model of a batch before its outcomes: ``f = mean + root' y + u``, y ~ N(0, 1), u ~ N(0, variance)."""

    mean: FloatArray
    """[B] of f."""
    root: FloatArray
    """[F, B]; ``root' root`` is the covariance of what prompts have in common."""
    variance: FloatArray
    """[B] of the independent u, > 0."""

    @property
    def total_variance(self) -> FloatArray:
        """[B] of f."""
        return squared_norms(self.root) + self.variance


def squared_norms(columns_FB: FloatArray) -> FloatArray:
    """[B] squared length of each column."""
    return np.asarray(np.einsum("fb,fb->b", columns_FB, columns_FB))


def cholesky(matrix_FF: FloatArray) -> FloatArray:
    """[F, F] whose lower triangle is the Cholesky factor, for :func:`whitened` and :func:`solved`.

    LAPACK itself, as NumPy's takes longer to call than to compute where F is 2. LinAlgError where there is none.
    """
    factor_FF, failed = dpotrf(matrix_FF.T, lower=1, clean=0)
    if failed:
        raise np.linalg.LinAlgError("the matrix is not positive definite")
    return np.asarray(factor_FF)


def whitened(factor_FF: FloatArray, columns_FB: FloatArray) -> FloatArray:
    """[F, B] ``factor^-1 columns``; ``squared_norms`` of it are variances."""
    if columns_FB.flags.f_contiguous:
        return np.asarray(dtrsm(1.0, factor_FF, columns_FB, lower=1))
    return np.asarray(dtrsm(1.0, factor_FF, columns_FB.T, side=1, lower=1, trans_a=1).T)


def solved(factor_FF: FloatArray, vector_F: FloatArray) -> FloatArray:
    """[F] ``(factor factor')^-1 vector``."""
    return np.asarray(dpotrs(factor_FF, vector_F, lower=1)[0])


def _posterior_factor(prior: BatchPrior, noise_B: FloatArray) -> FloatArray:
    """[F, F] Cholesky factor of the precision of y after values of f with u and noise of this variance."""
    scaled_FB = prior.root / np.sqrt(noise_B)
    precision_FF = scaled_FB @ scaled_FB.T
    precision_FF.flat[:: len(precision_FF) + 1] += 1.0
    return cholesky(precision_FF)


def drift_evidence(prior: BatchPrior, value_B: FloatArray, variance_B: FloatArray, drifts_J: FloatArray) -> FloatArray:
    """[J] log likelihood ratio of the batch if the variance of d were greater by ``drift``, against what it is.

    A move of d shifts all prompts alike, so it shows in the batch as a whole: matrix determinant and inversion lemmas.
    ``variance``: of the values, u included.
    """
    ones_B, residual_B = 1 / variance_B, (value_B - prior.mean) / variance_B
    explained_F = solved(_posterior_factor(prior, variance_B), prior.root @ ones_B)
    alpha = float(ones_B.sum() - explained_F @ (prior.root @ ones_B))
    beta = float(residual_B.sum() - explained_F @ (prior.root @ residual_B))
    ratio_J = np.maximum(1 + drifts_J * alpha, 1e-12)  # of the batch's covariance determinants
    return np.asarray(0.5 * (drifts_J * beta**2 / ratio_J - np.log(ratio_J)))


def log_predictive(mean: FloatArray, variance: FloatArray, successes: FloatArray, trials: FloatArray) -> FloatArray:
    """``log E[p^s (1 - p)^(n - s)]`` for ``logit p ~ N(mean, variance)``; all [B].

    The binomial coefficient is left out. Gauss-Hermite quadrature around the mode of the integrand.
    """
    mode = _single_mode(mean, variance, successes, trials, CLOSE)
    return np.asarray(_tilted(mode, mean, variance, successes, trials)[0], dtype=np.float64)


def binomial_sites(prior: BatchPrior, successes: FloatArray, trials: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Gaussian likelihoods (value, precision) of f_q that stand for the counts of a batch; all [B].

    Damped Newton to the joint mode of the batch (the log posterior is concave: halving the step until it rises cannot
    diverge), then one sweep of expectation propagation from there: each prompt's Gaussian likelihood is replaced by the
    one that gives the mean and variance of the exact binomial likelihood times what all others say. At a count of 0 or
    n the mode alone would be biased. A single prompt gets its exact posterior moments.
    """
    f_B = _mode(prior, successes, trials)
    p_B, curvature_B = _logistic(f_B)
    curvature_B = np.maximum(trials * curvature_B, CURVATURE_FLOOR)
    variance_B = _marginal_variance(prior, curvature_B)
    before_B = np.maximum(1 / variance_B - curvature_B, 1 / prior.total_variance)
    pull_B = f_B / variance_B - (curvature_B * f_B + successes - trials * p_B)  # natural mean of what the others say
    # of the counts of a prompt times what the others say, f at the joint mode is the mode as well
    _, mean_B, tilted_B = _tilted(f_B, pull_B / before_B, 1 / before_B, successes, trials, moments=True)
    precision_B = np.maximum(1 / tilted_B - before_B, CURVATURE_FLOOR)
    return (mean_B / tilted_B - pull_B) / precision_B, precision_B


def _mode(prior: BatchPrior, successes: FloatArray, trials: FloatArray) -> FloatArray:
    """[B] f at the joint mode of y and u; the first step is taken from the modes that the prompts would have alone."""
    alone_B = _single_mode(prior.mean, prior.total_variance, successes, trials, CLOSE)
    y_F, u_B = _newton_target(prior, alone_B, successes, trials)
    for _ in range(NEWTON_STEPS):
        f_B = prior.mean + y_F @ prior.root + u_B
        if _rise_left(prior, y_F, u_B, f_B, successes, trials) < TOLERANCE:
            break
        to_y_F, to_u_B = _newton_target(prior, f_B, successes, trials)
        step, before = 1.0, _log_posterior(prior, y_F, u_B, successes, trials)
        while step > TOLERANCE:
            new_y_F, new_u_B = y_F + step * (to_y_F - y_F), u_B + step * (to_u_B - u_B)
            if _log_posterior(prior, new_y_F, new_u_B, successes, trials) >= before:
                break
            step /= 2
        else:  # nothing but the last bits is left
            break
        y_F, u_B = new_y_F, new_u_B
    return f_B


def _rise_left(
    prior: BatchPrior, y_F: FloatArray, u_B: FloatArray, f_B: FloatArray, successes: FloatArray, trials: FloatArray
) -> float:
    """Upper bound of what the log posterior density can rise from (y, u): it curves at least as much as the prior's."""
    pull_B = successes - trials * _logistic(f_B)[0]
    slope_F, slope_B = prior.root @ pull_B - y_F, pull_B - u_B / prior.variance
    return 0.5 * float(slope_F @ slope_F + slope_B @ (prior.variance * slope_B))


def _log_posterior(
    prior: BatchPrior, y_F: FloatArray, u_B: FloatArray, successes: FloatArray, trials: FloatArray
) -> float:
    """Logarithm of the density at (y, u)."""
    f_B = prior.mean + y_F @ prior.root + u_B
    likelihood = float(_log_likelihood(f_B, successes, trials).sum())
    return likelihood - 0.5 * float(y_F @ y_F + (u_B**2 / prior.variance).sum())


def _newton_target(
    prior: BatchPrior, f_B: FloatArray, successes: FloatArray, trials: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """(y, u) where a quadratic approximation at f has its maximum: Newton's, or a steeper one far from the mode."""
    p_B, curvature_B = _logistic(f_B)
    pull_B = successes - trials * p_B
    curvature_B = np.maximum(trials * curvature_B, np.maximum(np.abs(pull_B) / LONGEST_MOVE, CURVATURE_FLOOR))
    response_B = f_B - prior.mean + pull_B / curvature_B
    noise_B = prior.variance + 1 / curvature_B
    y_F = solved(_posterior_factor(prior, noise_B), prior.root @ (response_B / noise_B))
    return y_F, prior.variance / noise_B * (response_B - y_F @ prior.root)


def _marginal_variance(prior: BatchPrior, curvature_B: FloatArray) -> FloatArray:
    """[B] variance of f_q after Gaussian likelihoods of these precisions for the whole batch."""
    factor_FF = _posterior_factor(prior, prior.variance + 1 / curvature_B)
    rest_B = 1 / (1 + prior.variance * curvature_B)
    return prior.variance * rest_B + rest_B**2 * squared_norms(whitened(factor_FF, prior.root))


def _tilted(
    mode_B: FloatArray,
    mean_B: FloatArray,
    variance_B: FloatArray,
    successes: FloatArray,
    trials: FloatArray,
    *,
    moments: bool = False,
) -> FloatArray:
    """[1, B] logarithm of the integral of ``p^s (1 - p)^(n - s) N(f; mean, variance)``, or [3, B] ``moments``: with it
    mean and variance of f under that density, whose mode is ``mode``, nearly.

    Written to be quick, as dozens of candidate hyper-parameters are scored at every step: as many prompts at once as
    their nodes fit into the cache, in place, and relative to the density at its mode.
    """
    precision_B = 1 / variance_B
    spread_B = 1 / np.sqrt(trials * _logistic(mode_B)[1] + precision_B)
    at_mode_B, slope_B = _log_likelihood(mode_B, successes, trials), (mode_B - mean_B) * precision_B
    nodes_K, weights_K = gauss_hermite(NODES)
    nodes_K1, weights_K1 = nodes_K[:, None], (weights_K * np.exp(0.5 * nodes_K**2))[:, None]
    result = np.empty((3 if moments else 1, len(mean_B)))
    for start in range(0, len(mean_B), AT_ONCE):
        b = slice(start, start + AT_ONCE)
        away_Kb = nodes_K1 * spread_B[b]
        log_Kb = _log_likelihood(away_Kb + mode_B[b], successes[b], trials[b])
        log_Kb -= at_mode_B[b]
        log_Kb -= away_Kb * (away_Kb * (0.5 * precision_B[b]) + slope_B[b])
        weights_Kb = np.exp(log_Kb, out=log_Kb)
        weights_Kb *= weights_K1
        result[0, b] = total_b = weights_Kb.sum(axis=0)
        if moments:
            result[1, b] = mean_b = (weights_Kb * away_Kb).sum(axis=0) / total_b
            result[2, b] = (weights_Kb * (away_Kb - mean_b) ** 2).sum(axis=0) / total_b
    result[0] = np.log(result[0] * spread_B * np.sqrt(precision_B)) + at_mode_B - 0.5 * slope_B * (mode_B - mean_B)
    result[1:2] += mode_B
    return result


def _single_mode(
    mean_B: FloatArray, variance_B: FloatArray, successes: FloatArray, trials: FloatArray, close: float
) -> FloatArray:
    """[B] mode of the same density: the root of a slope that rises, curving up below 0 and down above.

    Newton's method on the root's side of 0 comes to it from one side after at most one step beyond it. The start is the
    root with ``exp(f)`` in place of p, by an approximation of Lambert's W; mirrored where successes are more than half.
    """
    sign_B, precision_B = np.where(2 * successes > trials, -1.0, 1.0), 1 / variance_B
    mean_B, rarer_B = sign_B * mean_B, np.minimum(successes, trials - successes)
    is_positive_B = trials / 2 - rarer_B < mean_B * precision_B
    low_B, high_B = np.where(is_positive_B, 0.0, -np.inf), np.where(is_positive_B, np.inf, 0.0)
    without_B = mean_B + rarer_B * variance_B
    w_B = np.logaddexp(0.0, np.log(trials * variance_B) + without_B)
    f_B = without_B - w_B * (1 - np.log1p(w_B) / (2 + w_B))
    for _ in range(NEWTON_STEPS):
        f_B = np.minimum(np.maximum(f_B, low_B), high_B)
        p_B, curvature_B = _logistic(f_B)
        slope_B = (f_B - mean_B) * precision_B + trials * p_B - rarer_B
        step_B = slope_B / (precision_B + trials * curvature_B)
        f_B = f_B - step_B
        if np.abs(step_B).max(initial=0.0) < close:  # what is left after a step is of the order of its square
            break
    return np.asarray(sign_B * f_B)


def _logistic(f: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The probability p and p (1 - p) at the logit ``f``, several times as quick as by scipy's ``expit``."""
    odds = np.exp(np.minimum(f, 500.0))  # beyond, p is 1 and the odds would overflow
    failure = 1 / (1 + odds)
    p = odds * failure
    return p, p * failure


def _log_likelihood(f: FloatArray, successes: FloatArray, trials: FloatArray) -> FloatArray:
    """``s log p + (n - s) log(1 - p)`` at the logit ``f``, [..., B], precise also where it is next to 0."""
    log = np.abs(f)
    np.negative(log, out=log)
    np.log1p(np.exp(log, out=log), out=log)  # of 1 / max(p, 1 - p)
    log *= -trials
    log -= np.maximum((trials - successes) * f, -successes * f)
    return log
