"""Predictors to compare with: success counts alone, and regressions on embeddings over recent observations.

From counts alone: no embeddings, no registration, prompts appear when they are first observed. One call of ``observe``
is one visit. A planner that generates a step's rollouts in several rounds should sum them up first: otherwise a step
counts as several visits and is forgotten several times as fast. All three use the mean success rate *over prompts*,
each visit weighing the same however many rollouts it had. A rate pooled over rollouts would drift towards the prompts
that the allocator favours.

On embeddings: ridge regression and nearest neighbours, the baselines of the VIP paper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve
from scipy.special import logit

from allotment.checks import check_setting
from allotment.prediction.binomial import visits
from allotment.prediction.posteriors import BetaPosterior, PredictorEntry
from allotment.prompts.embeddings import EmbeddedPrompts, Embeddings, VectorArray, ids_and_vectors, squared_distances
from allotment.prompts.ids import PromptTable, canonical_ids
from allotment.state import State, array_from_state, check_state, from_state, rows_from_state
from allotment.types import FloatArray, IntArray, Posterior, PromptIds


class GlobalMean:
    """The same rate for every prompt: the mean of the last ``window`` visits (the "moving average" of VIP figure 3).

    ``p = (sum of the rates + 1/2) / (visits in the window + 1)``; 1/2 before any data. Visits are of any prompts;
    within a step they are taken in the order given. The posterior is a point estimate (variance 0).
    """

    KIND = "GlobalMean"

    def __init__(self, *, window: int = 1024) -> None:
        """``window``: number of visits that are averaged, >= 1 (1,024 in VIP section 6); else InvalidInputError."""
        check_setting("window", window, window >= 1, "a whole number >= 1")
        self.window = int(window)
        self._rates = np.empty(0)

    def predict(self, ids: PromptIds) -> Posterior:
        """[Q] the same point estimate for each prompt."""
        rate = (self._rates.sum() + 0.5) / (len(self._rates) + 1.0)
        mean_Q = np.full(len(canonical_ids(ids, unique=False)), logit(rate))
        return Posterior(mean_Q, np.zeros_like(mean_Q))

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """Learn from one visit of each prompt [B]."""
        _, successes_B, trials_B = visits(ids, successes, trials)
        self._rates = np.concatenate([self._rates, successes_B / trials_B])[-self.window :]

    def state_dict(self) -> State:
        """The window and the rates in it."""
        return {"kind": self.KIND, "window": self.window, "rates": self._rates.copy()}

    def load_state_dict(self, state: State) -> None:
        """See :class:`~allotment.state.Stateful`."""
        check_state(state, self.KIND, ("window", "rates"))
        loaded = from_state(lambda: GlobalMean(window=state["window"]))
        rates = array_from_state(state, "rates", (min(len(np.atleast_1d(state["rates"])), loaded.window),))
        self.window, self._rates = loaded.window, rates


class _RecordedCounts:
    """What :class:`LastValue` and :class:`DiscountedCounts` share: a row for each prompt and the rate over prompts.

    The rate is the discounted mean success rate, ``(S + 1/2) / (W + 1)``: one imaginary prompt at 1/2 keeps it inside
    (0, 1). Each step multiplies S and W by ``global_forgetting``, then adds the rates (the number) of its prompts.
    """

    KIND: str
    SETTINGS: tuple[str, ...]
    ROWS: str
    """Name of the rows in a state."""

    def __init__(self, global_forgetting: float, *columns: int) -> None:
        self.global_forgetting = _forgetting(global_forgetting)
        self._total = self._weight = 0.0
        self._table = PromptTable(*columns)

    def _visited(self, before: FloatArray, successes_B: IntArray, failures_B: IntArray) -> FloatArray:
        """The rows of B prompts after a visit; before it, those of new prompts are 0."""
        raise NotImplementedError

    def _new(self, **settings: float) -> _RecordedCounts:
        """One with these settings, nothing observed yet."""
        make: Callable[..., _RecordedCounts] = type(self)
        return make(**settings)

    @property
    def _rate(self) -> float:
        return (self._total + 0.5) / (self._weight + 1.0)

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """Learn from one visit of each prompt [B]."""
        visited, successes_B, trials_B = visits(ids, successes, trials)
        if visited:
            before = self._table.gather(visited)
            self._table.set(visited, self._visited(before, successes_B, trials_B - successes_B))
            rates_B = np.sort(successes_B / trials_B)  # sorted: no trace of the order
            self._total = self.global_forgetting * self._total + float(rates_B.sum())
            self._weight = self.global_forgetting * self._weight + len(rates_B)

    def state_dict(self) -> State:
        """Settings, ids and what is kept of each prompt."""
        settings = {name: getattr(self, name) for name in self.SETTINGS}
        rate = (self.global_forgetting, self._total, self._weight)
        return {"kind": self.KIND, **settings, **self._table.state(self.ROWS), **dict(zip(_RATE, rate, strict=True))}

    def load_state_dict(self, state: State) -> None:
        """See :class:`~allotment.state.Stateful`."""
        check_state(state, self.KIND, (*self.SETTINGS, "ids", self.ROWS, *_RATE))
        loaded = from_state(lambda: self._new(**{name: state[name] for name in self.SETTINGS}))
        loaded.global_forgetting = from_state(lambda: _forgetting(state["global_forgetting"]))
        loaded._total, loaded._weight = from_state(lambda: (float(state[_RATE[1]]), float(state[_RATE[2]])))
        fits = 0 <= loaded._total <= loaded._weight < np.inf
        from_state(lambda: check_setting("global_total", loaded._total, fits, "0 <= total <= weight"))
        loaded._table = PromptTable.from_state(state, self.ROWS, *self._table.rows.shape[1:])
        vars(self).update(vars(loaded))


def _forgetting(value: float) -> float:
    check_setting("global_forgetting", value, 0 < value <= 1, "0 < global_forgetting <= 1")
    return float(value)


_RATE = ("global_forgetting", "global_total", "global_weight")


class LastValue(_RecordedCounts):
    """Each prompt's last observed success rate, ``(successes + s) / (trials + 2 s)`` with ``s = smoothing``.

    A prompt never seen gets the running mean rate over prompts (1/2 before any data). The baseline that explains the
    Gaussian process's lead in VIP figure 3. The posterior is a point estimate (variance 0).

    Args:
        smoothing: imaginary successes, and as many failures, that keep the logit finite; > 0. The default 1/2 is the
            Jeffreys prior of a success probability: 0/8 becomes 1/18.
        global_forgetting: what is left, after each step, of the weight of earlier steps in the mean over prompts.

    Raises:
        InvalidInputError: a setting is out of its range.
    """

    KIND, SETTINGS, ROWS = "LastValue", ("smoothing",), "logits"

    def __init__(self, *, smoothing: float = 0.5, global_forgetting: float = 0.9) -> None:
        check_setting("smoothing", smoothing, 0 < smoothing < np.inf, "a positive number")
        super().__init__(global_forgetting)
        self.smoothing = float(smoothing)

    def predict(self, ids: PromptIds) -> Posterior:
        """[Q] point estimate of each prompt."""
        mean_Q = self._table.gather(canonical_ids(ids, unique=False), float(logit(self._rate)))
        return Posterior(mean_Q, np.zeros_like(mean_Q))

    def _visited(self, before: FloatArray, successes_B: IntArray, failures_B: IntArray) -> FloatArray:
        return np.asarray(np.log(successes_B + self.smoothing) - np.log(failures_B + self.smoothing))


class DiscountedCounts(_RecordedCounts):
    """A Beta posterior for each prompt from its own past, older visits discounted.

    With ``s`` and ``f`` the discounted successes and failures of a prompt, its success probability is
    ``Beta(k c + s, k (1 - c) + f)``, ``k = prior_strength``, ``c`` the running mean rate over prompts (1/2 before any
    data). A visit first multiplies ``s`` and ``f`` by ``forgetting``, then adds its counts. A prompt never seen has
    ``s = f = 0``. So the number of rollouts counts, and the uncertainty is known: price with ``expected_variance()``.

    The defaults come from ``benchmarks/replay.py`` on the log of a real run; docs/experiments/ has the measurements.

    Args:
        forgetting: what is left of a prompt's counts at its next visit, in (0, 1]; 1 never forgets.
        prior_strength: weight of the mean over prompts, in rollouts; > 0.
        global_forgetting: what is left, after each step, of the weight of earlier steps in the mean over prompts.

    Raises:
        InvalidInputError: a setting is out of its range.
    """

    KIND, SETTINGS, ROWS = "DiscountedCounts", ("forgetting", "prior_strength"), "counts"

    def __init__(self, *, forgetting: float = 0.9, prior_strength: float = 1.0, global_forgetting: float = 0.9) -> None:
        check_setting("forgetting", forgetting, 0 < forgetting <= 1, "0 < forgetting <= 1")
        check_setting("prior_strength", prior_strength, 0 < prior_strength < np.inf, "a positive number")
        super().__init__(global_forgetting, 2)
        self.forgetting = float(forgetting)
        self.prior_strength = float(prior_strength)

    @property
    def _prior_counts(self) -> tuple[float, float]:
        """Imaginary successes and failures that every prompt starts with."""
        return self.prior_strength * self._rate, self.prior_strength * (1 - self._rate)

    def predict(self, ids: PromptIds) -> BetaPosterior:
        """[Q] the Beta posterior of each prompt."""
        successes, failures = self._prior_counts
        counts_Q2 = self._table.gather(canonical_ids(ids, unique=False))
        return BetaPosterior.from_counts(successes + counts_Q2[:, 0], failures + counts_Q2[:, 1])

    def _visited(self, before: FloatArray, successes_B: IntArray, failures_B: IntArray) -> FloatArray:
        return np.asarray(self.forgetting * before + np.stack([successes_B, failures_B], axis=1))


class WindowSettings(TypedDict, total=False):
    """Settings of every :class:`WindowedRegression`, by keyword."""

    ids: PromptIds | None
    """[M] ids of the rows of an array of embeddings; 0..M-1 if None."""
    window: int
    """Number of visits, >= 1; 1,024 by default."""
    epsilon: float
    """Predictions are clipped to ``[epsilon, 1 - epsilon]``; 0.01 by default. Our choice; a line in 384 dimensions
    leaves [0, 1] easily."""


class WindowedRegression:
    """Rates of the last ``window`` visits, regressed on the embeddings of their prompts; a point estimate, clipped.

    Needs embeddings, an array [M, D] or a mapping from id to vector [D]: prompts must be registered before they are
    predicted or observed. Settings: :class:`WindowSettings`.

    Raises:
        InvalidInputError: a setting is out of its range, or the embeddings have a wrong shape or are not finite.
        DuplicatePromptError: an id stands twice.
    """

    KIND: str
    SETTINGS: tuple[str, ...]

    def __init__(
        self,
        embeddings: Embeddings | None = None,
        *,
        ids: PromptIds | None = None,
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

    def _rate(self, queries_QD: VectorArray, points_WD: VectorArray, rates_W: FloatArray) -> FloatArray:
        """[Q] predicted rates from the W >= 1 observations of the window."""
        raise NotImplementedError

    def register(self, ids: PromptIds, embeddings: npt.ArrayLike) -> None:
        """Add prompts; see :meth:`~allotment.prompts.embeddings.EmbeddedPrompts.register`."""
        self._prompts.register(ids, embeddings)

    def predict(self, ids: PromptIds) -> Posterior:
        """[Q] point estimate (variance 0) of each prompt; 1/2 before any data."""
        rows_Q = self._prompts.index.rows(canonical_ids(ids, unique=False))
        rate_Q = np.full(len(rows_Q), 0.5)
        if len(self._rows) and len(rows_Q):
            rate_Q = self._rate(self._prompts.rows(rows_Q), self._prompts.rows(self._rows), self._rates)
        return Posterior(logit(np.clip(rate_Q, self.epsilon, 1 - self.epsilon)), np.zeros(len(rows_Q)))

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """Push one visit of each prompt [B] into the window, in the order given."""
        visited, successes_B, trials_B = visits(ids, successes, trials, self._prompts.index)
        self._rows = np.concatenate([self._rows, self._prompts.index.rows(visited)])[-self.window :]
        self._rates = np.concatenate([self._rates, successes_B / trials_B])[-self.window :]

    def state_dict(self) -> State:
        """Settings, ids, embeddings and the window."""
        settings = {name: getattr(self, name) for name in self.SETTINGS}
        seen = {"rows": self._rows.copy(), "rates": self._rates.copy()}
        return {"kind": self.KIND, **settings, **self._prompts.state(), **seen}

    def load_state_dict(self, state: State) -> None:
        """See :class:`~allotment.state.Stateful`."""
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
        self, embeddings: Embeddings | None = None, *, penalty: float = 1.0, **settings: Unpack[WindowSettings]
    ) -> None:
        check_setting("penalty", penalty, 0 < penalty < np.inf, "a positive number")
        super().__init__(embeddings, **settings)
        self.penalty = float(penalty)

    def _rate(self, queries_QD: VectorArray, points_WD: VectorArray, rates_W: FloatArray) -> FloatArray:
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
        self, embeddings: Embeddings | None = None, *, neighbours: int = 10, **settings: Unpack[WindowSettings]
    ) -> None:
        check_setting("neighbours", neighbours, neighbours >= 1, "a whole number >= 1")
        super().__init__(embeddings, **settings)
        self.neighbours = int(neighbours)

    def _rate(self, queries_QD: VectorArray, points_WD: VectorArray, rates_W: FloatArray) -> FloatArray:
        if len(rates_W) <= self.neighbours:
            return np.full(len(queries_QD), rates_W.mean())
        distances_QW = squared_distances(queries_QD, points_WD)
        nearest = np.argpartition(distances_QW, self.neighbours - 1, axis=1)[:, : self.neighbours]
        return np.asarray(rates_W[nearest].mean(axis=1))


DISCOUNTED_COUNTS = PredictorEntry(DiscountedCounts)
LAST_VALUE = PredictorEntry(LastValue)
GLOBAL_MEAN = PredictorEntry(GlobalMean)
RIDGE = PredictorEntry(Ridge, "needed")
K_NEAREST = PredictorEntry(KNearest, "needed")
