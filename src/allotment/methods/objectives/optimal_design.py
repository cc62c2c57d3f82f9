"""Which candidates are worth a measurement, which pairs a label, and how well one policy's samples cover another.

G-optimal designs by Frank-Wolfe, covariances of features and the coverage number (numpy and scipy). The designs and the
number are standard; the preferential design, and that the coverage paper (arXiv 2601.08421) watches this number, are
reconstructions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh
from scipy.special import expit

from allotment.errors import InvalidInputError
from allotment.types import FloatArray, IntArray

SUPPORT_SHARE = 0.01
"""Candidates with less than this share of the largest weight are not counted as support."""
RANK_TOLERANCE = 1e-10
"""Directions with a singular value below this share of the largest are no part of the candidates' span."""
ROUNDING = 1e-12
"""Relative; closer to the optimum than this no step is taken."""


@dataclass(frozen=True, eq=False)
class Design:
    """A distribution over candidates, and how far it is from G-optimal."""

    weights_K: FloatArray
    """[K] >= 0, sum 1: how often each candidate is to be measured."""
    leverages_K: FloatArray
    """[K] ``z^T M(w)^-1 z`` of each candidate at these weights; ``weights_K @ leverages_K`` is the rank."""
    rank: int
    """d: dimensions that the candidates span."""
    iterations: int
    """Frank-Wolfe steps taken."""

    @property
    def gap(self) -> float:
        """Largest leverage minus the rank: >= 0, and 0 exactly at the optimum (Kiefer and Wolfowitz 1960).

        The largest leverage is at most ``1 + gap / rank`` times the least that any design reaches.
        """
        return float(self.leverages_K.max() - self.rank)

    @property
    def support(self) -> IntArray:
        """Indices of the candidates that have a weight to speak of; an optimum with d(d+1)/2 of them exists."""
        return np.flatnonzero(self.weights_K >= SUPPORT_SHARE * self.weights_K.max())


def leverages(candidates_KD: npt.ArrayLike, weights_K: npt.ArrayLike) -> FloatArray:
    """[K] leverage ``z^T M(w)^-1 z`` of each candidate, ``M(w) = sum_k w_k z_k z_k^T``, in the candidates' span.

    Any invertible linear map of the candidates leaves it as it is. Infinite for a candidate outside the span of those
    that have a weight.

    Raises:
        InvalidInputError: candidates [K, D] are empty, not finite or all 0; weights are negative or do not sum to 1.
    """
    basis_KR = _in_span(_checked_features(candidates_KD))
    chances_K = np.asarray(weights_K, dtype=np.float64)
    if chances_K.shape != basis_KR.shape[:1] or not (chances_K >= 0).all() or abs(chances_K.sum() - 1) > 1e-8:
        raise InvalidInputError(
            "the weights are no design of these candidates",
            got=f"shape {chances_K.shape}, sum {chances_K.sum()}",
            allowed=f"[{len(basis_KR)}] numbers >= 0 that sum to 1",
            fix="divide them by their sum",
        )
    return _leverages(basis_KR, chances_K)


def g_optimal_design(candidates_KD: npt.ArrayLike, *, iterations: int = 1000, tolerance: float = 0.01) -> Design:
    """The distribution over K candidates whose largest leverage is least, by Frank-Wolfe.

    A measurement of candidate z has information ``z z^T``; a design's largest leverage is the worst variance of a
    prediction, and is never below d, the rank. By Kiefer and Wolfowitz the design that reaches d is also D-optimal: no
    other has a larger ``det M(w)``. Each step adds the candidate of largest leverage g with the exact step
    ``(g / d - 1) / (g - 1)`` (Fedorov 1972), from equal weights. Candidates that span less than D dimensions are
    treated in their span, of which d is the dimension. O(iterations K d).

    Args:
        candidates_KD: [K, D] finite, not all 0; K may be below D.
        iterations: most steps.
        tolerance: stop when the largest leverage is at most ``(1 + tolerance) d``.

    Raises:
        InvalidInputError: there is no candidate, one is not finite, all are 0, or a setting is out of its range.
    """
    if iterations < 0 or not 0 <= tolerance < np.inf:
        raise InvalidInputError(
            "no such search for a design",
            got=f"iterations={iterations}, tolerance={tolerance}",
            allowed="iterations >= 0, a finite tolerance >= 0",
            fix="use the defaults",
        )
    basis_KR = _in_span(_checked_features(candidates_KD))
    size, rank = basis_KR.shape
    weights_K = np.full(size, 1 / size)
    if rank == 1:  # one direction: all weight on its longest candidate, which a step would divide by 0 to reach
        weights_K = np.eye(size)[int(np.argmax(np.abs(basis_KR)))]
    inverse_RR = np.linalg.inv((basis_KR * weights_K[:, None]).T @ basis_KR)
    leverages_K = np.einsum("kr,kr->k", basis_KR @ inverse_RR, basis_KR)
    enough, steps = (1 + max(tolerance, ROUNDING)) * rank, 0
    while steps < iterations and leverages_K.max() > enough:
        best = int(np.argmax(leverages_K))
        largest = leverages_K[best]
        step = (largest / rank - 1) / (largest - 1)
        weights_K *= 1 - step
        weights_K[best] += step
        ratio = step / (1 - step + step * largest)  # Sherman-Morrison
        towards_R = inverse_RR @ basis_KR[best]
        leverages_K = (leverages_K - ratio * (basis_KR @ towards_R) ** 2) / (1 - step)
        inverse_RR = (inverse_RR - ratio * np.outer(towards_R, towards_R)) / (1 - step)
        steps += 1
    weights_K /= weights_K.sum()
    return Design(weights_K, _leverages(basis_KR, weights_K), rank, steps)


