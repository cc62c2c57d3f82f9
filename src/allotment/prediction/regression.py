"""The baselines of the VIP paper on embeddings: ridge regression and nearest neighbours over recent observations."""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve
from scipy.special import logit

from allotment.checks import check_setting
from allotment.prediction.base import PredictorEntry
from allotment.prediction.binomial import visits
from allotment.prediction.interpolation import squared_distances
from allotment.prompts.embeddings import EmbeddedPrompts, Embeddings, ids_and_vectors
from allotment.prompts.ids import canonical_ids
from allotment.state import State, array_from_state, check_state, from_state, rows_from_state
from allotment.types import FloatArray, Posterior, PromptIds


class WindowSettings(TypedDict, total=False):
    """Settings of every :class:`WindowedRegression`, by keyword."""

    window: int
    """Number of visits, >= 1; 1,024 by default."""
    epsilon: float
    """Predictions are clipped to ``[epsilon, 1 - epsilon]``; 0.01 by default. Our choice; a line in 384 dimensions
    leaves [0, 1] easily."""


class WindowedRegression:
    """Rates of the last ``window`` visits, regressed on the embeddings of their prompts; a point estimate, clipped.

    Needs embeddings: prompts must be registered before they are predicted or observed.

    Args:
        embeddings: [M, D] array, or mapping from id to vector [D].
        ids: [M] ids of the rows of an array; 0..M-1 if None.
        window: see :class:`WindowSettings`.
        epsilon: likewise.

    Raises:
        InvalidInputError: a setting is out of its range, or the embeddings have a wrong shape or are not finite.
        DuplicatePromptError: an id stands twice.
    """

    KIND: str
    SETTINGS: tuple[str, ...]

    def __init__(
        self,
        embeddings: Embeddings | None = None,
        ids: PromptIds | None = None,
        *,
        window: int = 1024,
        epsilon: float = 0.01,
    ) -> None:
        check_setting("window", window, window >= 1, "a whole number >= 1")
        check_setting("epsilon", epsilon, 0 < epsilon < 0.5, "0 < epsilon < 1/2")
        self.window = int(window)
        self.epsilon = float(epsilon)
        self._prompts = EmbeddedPrompts(np.float64)
        self._rows = np.empty(0, dtype=np.int64)
        self._rates = np.empty(0)
        self.register(*ids_and_vectors(embeddings, ids, np.float64))

    def _rate(self, queries_QD: FloatArray, points_WD: FloatArray, rates_W: FloatArray) -> FloatArray:
        """[Q] predicted rates from the W >= 1 observations of the window."""
        raise NotImplementedError

    def register(self, ids: PromptIds, embeddings: npt.ArrayLike) -> None:
        """Add prompts; see :meth:`~allotment.prompts.embeddings.EmbeddedPrompts.register`."""
        self._prompts.register(ids, embeddings)

    def predict(self, ids: PromptIds) -> Posterior:
        """[Q] point estimate (variance 0) of each prompt; 1/2 before any data.

        Raises:
            UnknownPromptError: an id was never registered.
        """
        rows_Q = self._prompts.index.rows(canonical_ids(ids, unique=False))
        rate_Q = np.full(len(rows_Q), 0.5)
        if len(self._rows) and len(rows_Q):
            rate_Q = self._rate(self._prompts.rows(rows_Q), self._prompts.rows(self._rows), self._rates)
        return Posterior(logit(np.clip(rate_Q, self.epsilon, 1 - self.epsilon)), np.zeros(len(rows_Q)))

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """Push one visit of each prompt [B] into the window, in the order given; 0 trials are no visit.

        Raises:
            UnknownPromptError: an id was never registered.
            InvalidInputError: counts are not success counts.
            DuplicatePromptError: an id stands twice.
        """
        visited, successes_B, trials_B = visits(ids, successes, trials, self._prompts.index)
        self._rows = np.concatenate([self._rows, self._prompts.index.rows(visited)])[-self.window :]
        self._rates = np.concatenate([self._rates, successes_B / trials_B])[-self.window :]

    def state_dict(self) -> State:
        """Settings, ids, embeddings and the window."""
        settings = {name: getattr(self, name) for name in self.SETTINGS}
        seen = {"rows": self._rows.copy(), "rates": self._rates.copy()}
        return {"kind": self.KIND, **settings, **self._prompts.state(), **seen}

    def load_state_dict(self, state: State) -> None:
        """Take over everything from a :meth:`state_dict`, settings included.

        Raises:
            StateError: of another kind, keys missing, or values that do not fit.
        """
        check_state(state, self.KIND, (*self.SETTINGS, "ids", "embeddings", "rows", "rates"))
        loaded = from_state(lambda: type(self)(**{name: state[name] for name in self.SETTINGS}))
        loaded._prompts = EmbeddedPrompts.from_state(state)
        loaded._rows = rows_from_state(state, "rows", len(loaded._prompts))[-loaded.window :]
        loaded._rates = array_from_state(state, "rates", (len(loaded._rows),))
        vars(self).update(vars(loaded))


