"""Features of prompts: what can be counted in a text, beside its embedding, which knows topic rather than difficulty;
and Nystroem features, a Gaussian process of low rank on embeddings, through a few landmark prompts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist

from allotment.errors import InvalidInputError, StateError
from allotment.prompts.embeddings import EmbeddedPrompts, VectorArray, as_numbers, check_vectors, squared_distances
from allotment.types import FloatArray, IntArray, PromptId

PATTERNS = {
    "characters": r".",
    "words": r"\S+",
    "numbers": r"\d+",
    "dollars": r"\$",
    "backslashes": r"\\",
    "fractions": r"frac|/",
    "questions": r"\?",
    "relations": r"[=<>]",
    "brackets": r"[()\[\]{}]",
    "bars": r"\|",
    "all": r"\ball\b",
    "prove": r"\bprove\b|\bshow that\b",
    "find": r"\bfind\b|\bdetermine\b",
    "how many": r"\bhow many\b",
    "compute": r"\bvalue\b|\bcalculate\b|\bcompute\b|\bevaluate\b",
}
"""Regular expressions whose occurrences are counted, case ignored."""
_COMPILED = [re.compile(pattern, re.IGNORECASE | re.DOTALL) for pattern in PATTERNS.values()]


def distinct_parts(texts: Sequence[str]) -> list[str]:
    """``texts`` without what all of them begin and end with, such as a chat template or instructions.

    Cut at white space only, so that no word is halved. Texts that are all equal, or fewer than two, stay as they are.
    """
    if len(set(texts)) < 2:
        return list(texts)
    start = _shared_words(texts)
    rest = [text[start:] for text in texts]
    end = _shared_words([text[::-1] for text in rest])
    return [text[: len(text) - end] for text in rest]


def _shared_words(texts: Sequence[str]) -> int:
    """Length of the common beginning, up to its last white space."""
    first, last = min(texts), max(texts)  # what these two share, all between them share
    both = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return max((i + 1 for i, (character, _) in enumerate(both) if character.isspace()), default=0)


def text_features(texts: Sequence[str]) -> FloatArray:
    """``log(1 + count)`` of each of :data:`PATTERNS`, and of the digits of the longest number; [M, 16].

    Args:
        texts: [M] prompts without what all of them share, see :func:`distinct_parts`.

    Raises:
        InvalidInputError: ``texts`` is not a sequence of strings.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InvalidInputError(
            "texts are not a list of strings", got=type(texts).__name__, allowed="list of str", fix="[text]"
        )
    longest = [max(map(len, re.findall(r"\d+", text)), default=0) for text in texts]
    rows = [[*(len(p.findall(text)) for p in _COMPILED), digits] for text, digits in zip(texts, longest, strict=True)]
    return np.log1p(np.array(rows, dtype=np.float64).reshape(len(rows), len(PATTERNS) + 1))


def scale_beside(features_MF: npt.NDArray[np.floating], embeddings_MD: npt.NDArray[np.floating]) -> FloatArray:
    """[F] factors that make every feature count the same, and all of them together as much as the embeddings.

    Prompts then lie, on average, as far from each other by their features as by their embeddings. Features that do
    not vary get 1.
    """
    distance = float(np.sqrt(embeddings_MD.var(axis=0, dtype=np.float64).sum()))
    spread_F = features_MF.std(axis=0, dtype=np.float64)
    varies_F = spread_F > 0
    unit = (distance if distance > 0 else 1.0) / np.sqrt(features_MF.shape[1])
    return np.where(varies_F, unit / np.where(varies_F, spread_F, 1.0), 1.0)


def with_features(
    ids: tuple[PromptId, ...],
    embeddings: npt.ArrayLike,
    features: npt.ArrayLike | None,
    scale_F: FloatArray,
    registered: EmbeddedPrompts,
) -> tuple[VectorArray, FloatArray]:
    """Embeddings [Q, D] with scaled features [Q, F] beside them, [Q, D + F], and the factors [F] of the features.

    ``scale_F``, ``registered``: factors [F] and prompts registered before; empty where there are none with features.
    InvalidInputError: wrong shape or dimension, not finite, or features for some registrations only.
    """
    embeddings_QD = as_numbers(embeddings, np.float32)
    features_QF = as_numbers([] if features is None else features, np.float32)
    check_vectors(ids, embeddings_QD, 0)
    known = scale_F.size or (0 if len(registered) else features_QF.shape[-1])
    if features_QF.ndim != 2 or features_QF.shape != (len(embeddings_QD), known):
        raise InvalidInputError(
            "features do not fit",
            got=f"shape {features_QF.shape} beside embeddings {embeddings_QD.shape}",
            allowed=f"({len(embeddings_QD)}, {known or 'F'}), or none at all as at the first registration",
            fix="pass one row of features per embedding, at every registration or at none",
        )
    check_vectors(ids, np.hstack([embeddings_QD, features_QF]), registered.dimension)
    scale_F = scale_F if scale_F.size else scale_beside(features_QF, embeddings_QD)
    return np.hstack([embeddings_QD, features_QF * scale_F]), scale_F


