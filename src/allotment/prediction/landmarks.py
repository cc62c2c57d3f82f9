"""Nystroem features: a Gaussian process of low rank on embeddings, through a few landmark prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import pdist

from allotment.prediction.interpolation import squared_distances
from allotment.prompts.embeddings import EmbeddedPrompts
from allotment.types import FloatArray

EIGENVALUE_FLOOR = 1e-8
"""Directions of the landmarks' kernel below this share of the largest are left out: duplicates, or a wide kernel."""


@dataclass(frozen=True, eq=False)
class Landmarks:
    """M landmark embeddings and, for each of H bandwidths, the map from kernel values to orthonormal features.

    ``features(x) = K_MM^{-1/2} k_M(x)`` with ``k(x, z) = exp(-|x - z|^2 / (2 h^2))``, so that inner products of
    features are the Nystroem approximation of the kernel (Williams and Seeger, 2001), exact among the landmarks.
    """

    points: FloatArray
    """[M, D]."""
    bandwidths: FloatArray
    """[H] kernel bandwidths, in the unit of the embeddings."""
    maps: FloatArray
    """[H, M, M] ``K_MM^{-1/2}`` of each bandwidth."""

    @classmethod
    def at(cls, points_MD: FloatArray, factors_H: FloatArray) -> Landmarks:
        """Landmarks at these points; bandwidths are ``factors`` times the median distance between two of them."""
        median = float(np.median(pdist(points_MD))) if len(points_MD) > 1 else 0.0
        bandwidths_H = factors_H * (median if median > 0 else 1.0)
        squares_MM = squared_distances(points_MD, points_MD)
        np.fill_diagonal(squares_MM, 0.0)
        return cls(points_MD, bandwidths_H, np.stack([_inverse_root(_kernel(squares_MM, h)) for h in bandwidths_H]))

    @classmethod
    def drawn(cls, prompts: EmbeddedPrompts, rank: int, factors_H: FloatArray, seed: int) -> Landmarks:
        """Landmarks at up to ``rank`` distinct embeddings of ``prompts``, drawn at random; see :meth:`at`."""
        random, count = np.random.default_rng(seed), len(prompts)
        points = prompts.rows(random.choice(count, min(count, 4 * rank), replace=False))
        first = np.sort(np.unique(points, axis=0, return_index=True)[1])[:rank]
        return cls.at(points[first], factors_H)

    @property
    def rank(self) -> int:
        """M, the number of features of one bandwidth."""
        return len(self.points)

    def features(self, x_QD: FloatArray) -> FloatArray:
        """[H, Q, M] features of each embedding for each bandwidth."""
        squares_QM = squared_distances(x_QD, self.points)
        return np.stack([_kernel(squares_QM, h) @ m for h, m in zip(self.bandwidths, self.maps, strict=True)])


def _kernel(squares: FloatArray, bandwidth: float) -> FloatArray:
    return np.asarray(np.exp(squares / (-2 * bandwidth * bandwidth)), dtype=np.float64)


def _inverse_root(kernel_MM: FloatArray) -> FloatArray:
    values_M, vectors_MM = np.linalg.eigh(kernel_MM)
    kept_M = values_M > EIGENVALUE_FLOOR * values_M[-1]
    scale_M = np.where(kept_M, 1 / np.sqrt(np.where(kept_M, values_M, 1.0)), 0.0)
    return np.asarray((vectors_MM * scale_M) @ vectors_MM.T, dtype=np.float64)
