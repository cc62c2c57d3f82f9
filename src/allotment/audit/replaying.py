"""Replay a log in time order: predict each batch before it is seen, allocate by that, then score and learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from allotment.audit.counting import nested_counts
from allotment.audit.figures import (
    Figures,
    calibration_error,
    interval_coverage,
    log_loss,
    mean_absolute_error,
    ratio,
    unbiased_variance,
)
from allotment.audit.log import Log
from allotment.audit.scoring import shrinkage_variance, unbiased_square_error
from allotment.audit.settings import Settings
from allotment.errors import InvalidInputError
from allotment.prediction import Predictor
from allotment.pricing import Price, ShrinkagePrice, WeightedPrice, get_estimator, posterior_weights
from allotment.types import FloatArray, IntArray

RANGES: dict[str, tuple[int, int | None]] = {"1": (1, 1), "2": (2, 2), "3-10": (3, 10), "11+": (11, None)}
"""Epoch ranges by name: first and last visit number, both included; None is without end."""

CountArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Replay:
    """What a predictor said, and what was allocated by it, at every visit of a log; all arrays [V], as the log's."""

    log: Log
    settings: Settings
    probability: FloatArray
    """E[p] just before the visit."""
    covered: FloatArray
    """How much of the visit's count lay inside the 90 % interval, in [0, 1]."""
    counts: IntArray
    """Rollouts that the prediction would have given the visit."""
    weights: FloatArray
    """Predicted variance of one reward of the visit, by which the counts were split."""
    squares: FloatArray
    """E[(p (1 - p))^2] just before the visit."""
    variance: FloatArray
    """E[p (1 - p)] just before the visit: ``weights``, but where those are the price at the mean of the belief."""

    def under(self, settings: Settings) -> Replay:
        """The same predictions, priced by their whole belief and split under other settings."""
        found = replace(self, settings=settings, weights=self.variance)
        return replace(found, counts=found.counts_at([settings.budget_per_prompt])[0].astype(np.int64))

    def counts_at(self, budgets_G: Sequence[float] | FloatArray) -> CountArray:
        """[G, V] what the same predictions would have given at other budgets, the settings' bounds kept.

        A step's budget is so many rollouts a prompt times its prompts, rounded; between the settings' bounds. Numbers
        are held in the smallest type that does.
        """
        smallest = np.min_scalar_type(self.settings.upper)
        counts_GV: CountArray = np.empty((len(budgets_G), len(self.weights)), dtype=smallest)
        for step, batch_B in enumerate(self.log.batches(self.settings.batch, self.settings.seed)):
            price = _price(self.probability[batch_B], self.weights[batch_B], self.settings)
            totals = [round(budget * len(batch_B)) for budget in budgets_G]
            counts_GV[:, batch_B] = _splits(price, totals, self.settings, step)
        return counts_GV

    def variances(self, counts: npt.ArrayLike) -> FloatArray:
        """[..., V] the variance that ``counts`` [..., V] would have left, from the visit's own counts, without bias.

        A belief in the baseline counts by how wrong it was, not by how wrong it held itself to be. 0 for visits of one
        rollout, which say nothing.
        """
        log, n = self.log, np.asarray(counts, dtype=np.int64)
        variance_V = unbiased_variance(log.successes, log.trials)
        price = _price(self.probability, self.weights, self.settings)
        if isinstance(price, WeightedPrice):
            return variance_V * price.estimator.variance(n)
        error_V = unbiased_square_error(log.successes, log.trials, self.probability)
        return shrinkage_variance(variance_V, error_V, price.shares(n), n)

    def uniform_variances(self) -> FloatArray:
        """[V] the variance that uniform would have left with as many rollouts, likewise."""
        uniform = np.full(len(self.counts), self.settings.budget_per_prompt)
        return unbiased_variance(self.log.successes, self.log.trials) * self.settings.compared.variance(uniform)

    def figures(self, first: int = 1, last: int | None = None) -> Figures | None:
        """The figures over visit numbers ``first`` to ``last``, both included; None if there are no such visits.

        A recorded step may hold visits of several numbers; its budget is then shared between ranges.
        """
        visit_V = self.log.visit
        part = (visit_V >= first) & (visit_V <= (visit_V.max() if last is None else last))
        if not part.any():
            return None
        p, k, n = self.probability[part], self.log.successes[part], self.log.trials[part]
        return Figures(
            ratio(float(self.variances(self.counts)[part].sum()), float(self.uniform_variances()[part].sum())),
            log_loss(p, k, n),
            mean_absolute_error(p, k, n),
            calibration_error(p, k, n),
            float(self.covered[part].mean()),
            int(part.sum()),
            float(k.sum() / n.sum()),
        )

    def by_range(self) -> dict[str, Figures]:
        """The figures over each of :data:`RANGES` that has visits."""
        found = {name: self.figures(first, last) for name, (first, last) in RANGES.items()}
        return {name: figures for name, figures in found.items() if figures is not None}


