"""The predictors of the VIP paper as printed: a Gaussian process on prompt embeddings, mean recursive only."""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, cholesky
from scipy.spatial.distance import pdist
from scipy.special import logit

from allotment.checks import check_setting
from allotment.errors import InvalidInputError
from allotment.prediction.binomial import visits
from allotment.prediction.posteriors import PredictorEntry
from allotment.prompts.embeddings import EmbeddedPrompts, Embeddings, VectorArray, ids_and_vectors, squared_distances
from allotment.prompts.ids import canonical_ids, enlarged
from allotment.state import State, array_from_state, check_state, from_state
from allotment.types import FloatArray, IntArray, Posterior, PromptIds

MEDIAN_SAMPLE = 1024
"""Most prompts whose pairwise distances enter the median heuristic."""
BLOCK_ENTRIES = 4_194_304
"""Most entries of a kernel block held at once (32 MiB)."""


class KernelSettings(TypedDict, total=False):
    """Settings of every :class:`Interpolation`, by keyword."""

    ids: PromptIds | None
    """[M] ids of the rows of an array of embeddings; 0..M-1 if None."""
    bandwidth: float | None
    """h, unit of the embeddings; None (the default) for the median heuristic."""
    jitter: float
    """Added to the diagonal of ``Sigma_BB``; in [0, 1]; 1e-4 by default, as in the authors' code."""
    prior_mean: float
    """The mean before any observation; 0 by default, as in VIP Algorithm 1."""


