"""The predictors of the VIP paper as printed: a Gaussian process on prompt embeddings, mean recursive only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import logit

from allotment.checks import check_setting
from allotment.errors import InvalidInputError
from allotment.prediction.binomial import visits
from allotment.prediction.interpolation import Interpolation
from allotment.prompts.embeddings import Embeddings
from allotment.prompts.ids import canonical_ids
from allotment.state import State, check_state, from_state
from allotment.types import FloatArray, Posterior, PromptIds


class GaussianProcess:
    """Success probability from a Gaussian process on embeddings: VIP section 5.1 and Algorithm 1, as printed.

    ``p_q = sigmoid(g(x_q))``, ``g ~ GP(m_t, Sigma)`` with an RBF kernel of amplitude 1. Each batch B becomes labels
    ``ghat_B = logit(clip(successes / trials, epsilon, 1 - epsilon))`` and the mean of *every* registered prompt moves
    by ``K(., B) Sigma_BB^{-1} (ghat_B - m_B)``; prompts of the batch get exactly ``ghat_B``. The next step starts from
    that mean and the *original* covariance. There is no observation noise, the number of trials does not matter,
    nothing is forgotten. On a real log this allocates worse than uniform (``benchmarks/replay.py``); it is here to
    reproduce the paper. Use :class:`~allotment.prediction.counts.DiscountedCounts` to do better.

    Defaults and where they come from:

    ============ ======= ==============================================================================================
    bandwidth    None    median heuristic (VIP section 6, which median is not said there), written down in
                         :class:`~allotment.prediction.interpolation.Interpolation`. Authors' code: 0.5, 0.4, 0.27.
    epsilon      1e-6    not in the paper; all versions of the authors' code. Labels of 0/n and n/n become -13.8, +13.8.
    jitter       1e-4    none in the paper; the authors' code. Escalated where it does not suffice, same class.
    prior_mean   0.0     VIP Algorithm 1 (p = 0.5, so the first allocation is uniform). The authors' code has -1 and -5.
    ============ ======= ==============================================================================================

    Prompts registered later start at ``prior_mean``. The recursion keeps means only, not the batches that made them,
    so it cannot say what past batches would have done to a prompt that was not there; and since each update carries
    only what a batch *changed*, a late prompt never catches up on what was learnt before it came. The paper has all
    prompts from the beginning: register them all at once where you can.

    Memory 8 M D bytes; an update costs O(B^3 + B M D).
    """

    KIND = "GaussianProcess"

    def __init__(
        self,
        embeddings: Embeddings | None = None,
        *,
        ids: PromptIds | None = None,
        bandwidth: float | None = None,
        epsilon: float = 1e-6,
        jitter: float = 1e-4,
        prior_mean: float = 0.0,
    ) -> None:
        """Store the settings and register ``embeddings`` if given.

        Args:
            embeddings: [M, D] array, or mapping from id to vector [D].
            ids: [M] ids of the rows of an array; 0..M-1 if None.
            bandwidth: h, unit of the embeddings; None for the median heuristic.
            epsilon: success rates are clipped to ``[epsilon, 1 - epsilon]``; in (0, 1/2).
            jitter: added to the diagonal of ``Sigma_BB``; in [0, 1].
            prior_mean: logit of the success probability before any observation.

        Raises:
            InvalidInputError: a setting is out of its range, or the embeddings have a wrong shape or are not finite.
            DuplicatePromptError: an id stands twice.
        """
        check_setting("epsilon", epsilon, 0 < epsilon < 0.5, "0 < epsilon < 1/2")
        self.epsilon = float(epsilon)
        self._latent = Interpolation(embeddings, ids, bandwidth=bandwidth, jitter=jitter, prior_mean=prior_mean)

    @property
    def bandwidth(self) -> float | None:
        """Length scale h of the kernel; None until the first observation fixes it."""
        return self._latent.bandwidth

    def register(self, ids: PromptIds, embeddings: npt.ArrayLike) -> None:
        """Add prompts ``ids`` [Q] with ``embeddings`` [Q, D], at the prior mean. Known ids must bring the same vector.

        Raises:
            InvalidInputError: wrong shape or dimension, not finite, or another vector for a known id.
            DuplicatePromptError: an id stands twice.
        """
        self._latent.register(ids, embeddings)

    def predict(self, ids: PromptIds) -> Posterior:
        """[Q] the belief about each prompt: mean ``m_t(x_q)``, variance 1.

        The variance is the kernel's diagonal: the covariance is not recursed, so at every step each prompt has its
        prior variance again, whatever was observed. The paper itself uses ``plug_in_probability()`` only.

        Raises:
            UnknownPromptError: an id was never registered.
        """
        mean_Q = self._latent.mean[self._latent.prompts.index.rows(canonical_ids(ids, unique=False))]
        return Posterior(mean_Q, np.ones_like(mean_Q))

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """One update of Algorithm 1 with the batch ``ids`` [B]; prompts with 0 trials are no part of it.

        Raises:
            UnknownPromptError: an id was never registered.
            InvalidInputError: counts are not success counts.
            DuplicatePromptError: an id stands twice.
        """
        index = self._latent.prompts.index
        visited, successes_B, trials_B = visits(ids, successes, trials, index)
        rates_B = np.clip(successes_B / trials_B, self.epsilon, 1 - self.epsilon)
        self._latent.condition(index.rows(visited), logit(rates_B))

    def state_dict(self) -> State:
        """Settings, ids, embeddings, means and the fixed bandwidth."""
        return {"kind": self.KIND, "epsilon": self.epsilon, **self._latent.state()}

    def load_state_dict(self, state: State) -> None:
        """Take over everything from a :meth:`state_dict`, settings included.

        Raises:
            StateError: of another kind, keys missing, or values that do not fit.
        """
        check_state(state, self.KIND, ("epsilon", *Interpolation.KEYS))
        epsilon = from_state(lambda: GaussianProcess(epsilon=state["epsilon"])).epsilon
        self._latent = Interpolation.from_state(state)
        self.epsilon = epsilon


class RewardVarianceGaussianProcess:
    """Variance of a real-valued reward from the same recursion with a softplus link: VIP appendix E.

    ``v_q = log(1 + exp(g(x_q)))``; a batch brings the unbiased sample variances ``s2`` of the prompts' rewards, and its
    labels are ``ghat = log(exp(s2) - 1)``. The paper does not say what becomes of ``s2 = 0`` (all rewards equal), whose
    label would be minus infinity: here ``s2`` is floored at ``floor``, by default 1e-6, which puts the label at -13.8,
    where the success predictor's epsilon puts 0/n. Unit: reward squared; at the prior mean 0 the variance is log 2.

    The remaining settings are those of :class:`GaussianProcess`. This is not a ``Predictor``: it knows no counts.
    """

    KIND = "RewardVarianceGaussianProcess"

    def __init__(
        self,
        embeddings: Embeddings | None = None,
        *,
        ids: PromptIds | None = None,
        bandwidth: float | None = None,
        floor: float = 1e-6,
        jitter: float = 1e-4,
        prior_mean: float = 0.0,
    ) -> None:
        """Store the settings and register ``embeddings`` if given.

        Args:
            embeddings: [M, D] array, or mapping from id to vector [D].
            ids: [M] ids of the rows of an array; 0..M-1 if None.
            bandwidth: h, unit of the embeddings; None for the median heuristic.
            floor: smallest sample variance, > 0; smaller ones are raised to it. Unit: reward squared.
            jitter: added to the diagonal of ``Sigma_BB``; in [0, 1].
            prior_mean: g before any observation.

        Raises:
            InvalidInputError: a setting is out of its range, or the embeddings have a wrong shape or are not finite.
            DuplicatePromptError: an id stands twice.
        """
        check_setting("floor", floor, 0 < floor < np.inf, "a positive number")
        self.floor = float(floor)
        self._latent = Interpolation(embeddings, ids, bandwidth=bandwidth, jitter=jitter, prior_mean=prior_mean)

    @property
    def bandwidth(self) -> float | None:
        """Length scale h of the kernel; None until the first observation fixes it."""
        return self._latent.bandwidth

    def register(self, ids: PromptIds, embeddings: npt.ArrayLike) -> None:
        """Add prompts; as :meth:`GaussianProcess.register`."""
        self._latent.register(ids, embeddings)

    def predict_variance(self, ids: PromptIds) -> FloatArray:
        """[Q] predicted variance of one reward of each prompt, >= 0; unit: reward squared.

        Raises:
            UnknownPromptError: an id was never registered.
        """
        rows_Q = self._latent.prompts.index.rows(canonical_ids(ids, unique=False))
        return np.logaddexp(0.0, self._latent.mean[rows_Q])

    def observe_variance(self, ids: PromptIds, variances: npt.ArrayLike) -> None:
        """Learn the unbiased sample variances [B] of the rewards of prompts ``ids`` [B] (two rollouts or more each).

        Raises:
            UnknownPromptError: an id was never registered.
            InvalidInputError: a variance is negative or not finite, or lengths differ.
            DuplicatePromptError: an id stands twice.
        """
        rows_B = self._latent.prompts.index.rows(canonical_ids(ids))
        variances_B = np.maximum(_checked_variances(variances, len(rows_B)), self.floor)
        labels_B = variances_B + np.log(-np.expm1(-variances_B))  # log(exp(s2) - 1) without overflow
        self._latent.condition(rows_B, labels_B)

    def state_dict(self) -> State:
        """Settings, ids, embeddings, means and the fixed bandwidth."""
        return {"kind": self.KIND, "floor": self.floor, **self._latent.state()}

    def load_state_dict(self, state: State) -> None:
        """Take over everything from a :meth:`state_dict`, settings included.

        Raises:
            StateError: of another kind, keys missing, or values that do not fit.
        """
        check_state(state, self.KIND, ("floor", *Interpolation.KEYS))
        floor = from_state(lambda: RewardVarianceGaussianProcess(floor=state["floor"])).floor
        self._latent = Interpolation.from_state(state)
        self.floor = floor


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
