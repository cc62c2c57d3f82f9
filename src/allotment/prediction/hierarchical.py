"""The default predictor: a level, a Gaussian process on embeddings and each prompt's own record, all with drift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from allotment.checks import check_setting
from allotment.errors import InvalidInputError, StateError
from allotment.prediction.base import visits
from allotment.prediction.binomial import binomial_sites, log_predictive
from allotment.prediction.features import scale_beside
from allotment.prediction.hierarchy import Hierarchy, Settings, bandwidth_factors
from allotment.prediction.landmarks import Landmarks
from allotment.prompts.embeddings import EmbeddedPrompts, Embeddings, as_numbers, check_vectors, ids_and_vectors
from allotment.prompts.ids import canonical_ids
from allotment.state import State, array_from_state, check_state, from_state
from allotment.types import FloatArray, Posterior, PromptId, PromptIds

DIGITS = 9
"""Decimals of a reported mean or variance: equal prompts must tie, whatever the last bits of a matrix product."""


class _Hierarchical:
    """Registration, landmarks, state: what the model needs around it, whatever is observed."""

    KIND: str
    DEFAULTS: Settings

    def __init__(
        self,
        embeddings: Embeddings | None = None,
        *,
        ids: PromptIds | None = None,
        features: npt.ArrayLike | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        """Store the settings and register ``embeddings`` if given.

        Args:
            embeddings: [M, D] array, or mapping from id to vector [D]; without any, prompts need no registration.
            ids: [M] ids of the rows of an array; 0..M-1 if None.
            features: [M, F] further numbers beside an array of embeddings, see :meth:`register`.
            seed: chooses the landmarks.
            settings: see :class:`~allotment.prediction.hierarchy.Settings`.

        Raises:
            InvalidInputError: a setting is unknown or out of its range, or the embeddings have a wrong shape or are not
                finite.
            DuplicatePromptError: an id stands twice.
        """
        self.settings = _checked({**asdict(self.DEFAULTS), **settings})
        check_setting("seed", seed, isinstance(seed, int) and seed >= 0, "a whole number >= 0")
        self.seed = seed
        self._prompts = EmbeddedPrompts()
        self._feature_scale: FloatArray = np.ones(0)
        self._landmarks: Landmarks | None = None
        self._model = Hierarchy(self.settings, 0)
        is_array = embeddings is not None and not isinstance(embeddings, Mapping)
        check_setting(
            "features", "features", features is None or is_array, "features only together with an array of embeddings"
        )
        self.register(*ids_and_vectors(embeddings, ids, np.float32), features)

    def register(self, ids: PromptIds, embeddings: npt.ArrayLike, features: npt.ArrayLike | None = None) -> None:
        """Add prompts ``ids`` [Q] with ``embeddings`` [Q, D]. Known ids must bring the same vector.

        The landmarks are chosen from what is registered when the first outcome is observed.

        Args:
            ids: [Q] prompt ids.
            embeddings: [Q, D]; float32 arrays of many rows are kept, not copied.
            features: [Q, F] further numbers that may tell how hard a prompt is, such as
                :func:`~allotment.prediction.text_features`; for all prompts or for none. Scaled as
                :func:`~allotment.prediction.features.scale_beside` says, by the prompts first registered.

        Raises:
            InvalidInputError: wrong shape or dimension, not finite, another vector for a known id; features for some
                registrations only; or outcomes were observed without embeddings before.
            DuplicatePromptError: an id stands twice.
        """
        if self._landmarks is None and self._model.step:
            raise InvalidInputError(
                "embeddings come too late",
                got=f"registration after {self._model.step} steps without embeddings",
                allowed="the first registration before the first outcome",
                fix="register some prompts first, or make a new predictor",
            )
        if features is None and not self._feature_scale.size:
            self._prompts.register(ids, embeddings)
            return
        embeddings_QD, features_QF = (
            as_numbers(embeddings, np.float32),
            as_numbers([] if features is None else features, np.float32),
        )
        check_vectors(canonical_ids(ids), embeddings_QD, 0)
        known = self._feature_scale.size or (0 if len(self._prompts) else features_QF.shape[-1])
        if features_QF.ndim != 2 or features_QF.shape != (len(embeddings_QD), known):
            raise InvalidInputError(
                "features do not fit",
                got=f"shape {features_QF.shape} beside embeddings {embeddings_QD.shape}",
                allowed=f"({len(embeddings_QD)}, {known or 'F'}), or none at all as at the first registration",
                fix="pass one row of features per embedding, at every registration or at none",
            )
        check_vectors(canonical_ids(ids), np.hstack([embeddings_QD, features_QF]), self._prompts.dimension)
        scale_F = self._feature_scale if self._feature_scale.size else scale_beside(features_QF, embeddings_QD)
        self._prompts.register(ids, np.hstack([embeddings_QD, features_QF * scale_F]))
        self._feature_scale = scale_F

    def _belief(self, ids: PromptIds) -> tuple[FloatArray, FloatArray]:
        plain = canonical_ids(ids, unique=False)
        mean_Q, variance_Q = self._model.belief(plain, self._features(plain))
        return np.round(mean_Q, DIGITS), np.maximum(np.round(variance_Q, DIGITS), 0.0)

    def _features(self, ids: tuple[PromptId, ...]) -> FloatArray | None:
        """[H, Q, M] features of registered prompts; None for a predictor without embeddings, or without outcomes."""
        if self._landmarks is None and not len(self._prompts):
            return None
        rows_Q = self._prompts.index.rows(ids)
        return None if self._landmarks is None else self._landmarks.features(self._prompts.rows(rows_Q))

    def _settled_features(self, ids: tuple[PromptId, ...]) -> FloatArray | None:
        """[H, B, M] features of prompts with outcomes; before the first, landmarks are drawn from distinct prompts."""
        if self._landmarks is None and len(self._prompts):
            random, count = np.random.default_rng(self.seed), len(self._prompts)
            points = self._prompts.rows(random.choice(count, min(count, 4 * self.settings.rank), replace=False))
            first = np.sort(np.unique(points, axis=0, return_index=True)[1])[: self.settings.rank]
            self._use(Landmarks.at(points[first], bandwidth_factors(self.settings)))
        return self._features(ids)

    def _use(self, landmarks: Landmarks) -> None:
        self._landmarks = landmarks
        self._model = Hierarchy(self.settings, landmarks.rank)

    def state_dict(self) -> State:
        """Settings, landmarks, records and what was learnt. Embeddings are data: register them again before going on.

        Size: O(V + M^2) for V visited prompts.
        """
        points = np.zeros((0, 0)) if self._landmarks is None else self._landmarks.points
        return {
            "kind": self.KIND,
            "seed": self.seed,
            **asdict(self.settings),
            "feature_scale": self._feature_scale.copy(),
            "landmarks": points.copy(),
            **self._model.state(),
        }

    def load_state_dict(self, state: State) -> None:
        """Take over everything from a :meth:`state_dict`, settings included; registered embeddings stay.

        Raises:
            StateError: of another kind, keys missing, or values that do not fit.
        """
        names = [field.name for field in fields(Settings)]
        check_state(state, self.KIND, ("seed", *names, "feature_scale", "landmarks", *Hierarchy.KEYS))
        made = from_state(lambda: type(self)(seed=state["seed"], **{name: state[name] for name in names}))
        points = array_from_state(state, "landmarks", np.shape(state["landmarks"]))
        if points.size:
            from_state(lambda: made._use(Landmarks.at(points, bandwidth_factors(made.settings))))
        made._model.restore(state)
        made._feature_scale = array_from_state(state, "feature_scale", (np.size(state["feature_scale"]),))
        made._prompts = self._prompts if len(self._prompts) else EmbeddedPrompts(dimension=points.shape[1])
        self._check_prompts_fit(made)
        vars(self).update(vars(made))

    def _check_prompts_fit(self, made: _Hierarchical) -> None:
        """Raise :class:`StateError` unless the registered prompts can go on with the state in ``made``."""
        if not len(self._prompts):
            return
        learnt_dimension = 0 if made._landmarks is None else made._landmarks.points.shape[1]
        if made._model.step and learnt_dimension != self._prompts.dimension:
            raise StateError(
                "the state was learnt with other embeddings than those registered",
                got=f"embeddings of dimension {self._prompts.dimension}, a state of {learnt_dimension or 'none'}",
                allowed="the embeddings, with features if any, that were registered when the state was saved",
                fix="register those, or none where the state has none",
            )
        if not np.array_equal(made._feature_scale, self._feature_scale):
            raise StateError(
                "the registered features are scaled differently from those of the state",
                got=f"factors {self._feature_scale.tolist()}",
                allowed=f"{made._feature_scale.tolist()}",
                fix="register the same prompts first as when the state was saved, or load before registering",
            )


class HierarchicalPredictor(_Hierarchical):
    """Success probability of every prompt, seen or not: the library's default predictor.

    ``logit p_q(t) = c + d(t) + g_t(x_q) + u_q(t)``: a level that drifts with the policy, a Gaussian process of low rank
    on embeddings, and an effect of each prompt's own, observed through binomial counts. See
    :mod:`allotment.prediction.hierarchy` for the recursion and :mod:`allotment.prediction.binomial` for the likelihood.
    A prompt never seen gets the embedding's opinion, one seen often its own record; variances, drifts and bandwidth are
    learnt online from the predictive likelihood, so nothing is tuned per data set (``learn=False`` holds them).

    Cost: a step of B outcomes takes O(B M^2 + M^3), a prediction of Q prompts O(Q M^2), M = 128 landmarks, whatever the
    number N of prompts; memory is the embeddings (4 N D bytes) and O(V + M^2) for V visited prompts.

    Starting values are broad guesses, not fits (:class:`~allotment.prediction.hierarchy.Settings`). With ``learn`` a
    hyper-parameter is a mean over candidates, so it starts somewhat above its setting, and embeddings are used from the
    first step that speaks for them. docs/experiments.md has the measurements.
    """

    KIND = "HierarchicalPredictor"
    DEFAULTS = Settings()

    def predict(self, ids: PromptIds) -> Posterior:
        """[Q] belief about each prompt.

        Raises:
            UnknownPromptError: embeddings are in use and an id was never registered.
        """
        return Posterior(*self._belief(ids))

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """Learn from one visit of each prompt [B], all of one step; 0 trials are no visit.

        Raises:
            UnknownPromptError: embeddings are in use and an id was never registered.
            InvalidInputError: counts are not success counts.
            DuplicatePromptError: an id stands twice.
        """
        if len(self._prompts):
            self._prompts.index.rows(canonical_ids(ids))
        visited, successes_B, trials_B = visits(ids, successes, trials)
        if not visited:
            return
        plain, s_B, n_B = tuple(visited), successes_B.astype(np.float64), trials_B.astype(np.float64)
        features = self._settled_features(plain)
        self._model.learn(plain, features, partial(log_predictive, successes=s_B, trials=n_B))
        self._model.absorb(plain, features, *binomial_sites(self._model.prior(plain, features), s_B, n_B))


class HierarchicalRegression(_Hierarchical):
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


def _checked(settings: dict[str, Any]) -> Settings:
    unknown = settings.keys() - {field.name for field in fields(Settings)}
    allowed = ", ".join(field.name for field in fields(Settings))
    check_setting("setting", sorted(unknown), not unknown, allowed)
    for name in settings.keys() - {"rank", "learn"}:
        is_number = isinstance(settings[name], int | float) and not isinstance(settings[name], bool)
        check_setting(name, settings[name], is_number, "a number")
    made = Settings(**settings)
    check_setting("rank", made.rank, isinstance(made.rank, int) and made.rank >= 1, "a whole number >= 1")
    check_setting("memory", made.memory, made.memory > 0, "a positive number of steps, or inf")
    check_setting("prior_mean", made.prior_mean, bool(np.isfinite(made.prior_mean)), "a finite number")
    check_setting("learn", made.learn, isinstance(made.learn, bool), "True or False")
    for name in ("prior_variance", "scale", "bandwidth", "unseen_variance", "prompt_variance"):
        check_setting(name, settings[name], 0 < settings[name] < np.inf, "a positive number")
    for name in ("prompt_drift", "level_drift"):
        check_setting(name, settings[name], 0 <= settings[name] < np.inf, "a number >= 0")
    return made
