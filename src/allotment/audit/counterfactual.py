"""What the same rollouts would have been worth, spent otherwise: split by prediction, with the belief as baseline, on
more prompts; by epoch, in rollouts and in completion tokens, with intervals over prompts.

Everything is compared with equal groups under RLOO. Of the same prompts a step, the variance within prompts is; of more
prompts a step, the whole (:mod:`allotment.audit.shape`). All of it follows from one replay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from allotment.audit.equivalence import Equivalence, Interval, between, budget_grid, crossing, units, with_resamples
from allotment.audit.figures import unbiased_variance
from allotment.audit.replaying import RANGES, CountArray, Replay
from allotment.audit.settings import Settings
from allotment.audit.shape import visit_noise
from allotment.planning.gradient_size import USUAL_KAPPA
from allotment.types import FloatArray

LEAST = 3
"""Least rollouts of a prompt under RLOO, where the replay's settings are of a belief as baseline."""
ALL = "all"
"""The name of all epochs together."""

SPLIT = "split: rollouts go where the prediction wants them, on the same prompts; compared with as many for each"
BELIEF = (
    "belief: the prediction is part of the baseline, which is unbiased in a loss that sums over tokens or divides by a "
    "constant; it is what the log's rollouts taught: a run with fewer a prompt learns less (--observe allotted)"
)
SHAPE = (
    f"more prompts: equal groups of prompts drawn at random, whose squared gradients are {USUAL_KAPPA:g} (p (1 - p))^2 "
    "in units of the size of a score: an upper bound of what prompts differ by, and so of what more of them gain"
)
TOKENS = "tokens are of completions; what reading prompts costs grows with `prompts read`"


@dataclass(frozen=True)
class Cell:
    """What one way of spending is worth over some epochs; below 1 is better than equal groups under RLOO."""

    variance: Interval
    """Of the gradient, at the same rollouts."""
    rollouts: Interval
    """For the same precision. Infinite: more than was tried."""
    tokens: Interval | None
    """Of completions, for the same precision; None where no lengths are logged."""


@dataclass(frozen=True)
class Counterfactual:
    """One way of spending the rollouts."""

    what: str
    rollouts_per_prompt: int
    """In the mean."""
    prompts: float
    """Prompts of a step, relative to the log's."""
    believes: bool
    """Whether the belief is part of the baseline."""
    by_range: Mapping[str, Cell]
    """By range of epochs, :data:`ALL` the last."""
    worth: Interval | None
    """Rollouts a prompt of equal groups under RLOO of the same precision; None with more prompts, where no number of
    rollouts may do."""
    prompts_read: float
    """Prompts read for the same precision, relative to what it is compared with."""

    @property
    def whole(self) -> Cell:
        """Over all epochs."""
        return self.by_range[ALL]


@dataclass(frozen=True)
class Counterfactuals:
    """Several ways of spending, and what they assume."""

    found: tuple[Counterfactual, ...] = ()
    assumes: tuple[str, ...] = ()


