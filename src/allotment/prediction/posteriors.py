"""What every predictor can do, how one is declared; and beliefs of a particular form: Beta, on a grid, of scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from scipy.special import betaln, log_expit, polygamma, psi

from allotment.state import Stateful
from allotment.types import FloatArray, IntArray, Posterior, PromptIds


@dataclass(frozen=True)
class PredictorEntry:
    """The declaration of a predictor by name, beside its class."""

    make: Callable[..., Predictor]
    """Makes one; from ``embeddings``, ``ids`` and ``features`` where it takes them."""
    embeddings: Literal["needed", "used", "unused"] = "unused"
    """``"used"``: taken where there are any, done without where not."""
    plug_in: bool = False
    """Whether an audit prices ``p (1 - p)`` at the mean of its belief instead of ``E[p (1 - p)]``."""


@runtime_checkable
class Predictor(Stateful, Protocol):
    """A belief about the success probability of every prompt, updated from counts.

    All methods raise :class:`~allotment.errors.AllotmentError` subclasses on bad input and change nothing then.
    """

    def predict(self, ids: PromptIds) -> Posterior:
        """The belief about each of the Q prompts named; [Q].

        Raises:
            UnknownPromptError: embeddings are in use and an id was never registered.
        """
        ...

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """Learn that prompt ``ids[i]`` had ``successes[i]`` successes in ``trials[i]`` rollouts; all [Q].

        All are of one step; 0 trials are no visit.

        Raises:
            UnknownPromptError: embeddings are in use and an id was never registered.
            InvalidInputError: lengths differ, a count is negative, not finite or not whole, successes exceed trials.
            DuplicatePromptError: an id stands twice.
        """
        ...


@dataclass(frozen=True, eq=False)
class BetaPosterior(Posterior):
    """A :class:`Posterior` whose success probability is ``Beta(alpha, beta)``: expectations in closed form.

    ``mean`` and ``variance`` are the exact moments of the logit of a Beta variable (digamma, trigamma).
    Make it with :meth:`from_counts`.
    """

    alpha: FloatArray
    """[Q] pseudo-count of successes, > 0."""
    beta: FloatArray
    """[Q] pseudo-count of failures, > 0."""

    @classmethod
    def from_counts(cls, alpha: FloatArray, beta: FloatArray) -> BetaPosterior:
        """The posterior of ``Beta(alpha, beta)``; both [Q], positive."""
        return cls(psi(alpha) - psi(beta), polygamma(1, alpha) + polygamma(1, beta), alpha, beta)

    def success_probability(self) -> FloatArray:
        """[Q] ``alpha / (alpha + beta)``."""
        return self.alpha / (self.alpha + self.beta)

    def expected_variance(self) -> FloatArray:
        """[Q] ``E[p (1 - p)] = alpha beta / ((alpha + beta) (alpha + beta + 1))``."""
        total = self.alpha + self.beta
        return self.alpha * self.beta / (total * (total + 1))

    def power_moment(self, successes: int, failures: int) -> FloatArray:
        """[Q] as in :class:`Posterior`, from the Beta function."""
        log_Q = betaln(self.alpha + successes, self.beta + failures) - betaln(self.alpha, self.beta)
        return np.asarray(np.exp(log_Q), dtype=np.float64)

    def updated(self, successes: IntArray, trials: IntArray) -> BetaPosterior:
        """The belief after further rollouts, both [Q]: ``Beta(alpha + successes, beta + failures)``."""
        return BetaPosterior.from_counts(self.alpha + successes, self.beta + (trials - successes))

    def count_cdf(self, counts: IntArray, trials: IntArray) -> FloatArray:
        """[Q] as in :class:`Posterior`, from the beta-binomial distribution."""
        n_Q1, a_Q1, b_Q1 = trials[:, None], self.alpha[:, None], self.beta[:, None]
        inside_QK = np.arange(int(trials.max(initial=0)) + 1) <= counts[:, None]
        k_QK = np.where(inside_QK, np.arange(inside_QK.shape[1]), 0)
        ways_QK = -np.log(n_Q1 + 1) - betaln(n_Q1 - k_QK + 1, k_QK + 1)  # logarithm of n over k
        log_QK = ways_QK + betaln(k_QK + a_Q1, n_Q1 - k_QK + b_Q1) - betaln(a_Q1, b_Q1)
        cdf_Q = np.where(inside_QK, np.exp(log_QK), 0.0).sum(axis=1)
        return np.asarray(np.minimum(cdf_Q, 1.0), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class GridPosterior(Posterior):
    """A :class:`Posterior` of any shape: weights on a grid of logits; ``mean`` and ``variance`` are its moments."""

    logits: FloatArray
    """[Q, K]."""
    weights: FloatArray
    """[Q, K], >= 0; rows sum to 1."""

    @classmethod
    def of(cls, logits: FloatArray, log_weights: FloatArray) -> GridPosterior:
        """The posterior with these logarithms of weights, up to a constant per row; both [Q, K]."""
        weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        mean = (weights * logits).sum(axis=1)
        return cls(mean, (weights * (logits - mean[:, None]) ** 2).sum(axis=1), logits, weights)

    @classmethod
    def of_normal(cls, mean: FloatArray, variance: FloatArray) -> GridPosterior:
        """The normal distribution of the logit with these moments, both [Q], on 161 logits within 8 deviations.

        By the trapezoidal rule its update is exact to 1e-9 for up to 32 trials and a logit variance of up to 9. A point
        estimate stays what it is.
        """
        z_K = np.linspace(-8.0, 8.0, 161)
        logits_QK = mean[:, None] + np.sqrt(variance)[:, None] * z_K
        return cls.of(logits_QK, np.broadcast_to(-(z_K**2) / 2, logits_QK.shape))

    def updated(self, successes: IntArray, trials: IntArray) -> GridPosterior:
        """The belief after further rollouts, both [Q]: each weight times the likelihood of its logit."""
        won_Q1, lost_Q1 = successes[:, None], (trials - successes)[:, None]
        likelihood_QK = won_Q1 * log_expit(self.logits) + lost_Q1 * log_expit(-self.logits)
        with np.errstate(divide="ignore"):  # a weight of 0 stays 0
            return GridPosterior.of(self.logits, np.log(self.weights) + likelihood_QK)

    def _expect(self, function: Callable[[FloatArray], FloatArray], steep: float | FloatArray) -> FloatArray:
        return np.asarray((function(self.logits) * self.weights).sum(axis=1), dtype=np.float64)


def updated(posterior: Posterior, successes: IntArray, trials: IntArray) -> Posterior:
    """The belief after ``successes`` of ``trials`` further rollouts of each prompt, both [Q], by Bayes' rule."""
    if isinstance(posterior, BetaPosterior | GridPosterior):
        return posterior.updated(successes, trials)
    return GridPosterior.of_normal(posterior.mean, posterior.variance).updated(successes, trials)


@dataclass(frozen=True, eq=False)
class ScoreMoments:
    """Belief about the scores of Q prompts' rollouts; unit of all: score squared, on any common scale."""

    within_Q2: FloatArray
    """[Q, 2] variance of the score among failures (V0) and among successes (V1)."""
    gap_Q: FloatArray
    """[Q] squared difference of the mean scores of successes and failures (D2)."""
