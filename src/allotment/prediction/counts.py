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
from allotment.prediction.base import visits
from allotment.prompts.ids import PromptIndex, canonical_ids, index_from_state
from allotment.prompts.table import grown
from allotment.state import State, array_from_state, check_state, from_state
from allotment.types import BetaPosterior, FloatArray, Posterior, PromptIds


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
            made = cls(*(state[key] for key in cls.KEYS))
            check_setting("global_total", made.total, 0 <= made.total <= made.weight < np.inf, "0 <= total <= weight")
            return made

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
        made = from_state(lambda: GlobalMean(window=state["window"]))
        rates = array_from_state(state, "rates", (min(len(np.atleast_1d(state["rates"])), made.window),))
        self.window, self._rates = made.window, rates


class LastValue:
    """Each prompt's last observed success rate, ``(successes + s) / (trials + 2 s)`` with ``s = smoothing``.

    A prompt never seen gets the running mean rate over prompts (1/2 before any data). The baseline that explains the
    Gaussian process's lead in VIP figure 3. The posterior is a point estimate (variance 0).
    """

    KIND = "LastValue"

    def __init__(self, *, smoothing: float = 0.5, global_forgetting: float = 0.9) -> None:
        """Store the settings.

        Args:
            smoothing: imaginary successes, and as many failures, that keep the logit finite; > 0. The default 1/2 is
                the Jeffreys prior of a success probability: 0/8 becomes 1/18.
            global_forgetting: what is left, after each step, of the weight of earlier steps in the mean over prompts.

        Raises:
            InvalidInputError: a setting is out of its range.
        """
        check_setting("smoothing", smoothing, 0 < smoothing < np.inf, "a positive number")
        self.smoothing = float(smoothing)
        self._overall = _RunningRate(global_forgetting)
        self._index = PromptIndex()
        self._logits = np.empty(0)

    def predict(self, ids: PromptIds) -> Posterior:
        """[Q] point estimate of each prompt."""
        rows_Q = self._index.known_rows(canonical_ids(ids, unique=False))
        mean_Q = np.full(len(rows_Q), logit(self._overall.rate))
        known = rows_Q >= 0
        mean_Q[known] = self._logits[rows_Q[known]]
        return Posterior(mean_Q, np.zeros_like(mean_Q))

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """Learn from one visit of each prompt [B]; 0 trials are no visit.

        Raises:
            InvalidInputError: counts are not success counts.
            DuplicatePromptError: an id stands twice.
        """
        visited, successes_B, trials_B = visits(ids, successes, trials)
        if not visited:
            return
        rows = self._index.add(visited)
        self._logits = grown(self._logits, len(self._index))
        self._logits[rows] = np.log(successes_B + self.smoothing) - np.log(trials_B - successes_B + self.smoothing)
        self._overall.observe(successes_B / trials_B)

    def state_dict(self) -> State:
        """Settings, ids and last logits."""
        own = {
            "smoothing": self.smoothing,
            "ids": self._index.encoded(),
            "logits": self._logits[: len(self._index)].copy(),
        }
        return {"kind": self.KIND, **own, **self._overall.state()}

    def load_state_dict(self, state: State) -> None:
        """Take over everything from a :meth:`state_dict`, settings included.

        Raises:
            StateError: of another kind, keys missing, or values that do not fit.
        """
        check_state(state, self.KIND, ("smoothing", "ids", "logits", *_RunningRate.KEYS))
        made = from_state(lambda: LastValue(smoothing=state["smoothing"]))
        made._overall = _RunningRate.from_state(state)
        made._index = index_from_state(state)
        made._logits = array_from_state(state, "logits", (len(made._index),))
        vars(self).update(vars(made))