def counterfactuals(
    replay: Replay, worth: Equivalence, *, kappa: float = USUAL_KAPPA, seed: int = 0
) -> Counterfactuals:
    """What the replayed log says of other ways of spending its rollouts; none where nothing is known of variance.

    Args:
        replay: of a predictor that says how uncertain it is.
        worth: of the same replay, whose splits are used again.
        kappa: squared gradient of a prompt over ``(p (1 - p))^2``.
        seed: of the draws of prompts for the intervals.
    """
    if np.isnan(worth.variance_ratio.value):
        return Counterfactuals()
    sums, budget = _Sums(replay, seed), replay.settings.budget_per_prompt
    sizes = dict.fromkeys((budget, budget // 2, budget // 4))
    found = []
    for settings in _ways(replay.settings):
        own = settings == replay.settings
        played = replay if own else replay.under(settings)
        counts_GV = worth.counts if own else played.counts_at(budget_grid(settings))
        sums.add(_name(settings), map(played.variances, counts_GV), counts_GV)
        found += [(settings, n) for n in sizes if n > max(settings.lower, 1)]
    between_V, within = visit_noise(replay, kappa)
    sums.add("shapes", (between_V + within("rloo", budget), *(between_V + within(*shape) for shape in _shapes(budget))))
    drawn = sums.resampled()
    same = [_same_prompts(drawn, *each) for each in found]
    more = [
        _more_prompts(drawn, 1 + column, name, n, budget)
        for column, (name, n) in enumerate(_shapes(budget))
        if budget / n * _prompts_a_step(replay) <= len(np.unique(replay.log.prompt))
    ]
    assumes = (SPLIT, BELIEF, *([SHAPE] if more else []), *([TOKENS] if drawn.has_lengths else []))
    return Counterfactuals((*same, *more), assumes)


def _ways(settings: Settings) -> tuple[Settings, Settings]:
    """Splits under RLOO, and with the belief as baseline; the replay's own settings where they are one of the two."""
    rloo = settings if settings.estimator == "rloo" else replace(settings, estimator="rloo", lower=_least(settings))
    belief = settings if settings.believes else replace(settings, estimator="shrinkage", lower=1)
    return rloo, belief


def _least(settings: Settings) -> int:
    return min(LEAST, settings.budget_per_prompt)


def _name(settings: Settings) -> str:
    return "split, belief" if settings.believes else "split"


def _shapes(budget: int) -> list[tuple[str, int]]:
    """Baseline and rollouts a prompt of the steps with more prompts."""
    half, quarter = budget // 2, budget // 4
    shapes = [("rloo", half), ("shrinkage", half), ("shrinkage", quarter)]
    return [(name, n) for name, n in shapes if n >= (2 if name == "rloo" else 1)]


def _prompts_a_step(replay: Replay) -> float:
    settings = replay.settings
    return float(np.median([len(batch_B) for batch_B in replay.log.batches(settings.batch, settings.seed)]))


@dataclass(frozen=True)
class _Drawn:
    """Sums over visits, by resample and range of epochs; the first of the resamples is the log itself."""

    sums: Mapping[str, FloatArray]
    """[1 + R, C, K + 1] by name."""
    ranges: tuple[str, ...]
    """[K + 1] names of the ranges that the log has, :data:`ALL` the last."""

    @property
    def has_lengths(self) -> bool:
        return "length" in self.sums

    def of(self, values_RK: FloatArray) -> list[Interval]:
        """The interval of each range."""
        return [Interval.of_resamples(values_R) for values_R in values_RK.T]


class _Sums:
    """Adds up columns [V] by unit of the bootstrap and range of epochs."""

    def __init__(self, replay: Replay, seed: int) -> None:
        log = replay.log
        ends = [first for first, _ in list(RANGES.values())[1:]]
        range_V = np.digitize(log.visit, ends)
        self._names = tuple(name for k, name in enumerate(RANGES) if (range_V == k).any())
        unit_V, self._units = units(log, seed)
        self._key_V = unit_V * len(RANGES) + range_V
        self._seed = seed
        self._columns: dict[str, list[FloatArray]] = {}
        self._mean_V = None if log.lengths is None or not log.lengths.sum() else log.lengths / log.trials
        self.add("uniform", [unbiased_variance(log.successes, log.trials)])
        self.add("visits", [np.ones(len(log.visit))])
        if self._mean_V is not None:
            self.add("length", [self._mean_V])

    def add(
        self,
        name: str,
        columns: Iterator[FloatArray] | list[FloatArray] | tuple[FloatArray, ...],
        counts_GV: CountArray | None = None,
    ) -> None:
        """Columns under a name, what the counts add up to under ``name, spent``, and in tokens ``name, tokens``."""
        self._columns[name] = [self._summed(column) for column in columns]
        if counts_GV is None:
            return
        self._columns[f"{name}, spent"] = [self._summed(counts_V) for counts_V in counts_GV]
        if self._mean_V is not None:
            self._columns[f"{name}, tokens"] = [self._summed(counts * self._mean_V) for counts in counts_GV]

    def _summed(self, column: FloatArray) -> FloatArray:
        size = self._units * len(RANGES)
        return np.bincount(self._key_V, column, minlength=size).reshape(self._units, len(RANGES)).astype(np.float64)

    def resampled(self) -> _Drawn:
        """All columns, for the log and for resamples of its prompts."""
        present = [list(RANGES).index(name) for name in self._names]
        values_UCK = np.stack([column for of in self._columns.values() for column in of], axis=1)[:, :, present]
        sums = with_resamples(values_UCK.reshape(self._units, -1), self._seed)
        sums_RCK = sums.reshape(len(sums), *values_UCK.shape[1:])
        sums_RCK = np.concatenate([sums_RCK, sums_RCK.sum(axis=2, keepdims=True)], axis=2)
        places = np.cumsum([0, *map(len, self._columns.values())])
        named = {name: sums_RCK[:, places[i] : places[i + 1]] for i, name in enumerate(self._columns)}
        return _Drawn(named, (*self._names, ALL))


def _same_prompts(drawn: _Drawn, settings: Settings, n: int) -> Counterfactual:
    name = _name(settings)
    variance_RGK, uniform_RK = drawn.sums[name], drawn.sums["uniform"][:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may have no visit of some range
        spent_RGK = drawn.sums[f"{name}, spent"] / drawn.sums["visits"]
        worth_RGK = 1.0 + uniform_RK[:, None] / variance_RGK
        ratio_RK = ((n - 1.0) / between(uniform_RK[:, None] / variance_RGK, crossing(spent_RGK, n))).round(12)
        worth = Interval.of_resamples(1.0 + (n - 1.0) / ratio_RK[:, -1])
    place_RK = crossing(worth_RGK, n)
    rollouts = drawn.of(between(spent_RGK, place_RK) / n)
    tokens: list[Interval | None] = [None] * len(rollouts)
    if drawn.has_lengths:
        with np.errstate(divide="ignore", invalid="ignore"):
            tokens_RK = between(drawn.sums[f"{name}, tokens"], place_RK) / (n * drawn.sums["length"][:, 0])
        tokens = [*drawn.of(tokens_RK)]
    cells = map(Cell, drawn.of(ratio_RK), rollouts, tokens)
    return Counterfactual(name, n, 1.0, settings.believes, dict(zip(drawn.ranges, cells, strict=True)), worth, 1.0)


def _more_prompts(drawn: _Drawn, column: int, name: str, n: int, budget: int) -> Counterfactual:
    own_RK, whole_RK = drawn.sums["shapes"][:, 0], drawn.sums["shapes"][:, column]
    times, believes = budget / n, name == "shrinkage"
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = drawn.of(whole_RK / own_RK / times)
    cells = [Cell(ratio, ratio, ratio if drawn.has_lengths else None) for ratio in ratios]
    what = "more prompts, belief" if believes else "more prompts"
    by_range = dict(zip(drawn.ranges, cells, strict=True))
    return Counterfactual(what, n, times, believes, by_range, None, times * ratios[-1].value)
