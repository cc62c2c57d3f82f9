"""Predictors from success counts alone: no embeddings, no registration, prompts appear when they are first observed.

One call of ``observe`` is one visit. A planner that generates a step's rollouts in several rounds should sum them up
first: otherwise a step counts as several visits and is forgotten several times as fast.

All three use the mean success rate *over prompts*, each visit weighing the same however many rollouts it had. A rate
pooled over rollouts would drift towards the prompts that the allocator favours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import logit

from allotment.checks import check_setting
from allotment.prediction.base import PredictorEntry
from allotment.prediction.binomial import visits
from allotment.prediction.posteriors import BetaPosterior
from allotment.prompts.ids import PromptTable, canonical_ids
from allotment.state import State, array_from_state, check_state, from_state
from allotment.types import FloatArray, IntArray, Posterior, PromptIds


class _RunningRate:
    """Discounted mean success rate over prompts, ``(S + 1/2) / (W + 1)``.

    The one imaginary prompt at 1/2 keeps it inside (0, 1). Each step multiplies S and W by ``forgetting`` and then adds
    the rates (and the number) of its prompts.
    """

    def __init__(self, forgetting: float, total: float = 0.0, weight: float = 0.0) -> None:
        check_setting("global_forgetting", forgetting, 0 < forgetting <= 1, "0 < global_forgetting <= 1")
        self.forgetting = float(forgetting)
        self.total = float(total)
        self.weight = float(weight)

    @property
    def rate(self) -> float:
        return (self.total + 0.5) / (self.weight + 1.0)

    def observe(self, rates_B: FloatArray) -> None:
        self.total = self.forgetting * self.total + float(np.sort(rates_B).sum())  # sorted: no trace of the order
        self.weight = self.forgetting * self.weight + len(rates_B)

    def state(self) -> State:
        return {"global_forgetting": self.forgetting, "global_total": self.total, "global_weight": self.weight}

    KEYS = ("global_forgetting", "global_total", "global_weight")

    @classmethod
    def from_state(cls, state: State) -> _RunningRate:
        def make() -> _RunningRate:
            loaded = cls(*(state[key] for key in cls.KEYS))
            check_setting(
                "global_total", loaded.total, 0 <= loaded.total <= loaded.weight < np.inf, "0 <= total <= weight"
            )
            return loaded

        return from_state(make)


class GlobalMean:
    """The same rate for every prompt: the mean of the last ``window`` visits (the "moving average" of VIP figure 3).

    ``p = (sum of the rates + 1/2) / (visits in the window + 1)``; 1/2 before any data. Visits are of any prompts;
    within a step they are taken in the order given. The posterior is a point estimate (variance 0).
    """

    KIND = "GlobalMean"

    def __init__(self, *, window: int = 1024) -> None:
        """Store the window: number of visits that are averaged, >= 1 (1,024 in VIP section 6).

        Raises:
            InvalidInputError: the window is below 1.
        """
        check_setting("window", window, window >= 1, "a whole number >= 1")
        self.window = int(window)
        self._rates = np.empty(0)

    def predict(self, ids: PromptIds) -> Posterior:
        """[Q] the same point estimate for each prompt."""
        rate = (self._rates.sum() + 0.5) / (len(self._rates) + 1.0)
        mean_Q = np.full(len(canonical_ids(ids, unique=False)), logit(rate))
        return Posterior(mean_Q, np.zeros_like(mean_Q))

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """Learn from one visit of each prompt [B]; 0 trials are no visit.

        Raises:
            InvalidInputError: counts are not success counts.
            DuplicatePromptError: an id stands twice.
        """
        _, successes_B, trials_B = visits(ids, successes, trials)
        self._rates = np.concatenate([self._rates, successes_B / trials_B])[-self.window :]

    def state_dict(self) -> State:
        """The window and the rates in it."""
        return {"kind": self.KIND, "window": self.window, "rates": self._rates.copy()}

    def load_state_dict(self, state: State) -> None:
        """Take over everything from a :meth:`state_dict`, settings included.

        Raises:
            StateError: of another kind, keys missing, or values that do not fit.
        """
        check_state(state, self.KIND, ("window", "rates"))
        loaded = from_state(lambda: GlobalMean(window=state["window"]))
        rates = array_from_state(state, "rates", (min(len(np.atleast_1d(state["rates"])), loaded.window),))
        self.window, self._rates = loaded.window, rates


class _RecordedCounts:
    """What :class:`LastValue` and :class:`DiscountedCounts` share: a row for each prompt and the rate over prompts."""

    KIND: str
    SETTINGS: tuple[str, ...]
    ROWS: str
    """Name of the rows in a state."""

    def __init__(self, global_forgetting: float, *columns: int) -> None:
        self._overall = _RunningRate(global_forgetting)
        self._table = PromptTable(*columns)

    def _visited(self, before: FloatArray, successes_B: IntArray, failures_B: IntArray) -> FloatArray:
        """The rows of B prompts after a visit; before it, those of new prompts are 0."""
        raise NotImplementedError

    @staticmethod
    def _new(**settings: float) -> _RecordedCounts:
        """One with these settings, nothing observed yet."""
        raise NotImplementedError

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """Learn from one visit of each prompt [B]; 0 trials are no visit.

        Raises:
            InvalidInputError: counts are not success counts.
            DuplicatePromptError: an id stands twice.
        """
        visited, successes_B, trials_B = visits(ids, successes, trials)
        if visited:
            before = self._table.gather(visited)
            self._table.set(visited, self._visited(before, successes_B, trials_B - successes_B))
            self._overall.observe(successes_B / trials_B)

    def state_dict(self) -> State:
        """Settings, ids and what is kept of each prompt."""
        settings = {name: getattr(self, name) for name in self.SETTINGS}
        return {"kind": self.KIND, **settings, **self._table.state(self.ROWS), **self._overall.state()}

    def load_state_dict(self, state: State) -> None:
        """Take over everything from a :meth:`state_dict`, settings included.

        Raises:
            StateError: of another kind, keys missing, or values that do not fit.
        """
        check_state(state, self.KIND, (*self.SETTINGS, "ids", self.ROWS, *_RunningRate.KEYS))
        loaded = from_state(lambda: self._new(**{name: state[name] for name in self.SETTINGS}))
        loaded._overall = _RunningRate.from_state(state)
        loaded._table = PromptTable.from_state(state, self.ROWS, *self._table.rows.shape[1:])
        vars(self).update(vars(loaded))


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

    @staticmethod
    def _new(**settings: float) -> LastValue:
        return LastValue(**settings)

    def predict(self, ids: PromptIds) -> Posterior:
        """[Q] point estimate of each prompt."""
        mean_Q = self._table.gather(canonical_ids(ids, unique=False), float(logit(self._overall.rate)))
        return Posterior(mean_Q, np.zeros_like(mean_Q))

    def _visited(self, before: FloatArray, successes_B: IntArray, failures_B: IntArray) -> FloatArray:
        return np.asarray(np.log(successes_B + self.smoothing) - np.log(failures_B + self.smoothing))


class DiscountedCounts(_RecordedCounts):
    """A Beta posterior for each prompt from its own past, older visits discounted.

    With ``s`` and ``f`` the discounted successes and failures of a prompt, its success probability is
    ``Beta(k c + s, k (1 - c) + f)``, ``k = prior_strength``, ``c`` the running mean rate over prompts (1/2 before any
    data). A visit first multiplies ``s`` and ``f`` by ``forgetting``, then adds its counts. A prompt never seen has
    ``s = f = 0``. So the number of rollouts counts, and the uncertainty is known: price with ``expected_variance()``.

    The defaults come from ``benchmarks/replay.py`` on the log of a real run; docs/experiments.md has the measurements.

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

    @staticmethod
    def _new(**settings: float) -> DiscountedCounts:
        return DiscountedCounts(**settings)

    @property
    def _prior_counts(self) -> tuple[float, float]:
        """Imaginary successes and failures that every prompt starts with."""
        rate = self._overall.rate
        return self.prior_strength * rate, self.prior_strength * (1 - rate)

    def predict(self, ids: PromptIds) -> BetaPosterior:
        """[Q] the Beta posterior of each prompt."""
        successes, failures = self._prior_counts
        counts_Q2 = self._table.gather(canonical_ids(ids, unique=False))
        return BetaPosterior.from_counts(successes + counts_Q2[:, 0], failures + counts_Q2[:, 1])

    def _visited(self, before: FloatArray, successes_B: IntArray, failures_B: IntArray) -> FloatArray:
        return np.asarray(self.forgetting * before + np.stack([successes_B, failures_B], axis=1))


DISCOUNTED_COUNTS = PredictorEntry(DiscountedCounts)
LAST_VALUE = PredictorEntry(LastValue)
GLOBAL_MEAN = PredictorEntry(GlobalMean)