def replay(
    log: Log,
    predictor: Predictor,
    settings: Settings | None = None,
    *,
    plug_in: bool = False,
    on_batch: Callable[[], None] = lambda: None,
) -> Replay:
    """Let ``predictor`` live through ``log``: at each step it predicts the batch, then observes its counts.

    The budget of a step is ``budget_per_prompt`` times its prompts, split exactly by the price of the prediction;
    prompts of equal price are ordered at random, anew at each step.

    Args:
        log: see :func:`~allotment.audit.read_log`.
        predictor: new, or as it should start; it has observed the whole log afterwards. It sees the ids ``log.ids``.
        settings: :class:`Settings` with its defaults if None.
        plug_in: price ``p (1 - p)`` at the belief's ``sigmoid(mean)``, as the paper does, instead of ``E[p (1 - p)]``.
        on_batch: called after each step, for a progress bar.

    Raises:
        UnknownPromptError: the predictor needs embeddings and does not know a prompt.
        InvalidInputError: ``plug_in`` with an estimator that takes the belief as baseline.
    """
    settings = Settings() if settings is None else settings
    if plug_in and settings.believes:
        _refuse_plug_in(settings.estimator)
    probability_V, covered_V, weights_V, squares_V, variance_V = (np.empty(len(log.visit)) for _ in range(5))
    counts_V = np.empty(len(log.visit), dtype=np.int64)
    for step, batch_B in enumerate(log.batches(settings.batch, settings.seed)):
        ids = [log.ids[row] for row in log.prompt[batch_B]]
        successes_B, trials_B = log.successes[batch_B], log.trials[batch_B]
        belief = predictor.predict(ids)
        probability_V[batch_B] = belief.success_probability()
        covered_V[batch_B] = interval_coverage(belief, successes_B, trials_B)
        weights_V[batch_B] = posterior_weights(belief, plug_in=plug_in)
        squares_V[batch_B] = belief.power_moment(2, 2)
        variance_V[batch_B] = belief.expected_variance() if plug_in else weights_V[batch_B]
        price = _price(probability_V[batch_B], weights_V[batch_B], settings)
        counts_V[batch_B] = _splits(price, [settings.budget_per_prompt * len(ids)], settings, step)[0]
        if settings.observe == "allotted":
            successes_B, trials_B = _thinned(successes_B, trials_B, counts_V[batch_B], settings, step)
        predictor.observe(ids, successes_B, trials_B)
        on_batch()
    return Replay(log, settings, probability_V, covered_V, counts_V, weights_V, squares_V, variance_V)


def _thinned(
    successes_B: IntArray, trials_B: IntArray, counts_B: IntArray, settings: Settings, step: int
) -> tuple[IntArray, IntArray]:
    """Successes and rollouts of at most ``counts_B`` rollouts of each visit, drawn at random."""
    seen_B = np.minimum(counts_B, trials_B)
    rng = np.random.default_rng([settings.seed, step, 1])
    return rng.hypergeometric(successes_B, trials_B - successes_B, seen_B), seen_B


def _refuse_plug_in(estimator: str) -> NoReturn:
    raise InvalidInputError(
        "a price at the mean of the belief does not say how uncertain the belief is, which a baseline of it needs",
        got=f"plug_in with estimator {estimator!r}",
        allowed="plug_in with 'rloo' or 'dr_grpo'",
        fix="leave plug_in out: E[p (1 - p)] and Var p of the same belief are priced",
    )


def _price(probability_B: FloatArray, weights_B: FloatArray, settings: Settings) -> WeightedPrice | ShrinkagePrice:
    """The price of visits whose success is believed to have this mean and whose reward this expected variance."""
    if settings.believes:
        return ShrinkagePrice.of_moments(probability_B, weights_B)
    return WeightedPrice(weights_B, get_estimator(settings.estimator))


def _splits(price: Price, budgets: Sequence[int], settings: Settings, step: int) -> IntArray:
    """[G, B] the exact split of a step's budgets; prompts of equal price in an order that is another in every step."""
    tie_keys = np.random.default_rng([settings.seed, step]).permutation(len(price))
    return nested_counts(price, budgets, settings.lower, settings.upper, tie_keys)
