"""What planners predicted, what they gave, and what came: as a whole, and over the course of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, xlog1py, xlogy

from allotment.audit.figures import BINS, bin_numbers, unbiased_variance
from allotment.pricing import get_estimator
from allotment.report.data import Arm
from allotment.report.run import Row
from allotment.types import FloatArray, IntArray

WILSON_Z = 1.959963984540054
"""95 %, two-sided."""


BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Predictions:
    """The lines of an arm's ``rollouts.jsonl`` that carry a prediction; all [Q], one entry per prompt and step."""

    predicted: FloatArray
    """Success probability predicted before the rollouts, in [0, 1]."""
    n: IntArray
    """Rollouts given, >= 1."""
    successes: IntArray
    """Of ``n``."""
    step: IntArray
    first: BoolArray
    """Whether this is the step in which the run met the prompt for the first time."""
    names: list[str]
    """Prompt ids."""
    without: int
    """Lines left out because they carry no prediction."""

    def __len__(self) -> int:
        return len(self.predicted)

    @property
    def equal_counts(self) -> bool:
        """Whether every prompt of every step got the same number of rollouts."""
        return len(self) > 0 and bool((self.n == self.n[0]).all())

    @property
    def mean_absolute_error(self) -> float:
        """Mean over prompts of |predicted - observed share|; the chance of few rollouts is part of it."""
        return float(np.abs(self.predicted - self.successes / self.n).mean())

    @property
    def chance_error(self) -> float:
        """What the mean absolute error would be if every prediction were exactly right: chance alone."""
        return float(binomial_deviation(self.predicted, self.n).mean())

    def only(self, chosen: BoolArray) -> Predictions:
        """The entries that a [Q] mask chooses."""
        arrays: Any = {name: getattr(self, name)[chosen] for name in ("predicted", "n", "successes", "step", "first")}
        return replace(self, names=list(compress(self.names, chosen)), **arrays)

    def sample(self, most: int) -> IntArray:
        """Indices of at most ``most`` entries, evenly spread over the run."""
        return np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).round().astype(np.int64))


@dataclass(frozen=True)
class Bin:
    """The prompts whose prediction falls in one interval."""

    lower: float
    upper: float
    prompts: int
    """Prompt visits: one prompt in one step."""
    rollouts: int
    predicted: float
    """Mean prediction, each prompt weighted by its rollouts, as in ``observed``."""
    observed: float
    """Successes over rollouts."""
    interval: tuple[float, float]
    """95 % Wilson interval of ``observed`` for independent rollouts."""
    mean_prediction: float
    """Mean prediction, each prompt weighted equally."""
    mean_count: float
    """Rollouts per prompt."""


def predictions(arm: Arm) -> Predictions:
    """All predictions of an arm, unfinished runs included; empty where its planner makes none."""
    rows: list[Row] = []
    first: list[bool] = []
    without = 0
    for run in arm.runs:
        met: dict[str, int] = {}
        for row in (row for row in run.rollouts if row["n"] > 0):
            step = met.setdefault(str(row["prompt_id"]), row["step"])
            if row.get("predicted_mean") is None:
                without += 1
                continue
            rows.append(row)
            first.append(step == row["step"])
    return Predictions(
        predicted=np.array([row["predicted_mean"] for row in rows], dtype=np.float64),
        n=np.array([row["n"] for row in rows], dtype=np.int64),
        successes=np.array([row["successes"] for row in rows], dtype=np.int64),
        step=np.array([row["step"] for row in rows], dtype=np.int64),
        first=np.array(first, dtype=np.bool_),
        names=[str(row["prompt_id"]) for row in rows],
        without=without,
    )


def bins(forecast: Predictions, number: int = BINS) -> list[Bin]:
    """The non-empty bins of equal width on [0, 1], ascending; 1.0 belongs to the last."""
    place_Q = bin_numbers(forecast.predicted, number)
    found = []
    for place in np.unique(place_Q):
        chosen = place_Q == place
        n, predicted = forecast.n[chosen], forecast.predicted[chosen]
        total, good = int(n.sum()), int(forecast.successes[chosen].sum())
        found.append(
            Bin(
                lower=place / number,
                upper=(place + 1) / number,
                prompts=int(chosen.sum()),
                rollouts=total,
                predicted=float((predicted * n).sum() / total),
                observed=good / total,
                interval=wilson_interval(good, total),
                mean_prediction=float(predicted.mean()),
                mean_count=float(n.mean()),
            )
        )
    return found


