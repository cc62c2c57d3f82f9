"""The hierarchical model for any real value of a prompt."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from allotment.errors import InvalidInputError
from allotment.prediction.hierarchical import HierarchicalModel
from allotment.prediction.settings import Settings
from allotment.prompts.ids import canonical_ids
from allotment.types import FloatArray, PromptIds


class HierarchicalRegression(HierarchicalModel):
    """The same model with normal noise: a real value of each prompt, such as its log length, seen or not.

    ``value = c + d(t) + g_t(x_q) + u_q(t) + noise``, the variance of the noise given with each observation.
    """

    KIND = "HierarchicalRegression"
    DEFAULTS = Settings(scale=1.0, unseen_variance=0.25, prompt_variance=0.25, prompt_drift=1e-4, prior_variance=25.0)

    def predict(self, ids: PromptIds) -> tuple[FloatArray, FloatArray]:
        """Mean and variance of each prompt's value, both [Q].

        Raises:
            UnknownPromptError: embeddings are in use and an id was never registered.
        """
        return self._belief(ids)

    def observe(self, ids: PromptIds, values_B: FloatArray, noise_variance_B: FloatArray) -> None:
        """Learn one value of each prompt [B], all of one step, each measured with its noise variance, > 0.

        Raises:
            UnknownPromptError: embeddings are in use and an id was never registered.
            InvalidInputError: a value is not finite, or a variance not positive and finite.
            DuplicatePromptError: an id stands twice.
        """
        plain = canonical_ids(ids)
        value_B, noise_B = np.asarray(values_B, dtype=np.float64), np.asarray(noise_variance_B, dtype=np.float64)
        good = value_B.shape == noise_B.shape == (len(plain),) and np.isfinite(value_B).all()
        if not (good and (noise_B > 0).all() and np.isfinite(noise_B).all()):
            raise InvalidInputError(
                "an observation is not a value with a noise variance",
                got=f"{len(plain)} ids, values {value_B.shape}, noise variances {noise_B.shape}",
                allowed="one finite value and one positive, finite variance per id",
                fix="leave out prompts of which nothing was measured",
            )
        if not plain:
            return
        features = self._settled_features(plain)

        def score(mean_B: FloatArray, variance_B: FloatArray) -> FloatArray:
            return np.asarray(norm.logpdf(value_B, mean_B, np.sqrt(variance_B + noise_B)), dtype=np.float64)

        self._model.learn(plain, features, score)
        self._model.absorb(plain, features, value_B, 1 / noise_B)