class Ridge(WindowedRegression):
    """Ridge regression of recent success rates on embeddings, with an intercept that is not penalised.

    Minimises ``sum_w (rate_w - b - x_w . a)^2 + penalty |a|^2`` over the last ``window`` visits: the "ridge" baseline
    of VIP figure 3 and table 3, window 1,024. (The authors' benchmark code calls ordinary least squares by that name.)
    ``penalty`` is positive; its default is scikit-learn's. Everything else: :class:`WindowedRegression`.
    """

    KIND = "Ridge"
    SETTINGS = ("penalty", "window", "epsilon")

    def __init__(
        self,
        embeddings: Embeddings | None = None,
        *,
        ids: PromptIds | None = None,
        penalty: float = 1.0,
        **window: Unpack[WindowSettings],
    ) -> None:
        check_setting("penalty", penalty, 0 < penalty < np.inf, "a positive number")
        super().__init__(embeddings, ids, **window)
        self.penalty = float(penalty)

    def _rate(self, queries_QD: FloatArray, points_WD: FloatArray, rates_W: FloatArray) -> FloatArray:
        origin_D, level = points_WD.mean(axis=0), rates_W.mean()
        centred_WD = points_WD - origin_D
        gram_DD = centred_WD.T @ centred_WD + self.penalty * np.eye(points_WD.shape[1])
        slope_D = solve(gram_DD, centred_WD.T @ (rates_W - level), assume_a="pos")
        return np.asarray(level + ((queries_QD - origin_D) * slope_D).sum(axis=1))  # no BLAS: equal rows, equal bits


class KNearest(WindowedRegression):
    """Mean success rate of the nearest recent observations by Euclidean distance between embeddings.

    All of the window's visits count, those of the prompt itself too (distance 0). With fewer visits than ``neighbours``
    all of them are averaged. Among equal distances the choice is arbitrary but repeatable.
    ``neighbours`` are averaged, >= 1; 10 as in our own lab measurements. Everything else: :class:`WindowedRegression`.
    """

    KIND = "KNearest"
    SETTINGS = ("neighbours", "window", "epsilon")

    def __init__(
        self,
        embeddings: Embeddings | None = None,
        *,
        ids: PromptIds | None = None,
        neighbours: int = 10,
        **window: Unpack[WindowSettings],
    ) -> None:
        check_setting("neighbours", neighbours, neighbours >= 1, "a whole number >= 1")
        super().__init__(embeddings, ids, **window)
        self.neighbours = int(neighbours)

    def _rate(self, queries_QD: FloatArray, points_WD: FloatArray, rates_W: FloatArray) -> FloatArray:
        if len(rates_W) <= self.neighbours:
            return np.full(len(queries_QD), rates_W.mean())
        distances_QW = squared_distances(queries_QD, points_WD)
        nearest = np.argpartition(distances_QW, self.neighbours - 1, axis=1)[:, : self.neighbours]
        return np.asarray(rates_W[nearest].mean(axis=1))


RIDGE = PredictorEntry(Ridge, "needed")
K_NEAREST = PredictorEntry(KNearest, "needed")