def calibration_error(found: list[Bin]) -> float:
    """Mean over bins of |predicted - observed|, each bin weighted by its rollouts."""
    weights = [b.rollouts for b in found]
    return float(np.average([abs(b.predicted - b.observed) for b in found], weights=weights))


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion, sensible at 0 and 1 too (Wilson 1927)."""
    share, z2 = successes / trials, WILSON_Z**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = WILSON_Z * np.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def binomial_deviation(p: FloatArray, n: IntArray) -> FloatArray:
    """[Q] ``E|S / n - p|`` for ``S ~ Binomial(n, p)``, by De Moivre's formula."""
    v = np.minimum(np.floor(n * p) + 1, n)
    log_choose = gammaln(n + 1) - gammaln(v + 1) - gammaln(n - v + 1)
    return np.asarray(2 * v / n * np.exp(log_choose + xlogy(v, p) + xlog1py(n - v + 1, -p)), dtype=np.float64)


def ideal_counts(forecast: Predictions, at: FloatArray) -> FloatArray:
    """The shape of the best counts for RLOO if every prediction were exact: ``1 + k sqrt(p (1 - p))`` at ``at`` [G].

    ``k`` spends the same rollouts in total. Bounds, and that each batch spends its own budget, are left out.
    """
    spread_Q = np.sqrt(forecast.predicted * (1 - forecast.predicted))
    k = (forecast.n - 1).sum() / max(float(spread_Q.sum()), 1e-12)
    return np.asarray(1 + k * np.sqrt(at * (1 - at)), dtype=np.float64)


MOST_WINDOWS = 20
"""Steps are put together into at most so many windows."""


@dataclass(frozen=True)
class Visits:
    """What each prompt got in each step, over all rounds and runs of an arm; all [V], by run, then step."""

    run: IntArray
    """Place of the run in the arm."""
    step: IntArray
    n: IntArray
    """Rollouts with a reward, >= 1."""
    successes: IntArray
    predicted: FloatArray
    """Success probability as predicted before the first round; NaN where nothing was."""
    deviation: FloatArray
    """Standard deviation of the prediction; NaN where nothing was predicted."""
    names: list[str]
    """Prompt ids."""

    def __len__(self) -> int:
        return len(self.n)


@dataclass(frozen=True)
class Window:
    """Some consecutive steps; both ends belong to it."""

    first: int
    last: int

    @property
    def middle(self) -> float:
        """Where it is drawn."""
        return (self.first + self.last) / 2

    def of(self, step_V: IntArray | FloatArray) -> Any:
        """[V] mask of the entries inside."""
        return (step_V >= self.first) & (step_V <= self.last)


@dataclass(frozen=True)
class Ratio:
    """Variance of the gradient relative to equal counts, in one window of steps; below 1 is better."""

    window: Window
    predicted: float | None
    """As the plans expected it, mean over steps; None where no plan says."""
    realised: float | None
    """With the variances of the rewards that came; None where all groups were all right or all wrong."""
    standard_error: float | None
    """Of ``realised``, from its spread over steps; None for one step."""


def visits(arm: Arm) -> Visits:
    """The lines of ``rollouts.jsonl`` of all runs, rounds of one step added up."""
    first: dict[tuple[int, int, str], Row] = {}
    totals: dict[tuple[int, int, str], IntArray] = {}
    for number, run in enumerate(arm.runs):
        for row in run.rollouts:
            key = number, int(row["step"]), str(row["prompt_id"])
            first.setdefault(key, row)
            totals[key] = totals.get(key, np.zeros(2, np.int64)) + np.array([row["n"], row["successes"]])
    keys = [key for key, (n, _) in totals.items() if n > 0]
    counts_V2 = np.array([totals[key] for key in keys], np.int64).reshape(-1, 2)
    return Visits(
        run=np.array([key[0] for key in keys], np.int64),
        step=np.array([key[1] for key in keys], np.int64),
        n=counts_V2[:, 0],
        successes=counts_V2[:, 1],
        predicted=np.array([first[key].get("predicted_mean") for key in keys], np.float64),
        deviation=np.array([first[key].get("predicted_sd") for key in keys], np.float64),
        names=[key[2] for key in keys],
    )


def windows(steps: IntArray, most: int = MOST_WINDOWS) -> list[Window]:
    """The steps from 1 to the last, in at most ``most`` windows of nearly equal length; none without steps."""
    last = int(steps.max()) if len(steps) else 0
    edges = np.linspace(0, last, min(most, last) + 1).round().astype(int)
    return [Window(int(a) + 1, int(b)) for a, b in pairwise(edges)]