def check_embeddings_fit(
    dimension: int, learnt: int, scale_F: FloatArray, learnt_scale_F: FloatArray, steps: int
) -> None:
    """Raise :class:`StateError` unless the embeddings registered can go on with a state of ``steps`` steps.

    ``dimension``, ``scale_F``: of those registered. ``learnt``, ``learnt_scale_F``: of the state; 0 where it has none.
    """
    if steps and learnt != dimension:
        raise StateError(
            "the state was learnt with other embeddings than those registered",
            got=f"embeddings of dimension {dimension}, a state of {learnt or 'none'}",
            allowed="the embeddings, with features if any, that were registered when the state was saved",
            fix="register those, or none where the state has none",
        )
    if not np.array_equal(learnt_scale_F, scale_F):
        raise StateError(
            "the registered features are scaled differently from those of the state",
            got=f"factors {scale_F.tolist()}",
            allowed=f"{learnt_scale_F.tolist()}",
            fix="register the same prompts first as when the state was saved, or load before registering",
        )


KEPT = 8192
"""Most prompts whose features are kept from their plan to their outcomes: 34 MB."""
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

    @cached_property
    def _centred(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean of the points [D]; the points from there, -2 times [M, D], and their squared lengths [M]."""
        origin_D = self.points.mean(axis=0)
        points_MD = self.points - origin_D
        return origin_D, -2 * points_MD, np.einsum("md,md->m", points_MD, points_MD)

    def features(self, x_QD: FloatArray) -> Features:
        """Features of each embedding, for every bandwidth."""
        origin_D, points_MD, lengths_M = self._centred
        x_QD = x_QD - origin_D
        squares_MQ = points_MD @ x_QD.T
        squares_MQ += lengths_M[:, None]
        squares_MQ += np.einsum("qd,qd->q", x_QD, x_QD)
        return Features(self, np.maximum(squares_MQ, 0.0, out=squares_MQ))


class Features:
    """Features of Q prompts: those of a bandwidth are computed when they are first asked for."""

    def __init__(self, landmarks: Landmarks, squares_MQ: FloatArray) -> None:
        self._landmarks, self._squares = landmarks, squares_MQ
        self._rows: dict[int, FloatArray] = {}

    def take(self, rows_S: IntArray) -> Features:
        """Those of some of the prompts; of all bandwidths, as far as they are there."""
        taken = Features(self._landmarks, self._squares[:, rows_S])
        taken._rows = {bandwidth: rows_FQ[:, rows_S] for bandwidth, rows_FQ in self._rows.items()}
        return taken

    @property
    def place(self) -> FloatArray:
        """[Q] a number that is the same for equal embeddings and hardly for others."""
        return np.arange(1.0, len(self._squares) + 1) @ self._squares

    def rows(self, bandwidth: int) -> FloatArray:
        """[2 + M, Q] coefficients of level (1), drift (0) and the features' weights."""
        if bandwidth not in self._rows:
            rows_FQ = np.empty((2 + len(self._squares), self._squares.shape[1]))
            rows_FQ[:2] = [[1.0], [0.0]]
            kernel_MQ = _kernel(self._squares, self._landmarks.bandwidths[bandwidth])
            np.matmul(self._landmarks.maps[bandwidth], kernel_MQ, out=rows_FQ[2:])
            self._rows[bandwidth] = rows_FQ
        return self._rows[bandwidth]


class Views:
    """Features of registered prompts; those of the prompts last asked for are kept until their outcomes come."""

    def __init__(self, landmarks: Landmarks | None = None) -> None:
        self.landmarks = landmarks
        self._last: tuple[tuple[PromptId, ...], Features] | None = None

    def of(self, prompts: EmbeddedPrompts, ids: tuple[PromptId, ...]) -> Features | None:
        """None without landmarks; UnknownPromptError where a prompt is not registered."""
        if self._last is not None and self._last[0] == ids:
            return self._last[1]
        rows_Q = prompts.index.rows(ids)
        if self.landmarks is None:
            return None
        features = self.landmarks.features(prompts.rows(rows_Q))
        self._last = (ids, features) if len(ids) <= KEPT else None
        return features


def _kernel(squares: FloatArray, bandwidth: float) -> FloatArray:
    return np.asarray(np.exp(squares / (-2 * bandwidth * bandwidth)), dtype=np.float64)


def _inverse_root(kernel_MM: FloatArray) -> FloatArray:
    values_M, vectors_MM = np.linalg.eigh(kernel_MM)
    kept_M = values_M > EIGENVALUE_FLOOR * values_M[-1]
    scale_M = np.where(kept_M, 1 / np.sqrt(np.where(kept_M, values_M, 1.0)), 0.0)
    return np.asarray((vectors_MM * scale_M) @ vectors_MM.T, dtype=np.float64)