class DiscountedCounts:
    """A Beta posterior for each prompt from its own past, older visits discounted. The library's default predictor.

    With ``s`` and ``f`` the discounted successes and failures of a prompt, its success probability is
    ``Beta(k c + s, k (1 - c) + f)``, ``k = prior_strength``, ``c`` the running mean rate over prompts (1/2 before any
    data). A visit first multiplies ``s`` and ``f`` by ``forgetting``, then adds its counts. A prompt never seen has
    ``s = f = 0``. So the number of rollouts counts, and the uncertainty is known: price with ``expected_variance()``.

    The defaults come from ``benchmarks/replay.py`` on the log of a real run (900 mathematics prompts, 44 visits of 8
    rollouts, RLOO, L=3, U=32, C=8Q): from the second visit on, the allocated estimator has 0.784 of the variance of the
    uniform one. The optimum is flat: 0.784 to 0.789 for forgetting 0.85 to 0.95 and prior_strength 0.25 to 1,
    whatever global_forgetting; 0.793 without any forgetting; 0.819 at forgetting 0.5. So the slow side was taken.
    prior_strength 4 costs 0.03: most prompts are far from the mean. Price with the plug-in instead and the second
    visit is no better than uniform: a prompt with 0/8 looks certain.
    """

    KIND = "DiscountedCounts"

    def __init__(self, *, forgetting: float = 0.9, prior_strength: float = 1.0, global_forgetting: float = 0.9) -> None:
        """Store the settings.

        Args:
            forgetting: what is left of a prompt's counts at its next visit, in (0, 1]; 1 never forgets.
            prior_strength: weight of the mean over prompts, in rollouts; > 0.
            global_forgetting: what is left, after each step, of the weight of earlier steps in the mean over prompts.

        Raises:
            InvalidInputError: a setting is out of its range.
        """
        check_setting("forgetting", forgetting, 0 < forgetting <= 1, "0 < forgetting <= 1")
        check_setting("prior_strength", prior_strength, 0 < prior_strength < np.inf, "a positive number")
        self.forgetting = float(forgetting)
        self.prior_strength = float(prior_strength)
        self._overall = _RunningRate(global_forgetting)
        self._index = PromptIndex()
        self._counts = np.empty((0, 2))

    def predict(self, ids: PromptIds) -> BetaPosterior:
        """[Q] the Beta posterior of each prompt."""
        rows_Q = self._index.known_rows(canonical_ids(ids, unique=False))
        counts_Q2 = np.zeros((len(rows_Q), 2))
        known = rows_Q >= 0
        counts_Q2[known] = self._counts[rows_Q[known]]
        rate = self._overall.rate
        return BetaPosterior.from_counts(
            self.prior_strength * rate + counts_Q2[:, 0], self.prior_strength * (1 - rate) + counts_Q2[:, 1]
        )

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """Learn from one visit of each prompt [B]; 0 trials are no visit.

        Raises:
            InvalidInputError: counts are not success counts.
            DuplicatePromptError: an id stands twice.
        """
        visited, successes_B, trials_B = visits(ids, successes, trials)
        if not visited:
            return
        rows = self._index.add(visited)
        new_B2 = np.stack([successes_B, trials_B - successes_B], axis=1)
        self._counts = grown(self._counts, len(self._index))
        self._counts[rows] = self.forgetting * self._counts[rows] + new_B2
        self._overall.observe(successes_B / trials_B)

    def state_dict(self) -> State:
        """Settings, ids and discounted counts."""
        own = {"forgetting": self.forgetting, "prior_strength": self.prior_strength}
        counts = {"ids": self._index.encoded(), "counts": self._counts[: len(self._index)].copy()}
        return {"kind": self.KIND, **own, **counts, **self._overall.state()}

    def load_state_dict(self, state: State) -> None:
        """Take over everything from a :meth:`state_dict`, settings included.

        Raises:
            StateError: of another kind, keys missing, or values that do not fit.
        """
        check_state(state, self.KIND, ("forgetting", "prior_strength", "ids", "counts", *_RunningRate.KEYS))
        settings = {name: state[name] for name in ("forgetting", "prior_strength")}
        made = from_state(lambda: DiscountedCounts(**settings))
        made._overall = _RunningRate.from_state(state)
        made._index = index_from_state(state)
        made._counts = array_from_state(state, "counts", (len(made._index), 2))
        vars(self).update(vars(made))