def preferential_design(
    differences_KD: npt.ArrayLike, margins_K: npt.ArrayLike, *, iterations: int = 1000, tolerance: float = 0.01
) -> Design:
    """The design for comparisons: a label of pair z with margin m has information ``sigma'(m) z z^T``.

    ``differences_KD``: [K, D] difference of the features of each pair. ``margins_K``: [K] ``beta theta . z`` at the
    parameter at which the design is made; 0 everywhere gives the design that ignores it. Leverages include the factor
    ``sigma'(m)``, so that a pair whose outcome is certain is not asked for. A reconstruction: the paper names a
    preferential G-optimal design; its definition was not available. Otherwise as :func:`g_optimal_design`.

    Raises:
        InvalidInputError: as there, or margins do not fit.
    """
    differences_KD = _checked_features(differences_KD)
    margins_K = np.asarray(margins_K, dtype=np.float64)
    if margins_K.shape != differences_KD.shape[:1] or not np.isfinite(margins_K).all():
        raise InvalidInputError(
            "the margins do not fit the pairs",
            got=f"shape {margins_K.shape}, {int((~np.isfinite(margins_K)).sum())} not finite",
            allowed=f"[{len(differences_KD)}] finite numbers",
            fix="give beta theta . z of every pair",
        )
    slopes_K = expit(margins_K) * expit(-margins_K)
    scaled_KD = np.sqrt(slopes_K)[:, None] * differences_KD
    return g_optimal_design(scaled_KD, iterations=iterations, tolerance=tolerance)


def within_group_covariance(
    features_ND: npt.ArrayLike, group_ids_N: npt.ArrayLike | None = None, weights_N: npt.ArrayLike | None = None
) -> FloatArray:
    """[D, D] covariance of features, centred in each group (prompt), mean over the groups.

    Args:
        features_ND: [N, D] finite.
        group_ids_N: [N] whose rollout each is; one group if left out.
        weights_N: [N] importance weights >= 0, normalised in each group; equal ones if left out. With the ratio of the
            target's to the sampler's probability the covariance is an estimate of the target's.

    Raises:
        InvalidInputError: shapes do not fit, a value is not finite or a weight negative, or a group has no weight.
    """
    features_ND = _checked_features(features_ND, zeros=True)
    size = len(features_ND)
    groups_N = np.zeros(size) if group_ids_N is None else np.asarray(group_ids_N)
    shares_N = np.ones(size) if weights_N is None else np.asarray(weights_N, dtype=np.float64)
    if groups_N.shape != (size,) or shares_N.shape != (size,) or not (np.isfinite(shares_N) & (shares_N >= 0)).all():
        raise _bad_weights(f"group ids {groups_N.shape}, weights {shares_N.shape}", size)
    _, first_Q, rows_N = np.unique(groups_N, return_index=True, return_inverse=True)
    features_ND = features_ND - features_ND[first_Q[rows_N]]  # exactly 0 where a group's are all equal
    totals_Q = np.bincount(rows_N, shares_N)
    if not (totals_Q > 0).all():
        raise _bad_weights(f"{int((totals_Q == 0).sum())} groups whose weights are all 0", size)
    shares_N = shares_N / totals_Q[rows_N]
    means_QD = np.zeros((len(totals_Q), features_ND.shape[1]))
    np.add.at(means_QD, rows_N, shares_N[:, None] * features_ND)
    centred_ND = features_ND - means_QD[rows_N]
    return np.asarray((shares_N[:, None] * centred_ND).T @ centred_ND / len(totals_Q), dtype=np.float64)


