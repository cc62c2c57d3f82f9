"""Numbers over the course of a run: where the budget went, how predictions fared, which variance was reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from allotment.audit.figures import BINS, bin_numbers, unbiased_variance
from allotment.pricing import get_estimator
from allotment.report.data import Arm, Row
from allotment.report.predictions import binomial_deviation
from allotment.types import FloatArray, IntArray

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
    place_V = bin_numbers(np.nan_to_num(seen.predicted, nan=-1))
    known_V = ~np.isnan(seen.predicted)
    found_BW = np.full((BINS, len(over)), np.nan)
    for w, window in enumerate(over):
        for b in range(BINS):
            chosen = known_V & window.of(seen.step) & (place_V == b)
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
    predicted = [
        (row["step"], ratio) for run in arm.runs for row in run.metrics if (ratio := _predicted(row)) is not None
    ]
    steps = np.array([step for step, _ in predicted], np.int64)
    ratios = np.array([ratio for _, ratio in predicted], np.float64)
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
    curve = get_estimator(arm.config.estimator).variance
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
    part, whole = sums_S2.T
    if not whole.sum() > 0:
        return None, None
    ratio = float(part.sum() / whole.sum())
    size = len(whole)
    if size < 2:
        return ratio, None
    return ratio, float(np.sqrt(((part - ratio * whole) ** 2).sum() * size / (size - 1)) / whole.sum())
