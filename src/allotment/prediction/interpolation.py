"""The recursion of VIP's Algorithm 1: one mean per prompt, moved by noise-free interpolation of each batch."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, cholesky
from scipy.spatial.distance import pdist

from allotment.checks import check_setting
from allotment.prompts.embeddings import EmbeddedPrompts, Embeddings, VectorArray, ids_and_vectors
from allotment.prompts.ids import canonical_ids, enlarged
from allotment.state import State, array_from_state, check_state, from_state
from allotment.types import FloatArray, IntArray, PromptIds

MEDIAN_SAMPLE = 1024
"""Most prompts whose pairwise distances enter the median heuristic."""
BLOCK_ENTRIES = 4_194_304
"""Most entries of a kernel block held at once (32 MiB)."""


class KernelSettings(TypedDict, total=False):
    """Settings of every :class:`Interpolation`, by keyword."""

    bandwidth: float | None
    """h, unit of the embeddings; None (the default) for the median heuristic."""
    jitter: float
    """Added to the diagonal of ``Sigma_BB``; in [0, 1]."""
    prior_mean: float
    """The mean before any observation."""


class Interpolation:
    """``m <- m + K(all, B) Sigma_BB^{-1} (target_B - m_B)``, then ``m_B = target_B``.

    ``Sigma`` is the RBF kernel of amplitude 1, ``K(x, x') = exp(-|x - x'|^2 / (2 h^2))``, the same at every step: the
    mean is recursive, the covariance is not (VIP section 5.1, Algorithm 1). Only B x B and B x M blocks are formed,
    the latter in pieces of :data:`BLOCK_ENTRIES`.

    **Bandwidth.** ``None`` means the median heuristic: h is the median of the Euclidean distances ``|x_i - x_j|`` over
    all pairs ``i < j`` of registered prompts, taken at the first :meth:`condition` and kept from then on. With more
    than 1,024 prompts the pairs come from 1,024 of them, evenly spaced in order of registration (rows
    ``round(linspace(0, M - 1, 1024))``). While that median is 0 or there is only one prompt, h does not matter (every
    kernel entry is 1): 1.0 is used and nothing is kept.

    **Jitter.** ``jitter`` is added to the diagonal of ``Sigma_BB``. If the Cholesky factor does not exist or its
    smallest squared pivot is not above B machine epsilons, the jitter is multiplied by 10 (starting from 1e-10 if it
    was 0) and tried again; at 1 at the latest it succeeds. An escalated jitter holds for that one batch.

    Needs embeddings: prompts must be registered before they are predicted or observed.

    Args:
        embeddings: [M, D] array, or mapping from id to vector [D].
        ids: [M] ids of the rows of an array; 0..M-1 if None.
        bandwidth: see :class:`KernelSettings`, as the following.
        jitter: 1e-4 as in the authors' code.
        prior_mean: 0 as in VIP Algorithm 1.

    Raises:
        InvalidInputError: a setting is out of its range, or the embeddings have a wrong shape or are not finite.
        DuplicatePromptError: an id stands twice.
    """

    KIND: str
    LABEL_BOUND: str
    """Name of the setting that keeps labels finite."""
    SETTINGS = ("bandwidth", "jitter", "prior_mean")

    def __init__(
        self,
        embeddings: Embeddings | None = None,
        ids: PromptIds | None = None,
        *,
        bandwidth: float | None = None,
        jitter: float = 1e-4,
        prior_mean: float = 0.0,
    ) -> None:
        check_setting("bandwidth", bandwidth, bandwidth is None or 0 < bandwidth < np.inf, "None or a positive number")
        check_setting("jitter", jitter, 0 <= jitter <= 1, "0 <= jitter <= 1 (the kernel's amplitude is 1)")
        check_setting("prior_mean", prior_mean, bool(np.isfinite(prior_mean)), "a finite number")
        self.bandwidth = None if bandwidth is None else float(bandwidth)  # fixed by the first observation if None
        self.jitter = float(jitter)
        self.prior_mean = float(prior_mean)
        self._prompts = EmbeddedPrompts(np.float64)
        self._means = np.empty(0)
        self.register(*ids_and_vectors(embeddings, ids, np.float64))

    def register(self, ids: PromptIds, embeddings: npt.ArrayLike) -> None:
        """Add prompts at the prior mean; see :meth:`~allotment.prompts.embeddings.EmbeddedPrompts.register`."""
        before = len(self._prompts)
        self._prompts.register(ids, embeddings)
        self._means = enlarged(self._means, len(self._prompts))
        self._means[before : len(self._prompts)] = self.prior_mean

    def _mean(self, ids: PromptIds) -> FloatArray:
        """[Q] current mean of each prompt. Raises :class:`UnknownPromptError` if one was never registered."""
        return self._means[self._prompts.index.rows(canonical_ids(ids, unique=False))]

    def _condition(self, rows_B: IntArray, targets_B: FloatArray) -> None:
        """Move every mean so that the prompts ``rows_B`` (distinct) have exactly ``targets_B``; both [B]."""
        if not len(rows_B):
            return
        bandwidth = self._settled_bandwidth()
        vectors_MD, points_BD = self._prompts.vectors, self._prompts.rows(rows_B)
        kernel_BB = _kernel(points_BD, points_BD, bandwidth)
        np.fill_diagonal(kernel_BB, 1.0)
        weights_B = _solve(kernel_BB, targets_B - self._means[rows_B], self.jitter)
        piece = max(1, BLOCK_ENTRIES // len(rows_B))
        for start in range(0, len(vectors_MD), piece):
            block = slice(start, min(start + piece, len(vectors_MD)))
            self._means[block] += _kernel(vectors_MD[block], points_BD, bandwidth) @ weights_B
        self._means[rows_B] = targets_B

    def _settled_bandwidth(self) -> float:
        if self.bandwidth is None:
            median = median_distance(self._prompts.vectors)
            if not median > 0:
                return 1.0
            self.bandwidth = median
        return self.bandwidth

    def state_dict(self) -> State:
        """Settings, ids, embeddings, means and the fixed bandwidth."""
        settings = {name: getattr(self, name) for name in (self.LABEL_BOUND, *self.SETTINGS)}
        means = self._means[: len(self._prompts)].copy()
        return {"kind": self.KIND, **settings, **self._prompts.state(), "mean": means}

    def load_state_dict(self, state: State) -> None:
        """Take over everything from a :meth:`state_dict`, settings included.

        Raises:
            StateError: of another kind, keys missing, or values that do not fit.
        """
        settings = (self.LABEL_BOUND, *self.SETTINGS)
        check_state(state, self.KIND, (*settings, "ids", "embeddings", "mean"))
        loaded = from_state(lambda: type(self)(**{name: state[name] for name in settings}))
        loaded._prompts = EmbeddedPrompts.from_state(state)
        loaded._means = array_from_state(state, "mean", (len(loaded._prompts),))
        vars(self).update(vars(loaded))


def median_distance(vectors_MD: VectorArray) -> float:
    """Median Euclidean distance between two prompts; over an evenly spaced sample of 1,024 where there are more.

    Returns 0.0 for fewer than two prompts.
    """
    count = len(vectors_MD)
    if count < 2:
        return 0.0
    if count > MEDIAN_SAMPLE:
        vectors_MD = vectors_MD[np.linspace(0, count - 1, MEDIAN_SAMPLE).round().astype(np.int64)]
    return float(np.median(pdist(vectors_MD)))


def squared_distances(a_AD: VectorArray, b_BD: VectorArray) -> FloatArray:
    """[A, B] squared Euclidean distances by one matrix product; origin moved to the mean of ``b`` for accuracy."""
    origin_D = b_BD.mean(axis=0)
    a_AD, b_BD = a_AD - origin_D, b_BD - origin_D
    squares = np.einsum("ad,ad->a", a_AD, a_AD)[:, None] + np.einsum("bd,bd->b", b_BD, b_BD) - 2 * (a_AD @ b_BD.T)
    return np.asarray(np.maximum(squares, 0.0), dtype=np.float64)


def _kernel(a_AD: VectorArray, b_BD: VectorArray, bandwidth: float) -> FloatArray:
    return np.exp(squared_distances(a_AD, b_BD) / (-2 * bandwidth * bandwidth))


def _solve(kernel_BB: FloatArray, residual_B: FloatArray, jitter: float) -> FloatArray:
    """[B] ``(kernel + jitter I)^{-1} residual``, the jitter escalated as :class:`Interpolation` says."""
    size = len(kernel_BB)
    while True:
        try:
            factor = cholesky(kernel_BB + jitter * np.eye(size), lower=True)
        except np.linalg.LinAlgError:
            pass
        else:
            if float(factor.diagonal().min()) ** 2 > size * np.finfo(np.float64).eps or jitter >= 1:
                return np.asarray(cho_solve((factor, True), residual_B))
        jitter = min(1.0, max(10 * jitter, 1e-10))