def coverage_number(sampler_DD: npt.ArrayLike, target_DD: npt.ArrayLike, ridge: float = 0.0) -> float:
    """``lambda_max(Sigma_sampler^-1 Sigma_target)``: by how much the target varies more than the sampler, at most.

    1 where both are equal; infinite where the target varies in a direction in which the sampler does not. ``ridge``
    times the sampler's mean variance is added to both in every direction, so that few samples in many directions do not
    make it infinite.

    Raises:
        InvalidInputError: the covariances are not finite symmetric matrices of one shape, or the ridge is negative.
    """
    sampler, target = (np.asarray(matrix, dtype=np.float64) for matrix in (sampler_DD, target_DD))
    fits = sampler.ndim == 2 and sampler.shape == target.shape == sampler.T.shape and sampler.size > 0
    if not (fits and all(np.isfinite(m).all() and np.allclose(m, m.T) for m in (sampler, target)) and ridge >= 0):
        raise InvalidInputError(
            "no coverage number of these",
            got=f"covariances {sampler.shape} and {target.shape}, ridge {ridge}",
            allowed="two finite symmetric matrices [D, D], a ridge >= 0",
            fix="use within_group_covariance",
        )
    added = ridge * float(np.trace(sampler)) / len(sampler) * np.eye(len(sampler))
    sampler, target = sampler + added, target + added
    variances_D, axes_DD = np.linalg.eigh(sampler)
    seen_D = variances_D > RANK_TOLERANCE * max(variances_D[-1], 0.0)
    largest_unseen = np.linalg.norm(target @ axes_DD[:, ~seen_D]) if not seen_D.all() else 0.0
    if largest_unseen > RANK_TOLERANCE * np.linalg.norm(target):
        return float("inf")
    axes_DR = axes_DD[:, seen_D]
    if not axes_DR.size:
        return 1.0  # neither varies
    return float(eigh(axes_DR.T @ target @ axes_DR, np.diag(variances_D[seen_D]), eigvals_only=True)[-1])


def _checked_features(candidates_KD: npt.ArrayLike, *, zeros: bool = False) -> FloatArray:
    """[K, D] as an array of finite numbers; all 0 only with ``zeros``.

    Raises:
        InvalidInputError: it is none.
    """
    array_KD = np.asarray(candidates_KD, dtype=np.float64)
    empty = array_KD.ndim != 2 or not array_KD.size
    if empty or not np.isfinite(array_KD).all() or not (zeros or array_KD.any()):
        bad = 0 if empty else int((~np.isfinite(array_KD)).any(1).sum())
        raise InvalidInputError(
            "these features cannot be used",
            got=f"shape {array_KD.shape}, {bad} rows not finite" + ("" if empty or bad else ", all 0"),
            allowed="[K, D] finite numbers, K and D at least 1" + ("" if zeros else ", not all 0"),
            fix="leave out what is not finite; give one row of features per candidate",
        )
    return array_KD


def _in_span(candidates_KD: FloatArray) -> FloatArray:
    """[K, d] the candidates in coordinates of their span in which equal weights have M = I / K."""
    left_KR, sizes_R, _ = np.linalg.svd(candidates_KD, full_matrices=False)
    return np.ascontiguousarray(left_KR[:, sizes_R > RANK_TOLERANCE * sizes_R[0]], dtype=np.float64)


def _leverages(basis_KR: FloatArray, weights_K: FloatArray) -> FloatArray:
    information_RR = (basis_KR * weights_K[:, None]).T @ basis_KR
    values_R, axes_RR = np.linalg.eigh(information_RR)
    seen_R = values_R > RANK_TOLERANCE * values_R[-1]
    along_KR = (basis_KR @ axes_RR) ** 2
    outside_K = along_KR[:, ~seen_R].sum(1) > RANK_TOLERANCE * along_KR.sum(1)
    return np.where(outside_K, np.inf, (along_KR[:, seen_R] / values_R[seen_R]).sum(1))


def _bad_weights(got: str, size: int) -> InvalidInputError:
    allowed = f"[{size}] group ids, [{size}] finite weights >= 0, some above 0 in each group"
    fix = "give one of each per row of features"
    return InvalidInputError("groups or weights do not fit the features", got=got, allowed=allowed, fix=fix)
