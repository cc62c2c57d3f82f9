"""What planners predicted, what they gave, and what came: numbers of the allocation and calibration cards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, xlog1py, xlogy

from allotment.audit.figures import BINS, bin_numbers
from allotment.report.data import Arm, Row
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
        names = [name for name, kept in zip(self.names, chosen, strict=True) if kept]
        arrays = (self.predicted, self.n, self.successes, self.step, self.first)
        return Predictions(*(array[chosen] for array in arrays), names, self.without)

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
        n, successes, predicted = forecast.n[chosen], forecast.successes[chosen], forecast.predicted[chosen]
        total, good = int(n.sum()), int(successes.sum())
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