class Interpolation:
    """``m <- m + K(all, B) Sigma_BB^{-1} (target_B - m_B)``, then ``m_B = target_B``.

    ``Sigma`` is the RBF kernel of amplitude 1, ``K(x, x') = exp(-|x - x'|^2 / (2 h^2))``, the same at every step: the
    mean is recursive, the covariance is not (VIP section 5.1, Algorithm 1). Only B x B and B x M blocks are formed,
    the latter in pieces of :data:`BLOCK_ENTRIES`.

    **Bandwidth.** ``None`` means the median heuristic: h is the median of the Euclidean distances ``|x_i - x_j|`` over
    all pairs ``i < j`` of registered prompts, taken at the first conditioning and kept from then on. With more
    than 1,024 prompts the pairs come from 1,024 of them, evenly spaced in order of registration (rows
    ``round(linspace(0, M - 1, 1024))``). While that median is 0 or there is only one prompt, h does not matter (every
    kernel entry is 1): 1.0 is used and nothing is kept.

    **Jitter.** ``jitter`` is added to the diagonal of ``Sigma_BB``. If the Cholesky factor does not exist or its
    smallest squared pivot is not above B machine epsilons, the jitter is multiplied by 10 (starting from 1e-10 if it
    was 0) and tried again; at 1 at the latest it succeeds. An escalated jitter holds for that one batch.

    Needs embeddings, an array [M, D] or a mapping from id to vector [D]: prompts must be registered before they are
    predicted or observed. Settings: :class:`KernelSettings`.

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
        *,
        ids: PromptIds | None = None,
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
        """See :class:`~allotment.state.Stateful`."""
        settings = (self.LABEL_BOUND, *self.SETTINGS)
        check_state(state, self.KIND, (*settings, "ids", "embeddings", "mean"))
        loaded = from_state(lambda: type(self)(**{name: state[name] for name in settings}))
        loaded._prompts = EmbeddedPrompts.from_state(state)
        loaded._means = array_from_state(state, "mean", (len(loaded._prompts),))
        vars(self).update(vars(loaded))


class GaussianProcess(Interpolation):
    """Success probability from a Gaussian process on embeddings: VIP section 5.1 and Algorithm 1, as printed.

    ``p_q = sigmoid(g(x_q))``, ``g ~ GP(m_t, Sigma)`` with an RBF kernel of amplitude 1. Each batch B becomes labels
    ``ghat_B = logit(clip(successes / trials, epsilon, 1 - epsilon))`` and the mean of *every* registered prompt moves
    by ``K(., B) Sigma_BB^{-1} (ghat_B - m_B)``; prompts of the batch get exactly ``ghat_B``. The next step starts from
    that mean and the *original* covariance. There is no observation noise, the number of trials does not matter,
    nothing is forgotten. It is here to reproduce the paper; the default predictor does better (docs/experiments/).

    Defaults and where they come from:

    ============ ======= ==============================================================================================
    bandwidth    None    median heuristic (VIP section 6, which median is not said there), written down in
                         :class:`Interpolation`. Authors' code: 0.5, 0.4, 0.27.
    epsilon      1e-6    not in the paper; all versions of the authors' code. Labels of 0/n and n/n become -13.8, +13.8.
    jitter       1e-4    none in the paper; the authors' code. Escalated where it does not suffice, same class.
    prior_mean   0.0     VIP Algorithm 1 (p = 0.5, so the first allocation is uniform). The authors' code has -1 and -5.
    ============ ======= ==============================================================================================

    Prompts registered later start at ``prior_mean`` and never catch up on what was learnt before they came, as the
    recursion keeps means only: register them all at once where you can.

    ``epsilon`` clips success rates to ``[epsilon, 1 - epsilon]``, in (0, 1/2); everything else, errors included:
    :class:`Interpolation`.

    Memory 8 M D bytes; an update costs O(B^3 + B M D).
    """

    KIND, LABEL_BOUND = "GaussianProcess", "epsilon"

    def __init__(
        self, embeddings: Embeddings | None = None, *, epsilon: float = 1e-6, **settings: Unpack[KernelSettings]
    ) -> None:
        check_setting("epsilon", epsilon, 0 < epsilon < 0.5, "0 < epsilon < 1/2")
        super().__init__(embeddings, **settings)
        self.epsilon = float(epsilon)

    def predict(self, ids: PromptIds) -> Posterior:
        """[Q] the belief about each prompt: mean ``m_t(x_q)``, variance 1.

        The variance is the kernel's diagonal: the covariance is not recursed, so at every step each prompt has its
        prior variance again, whatever was observed. The paper itself uses ``plug_in_probability()`` only.
        """
        mean_Q = self._mean(ids)
        return Posterior(mean_Q, np.ones_like(mean_Q))

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """One update of Algorithm 1 with the batch ``ids`` [B]; prompts with 0 trials are no part of it."""
        index = self._prompts.index
        visited, successes_B, trials_B = visits(ids, successes, trials, index)
        rates_B = np.clip(successes_B / trials_B, self.epsilon, 1 - self.epsilon)
        self._condition(index.rows(visited), logit(rates_B))


class RewardVarianceGaussianProcess(Interpolation):
    """Variance of a real-valued reward from the same recursion with a softplus link: VIP appendix E.

    ``v_q = log(1 + exp(g(x_q)))``; a batch brings the unbiased sample variances ``s2`` of the prompts' rewards, and its
    labels are ``ghat = log(exp(s2) - 1)``. The paper does not say what becomes of ``s2 = 0`` (all rewards equal), whose
    label would be minus infinity: here ``s2`` is floored at ``floor``, by default 1e-6, which puts the label at -13.8,
    where the success predictor's epsilon puts 0/n. Unit: reward squared; at the prior mean 0 the variance is log 2.

    ``floor`` is positive, smaller sample variances are raised to it; the remaining settings and errors are those of
    :class:`Interpolation`. This is not a ``Predictor``: it knows no counts.
    """

    KIND, LABEL_BOUND = "RewardVarianceGaussianProcess", "floor"

    def __init__(
        self, embeddings: Embeddings | None = None, *, floor: float = 1e-6, **settings: Unpack[KernelSettings]
    ) -> None:
        check_setting("floor", floor, 0 < floor < np.inf, "a positive number")
        super().__init__(embeddings, **settings)
        self.floor = float(floor)

    def predict_variance(self, ids: PromptIds) -> FloatArray:
        """[Q] predicted variance of one reward of each prompt, >= 0; unit: reward squared. Errors as ``predict``."""
        return np.logaddexp(0.0, self._mean(ids))

    def observe_variance(self, ids: PromptIds, variances: npt.ArrayLike) -> None:
        """Learn the unbiased sample variances [B] of the rewards of prompts ``ids`` [B] (two rollouts or more each).

        Errors as ``observe`` of a predictor; InvalidInputError where a variance is negative or not finite.
        """
        rows_B = self._prompts.index.rows(canonical_ids(ids))
        variances_B = np.maximum(_checked_variances(variances, len(rows_B)), self.floor)
        labels_B = variances_B + np.log(-np.expm1(-variances_B))  # log(exp(s2) - 1) without overflow
        self._condition(rows_B, labels_B)


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


def _checked_variances(variances: Any, count: int) -> FloatArray:
    try:
        variances_B = np.asarray(variances, dtype=np.float64)
    except (TypeError, ValueError):
        variances_B = np.full(count, np.nan)
    if variances_B.shape != (count,) or not ((variances_B >= 0) & (variances_B < np.inf)).all():
        raise InvalidInputError(
            "reward variances cannot be used",
            got=variances,
            allowed=f"{count} finite numbers >= 0, one per id",
            fix="leave out prompts with fewer than two rollouts",
        )
    return variances_B


ENTRY = PredictorEntry(GaussianProcess, "needed", plug_in=True)
