"""How well the samples of one policy cover another: covariances of features, and the coverage number.

numpy and scipy alone. The number is standard; that the coverage paper (arXiv 2601.08421) watches this one is a
reconstruction.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from allotment.errors import InvalidInputError
from allotment.methods.objectives.optimal_design import RANK_TOLERANCE, checked_features
from allotment.types import FloatArray


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
    features_ND = checked_features(features_ND, zeros=True)
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


def _bad_weights(got: str, size: int) -> InvalidInputError:
    allowed = f"[{size}] group ids, [{size}] finite weights >= 0, some above 0 in each group"
    fix = "give one of each per row of features"
    return InvalidInputError("groups or weights do not fit the features", got=got, allowed=allowed, fix=fix)
