"""Nystroem features: a Gaussian process of low rank on embeddings, through a few landmark prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from scipy.spatial.distance import pdist

from allotment.prompts.embeddings import EmbeddedPrompts, VectorArray, squared_distances
from allotment.types import FloatArray, IntArray, PromptId

KEPT = 8192
"""Most prompts whose features are kept from their plan to their outcomes: 34 MB."""
SMALL_POOL = 16_384
"""Up to so many registered prompts, features are kept for good: 17 MB, and 17 MB for each bandwidth."""
BLOCK_ROWS = 256
"""Prompts whose features are computed at once where they are kept: always so many, so that the last bits of a matrix
product do not depend on when prompts were registered."""
LEVEL_ONLY = np.array([[1.0], [0.0]])
"""Coefficients of level and drift (0 here) of a prompt."""
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
        points = prompts.rows(random.choice(count, min(count, 4 * rank), replace=False)).astype(np.float64)
        first = np.sort(np.unique(points, axis=0, return_index=True)[1])[:rank]
        return cls.at(points[first], factors_H)

    @property
    def rank(self) -> int:
        """M, the number of features of one bandwidth."""
        return len(self.points)

    @cached_property
    def _centred(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean of the points [D]; the points from there, -2 times [M, D], and their squared lengths [M]."""
        origin_D = self.points.mean(axis=0)
        points_MD = self.points - origin_D
        return origin_D, -2 * points_MD, np.einsum("md,md->m", points_MD, points_MD)

    def squares(self, vectors_QD: VectorArray) -> FloatArray:
        """[M, Q] squared distances of each embedding."""
        origin_D, points_MD, lengths_M = self._centred
        x_QD = vectors_QD - origin_D
        squares_MQ: FloatArray = points_MD @ x_QD.T
        squares_MQ += lengths_M[:, None]
        squares_MQ += np.einsum("qd,qd->q", x_QD, x_QD)
        return np.maximum(squares_MQ, 0.0, out=squares_MQ)

    def rows(self, squares_MQ: FloatArray, bandwidth: int) -> FloatArray:
        """[2 + M, Q] coefficients of level (1), drift (0) and the features' weights, from squared distances."""
        rows_FQ = np.empty((2 + self.rank, squares_MQ.shape[1]))
        rows_FQ[:2] = LEVEL_ONLY
        np.matmul(self.maps[bandwidth], _kernel(squares_MQ, self.bandwidths[bandwidth]), out=rows_FQ[2:])
        return rows_FQ

    def features(self, vectors_QD: VectorArray) -> Features:
        """Features of each embedding, for every bandwidth."""
        squares_MQ = self.squares(vectors_QD)
        return Features(lambda: _place(squares_MQ), lambda bandwidth: self.rows(squares_MQ, bandwidth))


class Features:
    """Features of Q prompts: those of a bandwidth are computed when they are first asked for.

    Args:
        place: what gives :attr:`place`.
        rows: from a bandwidth to what :meth:`rows` gives.
    """

    def __init__(self, place: Callable[[], FloatArray], rows: Callable[[int], FloatArray]) -> None:
        self._place, self._rows = place, cache(rows)

    def rows(self, bandwidth: int) -> FloatArray:
        """[2 + M, Q] coefficients of level (1), drift (0) and the features' weights."""
        return self._rows(bandwidth)

    @cached_property
    def place(self) -> FloatArray:
        """[Q] a number that is the same for equal embeddings and hardly for others."""
        return self._place()

    def take(self, rows_S: IntArray) -> Features:
        """Those of some of the prompts."""
        return Features(lambda: self.place[rows_S], lambda bandwidth: self.rows(bandwidth)[:, rows_S])


class Pool:
    """Features of registered prompts; those of a small pool are computed once."""

    def __init__(self, landmarks: Landmarks) -> None:
        self._landmarks = landmarks
        self._tables: dict[int | None, FloatArray] = {}

    def features(self, prompts: EmbeddedPrompts, rows_Q: IntArray) -> Features:
        """Those of some of the prompts."""
        if len(prompts) > SMALL_POOL:
            return self._landmarks.features(prompts.rows(rows_Q))
        return Features(
            lambda: self._table(prompts, None)[rows_Q, -1], lambda bandwidth: self._table(prompts, bandwidth)[rows_Q].T
        )

    def _table(self, prompts: EmbeddedPrompts, bandwidth: int | None) -> FloatArray:
        """[prompts, 2 + M] coefficients of a bandwidth; or [prompts, M + 1] squared distances, and places."""
        known = self._tables.get(bandwidth)
        if known is None or len(known) < len(prompts):
            full = 0 if known is None else len(known) // BLOCK_ROWS * BLOCK_ROWS  # the last may have got more prompts
            parts = [] if known is None else [known[:full]]
            for start in range(full, len(prompts), BLOCK_ROWS):
                rows = np.minimum(np.arange(start, start + BLOCK_ROWS), len(prompts) - 1)
                if bandwidth is None:
                    squares_MB = self._landmarks.squares(prompts.rows(rows))
                    block_FB = np.vstack([squares_MB, _place(squares_MB)])
                else:
                    squares_MB = np.ascontiguousarray(self._table(prompts, None)[rows, :-1].T)
                    block_FB = self._landmarks.rows(squares_MB, bandwidth)
                parts.append(np.ascontiguousarray(block_FB.T))  # a prompt's numbers side by side
            known = self._tables[bandwidth] = np.concatenate(parts)[: len(prompts)]
        return known


class Views:
    """Features of registered prompts; those of the prompts last asked for are kept until their outcomes come."""

    def __init__(self, landmarks: Landmarks | None = None) -> None:
        self.landmarks = landmarks
        self._pool = None if landmarks is None else Pool(landmarks)
        self._last: tuple[tuple[PromptId, ...], Features] | None = None

    def of(self, prompts: EmbeddedPrompts, ids: tuple[PromptId, ...]) -> Features | None:
        """None without landmarks; UnknownPromptError where a prompt is not registered."""
        if self._last is not None and self._last[0] == ids:
            return self._last[1]
        rows_Q = prompts.index.rows(ids)
        if self._pool is None:
            return None
        features = self._pool.features(prompts, rows_Q)
        self._last = (ids, features) if len(ids) <= KEPT else None
        return features


def _place(squares_MQ: FloatArray) -> FloatArray:
    return np.arange(1.0, len(squares_MQ) + 1) @ squares_MQ


def _kernel(squares: FloatArray, bandwidth: float) -> FloatArray:
    return np.asarray(np.exp(squares / (-2 * bandwidth * bandwidth)), dtype=np.float64)


def _inverse_root(kernel_MM: FloatArray) -> FloatArray:
    values_M, vectors_MM = np.linalg.eigh(kernel_MM)
    kept_M = values_M > EIGENVALUE_FLOOR * values_M[-1]
    scale_M = np.where(kept_M, 1 / np.sqrt(np.where(kept_M, values_M, 1.0)), 0.0)
    return np.asarray((vectors_MM * scale_M) @ vectors_MM.T, dtype=np.float64)
