"""The default predictor: a level, a Gaussian process on embeddings and each prompt's own record, all with drift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from allotment.checks import check_setting
from allotment.errors import InvalidInputError
from allotment.prediction.binomial import binomial_sites, log_predictive, visits
from allotment.prediction.hierarchy import Batch, Hierarchy
from allotment.prediction.hierarchy_state import KEYS, check_embeddings_fit, hierarchy_state, restore
from allotment.prediction.landmarks import Landmarks, Views
from allotment.prediction.posteriors import Predictor, PredictorEntry
from allotment.prediction.settings import Settings, bandwidth_factors, checked_settings
from allotment.prompts.embeddings import EmbeddedPrompts, Embeddings, ids_and_vectors
from allotment.prompts.ids import canonical_ids
from allotment.state import State, array_from_state, check_state, from_state
from allotment.types import FloatArray, Posterior, PromptId, PromptIds

DIGITS = 9
"""Decimals of a reported mean or variance: equal prompts must tie, whatever the last bits of a matrix product."""


class HierarchicalModel:
    """Registration, landmarks, state: what the model needs around it, whatever is observed.

    Args:
        embeddings: [M, D] array, or mapping from id to vector [D]; without any, prompts need no registration.
        ids: [M] ids of the rows of an array; 0..M-1 if None.
        features: [M, F] further numbers beside an array of embeddings, see :meth:`register`.
        seed: chooses the landmarks.
        settings: see :class:`~allotment.prediction.settings.Settings`.

    Raises:
        InvalidInputError: a setting is unknown or out of its range, or as :meth:`register`.
        DuplicatePromptError: an id stands twice.
    """

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
        self.settings = checked_settings({**asdict(self.DEFAULTS), **settings})
        check_setting("seed", seed, isinstance(seed, int) and seed >= 0, "a whole number >= 0")
        self.seed = seed
        self._prompts: EmbeddedPrompts | None = None  # none while no embeddings are in use
        self._feature_scale: FloatArray = np.ones(0)
        self._views = Views()
        self._model = Hierarchy(self.settings, 0)
        plain, vectors = ids_and_vectors(embeddings, ids, np.float32)
        fits = features is None or (embeddings is not None and not isinstance(embeddings, Mapping))
        check_setting("features", "features", fits, "features only together with an array of embeddings")
        self.register(plain, vectors, features)

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
        if self._views.landmarks is None and self._model.step:
            raise InvalidInputError(
                "embeddings come too late",
                got=f"registration after {self._model.step} steps without embeddings",
                allowed="the first registration before the first outcome",
                fix="register some prompts first, or make a new predictor",
            )
        prompts = EmbeddedPrompts() if self._prompts is None else self._prompts
        vectors, scale_F = embeddings, self._feature_scale
        if features is not None or scale_F.size:
            from allotment.prediction.features import with_features

            vectors, scale_F = with_features(canonical_ids(ids), embeddings, features, scale_F, prompts)
        prompts.register(ids, vectors)
        self._prompts, self._feature_scale = prompts if prompts.dimension else None, scale_F

    def _belief(self, ids: PromptIds) -> tuple[FloatArray, FloatArray]:
        mean_Q, variance_Q = self._model.belief(self._batch(canonical_ids(ids, unique=False)))
        return np.round(mean_Q, DIGITS), np.maximum(np.round(variance_Q, DIGITS), 0.0)

    def _batch(self, ids: tuple[PromptId, ...]) -> Batch:
        """What the model knows of Q prompts; UnknownPromptError where one is not registered but embeddings are used."""
        return self._model.batch(ids, None if self._prompts is None else self._views.of(self._prompts, ids))

    def _settle(self) -> None:
        """Before the first outcome, landmarks are drawn from distinct prompts."""
        if self._views.landmarks is None and self._prompts is not None:
            factors_H = bandwidth_factors(self.settings)
            self._use(Landmarks.drawn(self._prompts, self.settings.rank, factors_H, self.seed))

    def _use(self, landmarks: Landmarks) -> None:
        self._views = Views(landmarks)
        self._model = Hierarchy(self.settings, landmarks.rank)

    def state_dict(self) -> State:
        """Settings, landmarks, records and what was learnt. Embeddings are data: register them again before going on.

        Size: O(V + M^2) for V visited prompts.
        """
        points = np.zeros((0, 0)) if self._views.landmarks is None else self._views.landmarks.points
        settings = {"seed": self.seed, **asdict(self.settings), "feature_scale": self._feature_scale.copy()}
        return {"kind": self.KIND, **settings, "landmarks": points.copy(), **hierarchy_state(self._model)}

    def load_state_dict(self, state: State) -> None:
        """See :class:`~allotment.state.Stateful`; registered embeddings stay."""
        names = [field.name for field in fields(Settings)]
        check_state(state, self.KIND, ("seed", *names, "feature_scale", "landmarks", *KEYS))
        loaded = from_state(lambda: type(self)(seed=state["seed"], **{name: state[name] for name in names}))
        points = array_from_state(state, "landmarks", np.shape(state["landmarks"]))
        if points.size:
            from_state(lambda: loaded._use(Landmarks.at(points, bandwidth_factors(loaded.settings))))
            loaded._prompts = EmbeddedPrompts(dimension=points.shape[1])
        restore(loaded._model, state)
        loaded._feature_scale = array_from_state(state, "feature_scale", (np.size(state["feature_scale"]),))
        if self._prompts:
            learnt = 0 if loaded._prompts is None else loaded._prompts.dimension
            check_embeddings_fit(
                self._prompts.dimension, learnt, self._feature_scale, loaded._feature_scale, loaded._model.step
            )
            loaded._prompts = self._prompts
        vars(self).update(vars(loaded))


class HierarchicalPredictor(HierarchicalModel):
    """Success probability of every prompt, seen or not: the library's default predictor.

    ``logit p_q(t) = c + d(t) + g_t(x_q) + u_q(t)``: a level that drifts with the policy, a Gaussian process of low rank
    on embeddings, and an effect of each prompt's own, observed through binomial counts. See
    :mod:`allotment.prediction.hierarchy` for the recursion and :mod:`allotment.prediction.binomial` for the likelihood.
    A prompt never seen gets the embedding's opinion, one seen often its own record; variances, drifts and bandwidth are
    learnt online from the predictive likelihood, so nothing is tuned per data set (``learn=False`` holds them).

    Cost: a step of B outcomes takes O(B M^2 + M^3), a prediction of Q prompts O(Q M^2), M = 128 landmarks, whatever the
    number N of prompts; memory is the embeddings (4 N D bytes) and O(V + M^2) for V visited prompts.
    """

    KIND = "HierarchicalPredictor"
    DEFAULTS = Settings()

    def predict(self, ids: PromptIds) -> Posterior:
        """[Q] belief about each prompt."""
        return Posterior(*self._belief(ids))

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """Learn from one visit of each prompt [B], all of one step."""
        known = self._prompts.index if self._prompts else None
        visited, successes_B, trials_B = visits(ids, successes, trials, known)
        if not visited:
            return
        counts_B = successes_B.astype(np.float64), trials_B.astype(np.float64)
        self._settle()
        batch = self._batch(visited)
        self._model.learn(batch, log_predictive, *counts_B)
        self._model.absorb(batch, lambda prior: binomial_sites(prior, *counts_B))


def default_predictor(
    embeddings: Embeddings | None = None, ids: PromptIds | None = None, features: npt.ArrayLike | None = None
) -> Predictor:
    """What the library uses where no predictor is chosen: a new :class:`HierarchicalPredictor`, with its arguments."""
    return HierarchicalPredictor(embeddings, ids=ids, features=features)


ENTRY = PredictorEntry(HierarchicalPredictor, "used")