def mean_counts(seen: Visits, over: Sequence[Window]) -> FloatArray:
    """[BINS, W] mean rollouts of a prompt by tenth of its prediction and window of steps; NaN where there is none."""
    place_V = np.where(np.isnan(seen.predicted), -1, bin_numbers(np.nan_to_num(seen.predicted)))
    found_BW = np.full((BINS, len(over)), np.nan)
    for w, window in enumerate(over):
        for b in range(BINS):
            chosen = window.of(seen.step) & (place_V == b)
            if chosen.any():
                found_BW[b, w] = seen.n[chosen].mean()
    return found_BW


def lorenz(n_V: IntArray, points: int = 100) -> tuple[FloatArray, FloatArray]:
    """[P] share of the prompts, those with the fewest rollouts first, and [P] the share of all rollouts they got."""
    shares_V = np.concatenate([[0.0], np.cumsum(np.sort(n_V)) / n_V.sum()])
    at = np.unique(np.linspace(0, len(n_V), min(points, len(n_V)) + 1).round().astype(int))
    return at / len(n_V), shares_V[at]


def gini(n_V: IntArray) -> float:
    """Twice the area between the Lorenz curve and the diagonal: 0 for equal counts, towards 1 for one prompt alone."""
    sorted_V, size = np.sort(n_V), len(n_V)
    return float((2 * np.arange(1, size + 1) - size - 1) @ sorted_V / (size * sorted_V.sum()))


def prediction_history(seen: Visits, over: Sequence[Window]) -> list[tuple[Window, int, float, float, float]]:
    """For each window with predictions: prompts, mean |predicted - observed|, the same by chance, observed - predicted.

    The last is a mean over rollouts, the others over prompts.
    """
    found = []
    for window in over:
        chosen = window.of(seen.step) & ~np.isnan(seen.predicted)
        if chosen.any():
            p, n, k = seen.predicted[chosen], seen.n[chosen], seen.successes[chosen]
            error, chance = np.abs(p - k / n).mean(), binomial_deviation(p, n).mean()
            found.append((window, len(n), float(error), float(chance), float((k - n * p).sum() / n.sum())))
    return found


def variance_ratios(arm: Arm, seen: Visits, over: Sequence[Window]) -> list[Ratio]:
    """Predicted and realised variance of the gradient, relative to the same rollouts dealt out equally.

    The realised one puts the unbiased estimate of each prompt's p (1 - p) in the estimator's curve. It is a ratio of
    sums over the steps of a window; its error is that of a ratio estimate.
    """
    logged = [(row["step"], _predicted(row)) for run in arm.runs for row in run.metrics]
    predicted = np.array([pair for pair in logged if pair[1] is not None], np.float64).reshape(-1, 2)
    steps, ratios = predicted.T
    sums_S3 = _sums_by_step(arm, seen)
    found = []
    for window in over:
        inside = window.of(steps)
        realised, error = _ratio(sums_S3[window.of(sums_S3[:, 0])][:, 1:])
        found.append(Ratio(window, float(ratios[inside].mean()) if inside.any() else None, realised, error))
    return found


def _predicted(row: Row) -> float | None:
    if "predicted_variance_ratio" in row:
        return float(row["predicted_variance_ratio"])
    if row.get("uniform_objective"):
        return float(row["objective"] / row["uniform_objective"])
    return None


def _sums_by_step(arm: Arm, seen: Visits) -> FloatArray:
    """[S, 3] step, and the variance as allotted and with equal counts, of each step of each run."""
    if not len(seen):
        return np.zeros((0, 3))
    curve = get_estimator(arm.config.priced).variance
    keys_S2, group_V = np.unique(np.stack([seen.run, seen.step], axis=1), axis=0, return_inverse=True)
    usable_S = np.bincount(group_V, seen.n < 2) == 0
    kept_V = usable_S[group_V]
    variance_V = np.where(kept_V, unbiased_variance(seen.successes, seen.n), 0.0)
    mean_S = np.bincount(group_V, seen.n) / np.bincount(group_V)
    allotted_S = np.bincount(group_V, variance_V * curve(np.maximum(seen.n, 2)))
    equal_S = np.bincount(group_V, variance_V) * curve(np.maximum(mean_S, 2))
    return np.asarray(np.stack([keys_S2[:, 1], allotted_S, equal_S], axis=1)[usable_S], dtype=np.float64)


def _ratio(sums_S2: FloatArray) -> tuple[float | None, float | None]:
    """Sum over sum, and the error of this ratio from its spread over steps."""
    (part, whole), size = sums_S2.T, len(sums_S2)
    if not whole.sum() > 0:
        return None, None
    ratio = float(part.sum() / whole.sum())
    if size < 2:
        return ratio, None
    return ratio, float(np.sqrt(((part - ratio * whole) ** 2).sum() * size / (size - 1)) / whole.sum())
