"""How many tokens will a rollout of each prompt have? The mean length, believed on a log scale.

What is predicted is the *mean* length of a prompt, since a budget of tokens adds lengths up. A visit with n rollouts
shows its logarithm with a noise of about ``cv^2 / n``, cv the spread of lengths within a prompt relative to their mean.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from allotment.checks import check_setting
from allotment.errors import InvalidInputError
from allotment.prediction.hierarchical_regression import HierarchicalRegression
from allotment.prompts.ids import canonical_ids
from allotment.state import State, Stateful, array_from_state, check_state, from_state
from allotment.types import FloatArray, IntArray, PromptId, PromptIds


class LogLengthModel(Stateful, Protocol):
    """Regression with normal noise; :class:`~allotment.prediction.HierarchicalRegression` is one."""

    def predict(self, ids: PromptIds) -> tuple[FloatArray, FloatArray]:
        """Mean and variance of each prompt's value; both [Q]."""
        ...

    def observe(self, ids: PromptIds, values_B: FloatArray, noise_variance_B: FloatArray) -> None:
        """Learn a value of each of B prompts, measured with this variance."""
        ...


class LengthPredictor:
    """The expected completion tokens of a rollout of each prompt: ``exp(mean + variance / 2)`` of the log mean length.

    Times the ratio of tokens used to tokens so predicted in recent visits: heavy tails, and an allocation that prefers
    prompts whose length is underestimated, else make the use exceed the prediction by a few per cent.

    Args:
        typical_length: tokens of a rollout before anything was observed; None if unknown.
        model: regression on the log scale; :class:`~allotment.prediction.HierarchicalRegression` without embeddings if
            None.

    Raises:
        InvalidInputError: the typical length is not positive and finite.
    """

    KIND = "LengthPredictor"
    PRIOR_SPREAD = 0.5
    """Coefficient of variation within a prompt that is assumed at first."""
    PRIOR_ROLLOUTS = 8.0
    """How many rollouts' worth that assumption is, and later the pooled spread against a prompt's own."""

    def __init__(self, *, typical_length: float | None = None, model: LogLengthModel | None = None) -> None:
        if typical_length is not None:
            check_setting("typical_length", typical_length, 0 < typical_length < np.inf, "> 0, finite")
        self.typical_length = None if typical_length is None else float(typical_length)
        self.model: LogLengthModel = HierarchicalRegression(prior_mean=5.0) if model is None else model
        self._pooled = np.array(
            [self.PRIOR_ROLLOUTS, self.PRIOR_ROLLOUTS * self.PRIOR_SPREAD**2]
        )  # weight, sum of cv^2
        self._observed = 0
        self._tokens = np.zeros(2)  # predicted, used
        self._recent = np.zeros(2)  # the same, discounted and before calibration

    @property
    def predicted_tokens(self) -> float:
        """Tokens that were expected of all rollouts observed, each predicted before its visit was seen."""
        return float(self._tokens[0])

    @property
    def used_tokens(self) -> float:
        """Tokens of the same rollouts; those observed before anything could be predicted are in neither."""
        return float(self._tokens[1])

    def expected_length(self, ids: PromptIds, *, unknown: float) -> FloatArray:
        """[Q] expected tokens of one rollout of each prompt.

        Args:
            ids: the Q prompts, seen before or not.
            unknown: what to answer for all while no length was observed and none is typical.
        """
        if not self._observed:
            value = unknown if self.typical_length is None else self.typical_length
            return np.full(len(canonical_ids(ids, unique=False)), value)
        used_per_predicted = self._recent[1] / self._recent[0] if self._recent[0] else 1.0
        return self._uncalibrated(ids) * used_per_predicted

    def _uncalibrated(self, ids: PromptIds) -> FloatArray:
        mean_Q, variance_Q = self.model.predict(ids)
        return np.asarray(np.exp(mean_Q + variance_Q / 2), dtype=np.float64)

    def observe(self, ids: PromptIds, rows_N: IntArray, lengths_N: FloatArray) -> None:
        """Learn the lengths of N rollouts, > 0, of the prompts ``ids[rows_N]``; prompts without any are ignored."""
        plain = canonical_ids(ids)
        if not (np.isfinite(lengths_N) & (lengths_N > 0)).all():
            raise InvalidInputError(
                "a length is not positive", got=lengths_N.min(), allowed="> 0", fix="leave empty rollouts out"
            )
        n_Q = np.bincount(rows_N, minlength=len(plain))
        if self._observed or self.typical_length is not None:
            expected_Q = self.expected_length(plain, unknown=np.nan)
            used = float(np.sort(lengths_N).sum())
            self._tokens += np.array([float(n_Q @ expected_Q), used])
            if self._observed:
                self._recent = 0.9 * self._recent + np.array([float(n_Q @ self._uncalibrated(plain)), used])
        order = np.lexsort((lengths_N, rows_N))  # the last bits of a sum depend on its order
        rows_N, lengths_N = rows_N[order], lengths_N[order]
        seen = np.flatnonzero(n_Q > 0)
        mean_Q = np.bincount(rows_N, lengths_N, minlength=len(plain)) / np.maximum(n_Q, 1)
        squares_Q = np.bincount(rows_N, (lengths_N / mean_Q[rows_N] - 1.0) ** 2, minlength=len(plain))
        noise_B = self._noise(n_Q[seen].astype(np.float64), squares_Q[seen].astype(np.float64))
        chosen: list[PromptId] = [plain[i] for i in seen]
        if chosen:  # the logarithm of a mean of n is low by half its noise
            self.model.observe(chosen, np.log(mean_Q[seen]) + noise_B / 2, noise_B)
            self._observed += len(chosen)

    def _noise(self, n_B: FloatArray, squares_B: FloatArray) -> FloatArray:
        """[B] variance of the log of a mean of n lengths; own squared deviations, pooled with others'."""
        self._pooled = 0.9 * self._pooled + [float((n_B - 1).sum()), float(np.sort(squares_B).sum())]
        pooled = self._pooled[1] / self._pooled[0]
        spread_B = (self.PRIOR_ROLLOUTS * pooled + squares_B) / (self.PRIOR_ROLLOUTS + n_B - 1)
        return np.asarray(np.maximum(spread_B, 1e-6) / n_B, dtype=np.float64)

    def state_dict(self) -> State:
        """Everything, the model included."""
        return {
            "kind": self.KIND,
            "typical_length": self.typical_length,
            "pooled": self._pooled.copy(),
            "observed": self._observed,
            "tokens": self._tokens.copy(),
            "recent": self._recent.copy(),
            "model": self.model.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Take over everything from a :meth:`state_dict`.

        Raises:
            StateError: of another kind, keys missing, or values that do not fit.
        """
        check_state(state, self.KIND, ("typical_length", "pooled", "observed", "tokens", "recent", "model"))
        loaded = from_state(lambda: LengthPredictor(typical_length=state["typical_length"]))
        pooled, tokens, recent = (array_from_state(state, key, (2,)) for key in ("pooled", "tokens", "recent"))
        observed: Any = state["observed"]
        from_state(lambda: check_setting("observed", observed, type(observed) is int and observed >= 0, ">= 0"))
        self.model.load_state_dict(state["model"])  # the last that can fail; it is all or nothing itself
        self.typical_length, self._observed = loaded.typical_length, observed
        self._pooled, self._tokens, self._recent = pooled, tokens, recent
