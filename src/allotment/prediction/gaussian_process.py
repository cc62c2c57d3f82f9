"""The predictors of the VIP paper as printed: a Gaussian process on prompt embeddings, mean recursive only."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
from scipy.special import logit

from allotment.checks import check_setting
from allotment.errors import InvalidInputError
from allotment.prediction.base import PredictorEntry
from allotment.prediction.binomial import visits
from allotment.prediction.interpolation import Interpolation, KernelSettings
from allotment.prompts.embeddings import Embeddings
from allotment.prompts.ids import canonical_ids
from allotment.types import FloatArray, Posterior, PromptIds


class GaussianProcess(Interpolation):
    """Success probability from a Gaussian process on embeddings: VIP section 5.1 and Algorithm 1, as printed.

    ``p_q = sigmoid(g(x_q))``, ``g ~ GP(m_t, Sigma)`` with an RBF kernel of amplitude 1. Each batch B becomes labels
    ``ghat_B = logit(clip(successes / trials, epsilon, 1 - epsilon))`` and the mean of *every* registered prompt moves
    by ``K(., B) Sigma_BB^{-1} (ghat_B - m_B)``; prompts of the batch get exactly ``ghat_B``. The next step starts from
    that mean and the *original* covariance. There is no observation noise, the number of trials does not matter,
    nothing is forgotten. On a real log this allocates worse than uniform (``benchmarks/replay.py``); it is here to
    reproduce the paper. Use :class:`~allotment.prediction.HierarchicalPredictor`, the default, to do better.

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

    ``epsilon`` clips success rates to ``[epsilon, 1 - epsilon]``, in (0, 1/2); everything else, errors included:
    :class:`~allotment.prediction.interpolation.Interpolation`.

    Memory 8 M D bytes; an update costs O(B^3 + B M D).
    """

    KIND, LABEL_BOUND = "GaussianProcess", "epsilon"

    def __init__(
        self,
        embeddings: Embeddings | None = None,
        *,
        ids: PromptIds | None = None,
        epsilon: float = 1e-6,
        **kernel: Unpack[KernelSettings],
    ) -> None:
        check_setting("epsilon", epsilon, 0 < epsilon < 0.5, "0 < epsilon < 1/2")
        super().__init__(embeddings, ids, **kernel)
        self.epsilon = float(epsilon)

    def predict(self, ids: PromptIds) -> Posterior:
        """[Q] the belief about each prompt: mean ``m_t(x_q)``, variance 1.

        The variance is the kernel's diagonal: the covariance is not recursed, so at every step each prompt has its
        prior variance again, whatever was observed. The paper itself uses ``plug_in_probability()`` only.

        Raises:
            UnknownPromptError: an id was never registered.
        """
        mean_Q = self._mean(ids)
        return Posterior(mean_Q, np.ones_like(mean_Q))

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """One update of Algorithm 1 with the batch ``ids`` [B]; prompts with 0 trials are no part of it.

        Raises:
            UnknownPromptError: an id was never registered.
            InvalidInputError: counts are not success counts.
            DuplicatePromptError: an id stands twice.
        """
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
    :class:`~allotment.prediction.interpolation.Interpolation`. This is not a ``Predictor``: it knows no counts.
    """

    KIND, LABEL_BOUND = "RewardVarianceGaussianProcess", "floor"

    def __init__(
        self,
        embeddings: Embeddings | None = None,
        *,
        ids: PromptIds | None = None,
        floor: float = 1e-6,
        **kernel: Unpack[KernelSettings],
    ) -> None:
        check_setting("floor", floor, 0 < floor < np.inf, "a positive number")
        super().__init__(embeddings, ids, **kernel)
        self.floor = float(floor)

    def predict_variance(self, ids: PromptIds) -> FloatArray:
        """[Q] predicted variance of one reward of each prompt, >= 0; unit: reward squared.

        Raises:
            UnknownPromptError: an id was never registered.
        """
        return np.logaddexp(0.0, self._mean(ids))

    def observe_variance(self, ids: PromptIds, variances: npt.ArrayLike) -> None:
        """Learn the unbiased sample variances [B] of the rewards of prompts ``ids`` [B] (two rollouts or more each).

        Raises:
            UnknownPromptError: an id was never registered.
            InvalidInputError: a variance is negative or not finite, or lengths differ.
            DuplicatePromptError: an id stands twice.
        """
        rows_B = self._prompts.index.rows(canonical_ids(ids))
        variances_B = np.maximum(_checked_variances(variances, len(rows_B)), self.floor)
        labels_B = variances_B + np.log(-np.expm1(-variances_B))  # log(exp(s2) - 1) without overflow
        self._condition(rows_B, labels_B)


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
