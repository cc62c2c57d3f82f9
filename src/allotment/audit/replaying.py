"""Replay a log in time order: predict each batch before it is seen, allocate by that, then score and learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from allotment.allocation import allocate_exact
from allotment.allocation.exact import check_bounds
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
from allotment.checks import check_setting
from allotment.prediction import Predictor
from allotment.pricing import get_estimator, posterior_weights
from allotment.types import FloatArray, IntArray

RANGES: dict[str, tuple[int, int | None]] = {"1": (1, 1), "2": (2, 2), "3-10": (3, 10), "11+": (11, None)}
"""Epoch ranges by name: first and last visit number, both included; None is without end."""


@dataclass(frozen=True)
class Settings:
    """How a log is replayed. Raises InvalidInputError: a setting is out of its range; InfeasibleBudgetError: the bounds
    do not admit the budget.
    """

    budget_per_prompt: int = 8
    """Rollouts of a batch, divided by its prompts; what uniform gives each prompt."""
    lower: int = 3
    """Least rollouts of a prompt."""
    upper: int = 32
    """Most rollouts of a prompt."""
    estimator: str = "rloo"
    """``"rloo"`` or ``"dr_grpo"``, the gradient estimator whose variance is priced and scored."""
    batch: int = 128
    """Prompts of a step, where the log does not say which prompts shared a step."""
    seed: int = 0
    """Fixes the order of the prompts, where it is assumed, and the order among prompts of equal price."""

    def __post_init__(self) -> None:
        least = get_estimator(self.estimator).minimum_count
        check_bounds(self.budget_per_prompt, self.lower, self.upper, n_prompts=1, minimum_count=least)
        check_setting("batch", self.batch, self.batch >= 1, "a whole number >= 1")
        check_setting("seed", self.seed, self.seed >= 0, "a whole number >= 0")


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

    def counts_at(self, budget_per_prompt: float) -> IntArray:
        """[V] what the same predictions would have given at another budget, the settings' bounds kept.

        A step's budget is ``budget_per_prompt`` times its prompts, rounded; between the settings' bounds.
        """
        counts_V = np.empty(len(self.weights), dtype=np.int64)
        for step, batch_B in enumerate(self.log.batches(self.settings.batch, self.settings.seed)):
            budget = round(budget_per_prompt * len(batch_B))
            counts_V[batch_B] = _split(self.weights[batch_B], budget, self.settings, step)
        return counts_V

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
            self._variance_ratio(part),
            log_loss(p, k, n),
            mean_absolute_error(p, k, n),
            calibration_error(p, k, n),
            float(self.covered[part].mean()),
            int(part.sum()),
        )

    def by_range(self) -> dict[str, Figures]:
        """The figures over each of :data:`RANGES` that has visits."""
        found = {name: self.figures(first, last) for name, (first, last) in RANGES.items()}
        return {name: figures for name, figures in found.items() if figures is not None}

    def _variance_ratio(self, part: npt.NDArray[np.bool_]) -> float:
        """Sum of ``a g(counts)`` over that of uniform; a is estimated from the very visit that was allocated for."""
        curve = get_estimator(self.settings.estimator).variance
        weights = unbiased_variance(self.log.successes[part], self.log.trials[part])
        uniform = np.full(len(weights), self.settings.budget_per_prompt)
        return ratio(float((weights * curve(self.counts[part])).sum()), float((weights * curve(uniform)).sum()))


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
    """
    settings = Settings() if settings is None else settings
    probability_V, covered_V = np.empty(len(log.visit)), np.empty(len(log.visit))
    counts_V, weights_V = np.empty(len(log.visit), dtype=np.int64), np.empty(len(log.visit))
    for step, batch_B in enumerate(log.batches(settings.batch, settings.seed)):
        ids = [log.ids[row] for row in log.prompt[batch_B]]
        successes_B, trials_B = log.successes[batch_B], log.trials[batch_B]
        belief = predictor.predict(ids)
        probability_V[batch_B] = belief.success_probability()
        covered_V[batch_B] = interval_coverage(belief, successes_B, trials_B)
        weights_V[batch_B] = posterior_weights(belief, plug_in=plug_in)
        counts_V[batch_B] = _split(weights_V[batch_B], settings.budget_per_prompt * len(ids), settings, step)
        predictor.observe(ids, successes_B, trials_B)
        on_batch()
    return Replay(log, settings, probability_V, covered_V, counts_V, weights_V)


def _split(weights_B: FloatArray, budget: int, settings: Settings, step: int) -> IntArray:
    """[B] the exact split of a step's budget; prompts of equal price in an order that is another in every step."""
    return allocate_exact(
        weights_B,
        budget,
        lower=settings.lower,
        upper=settings.upper,
        estimator=settings.estimator,
        tie_keys=np.random.default_rng([settings.seed, step]).permutation(len(weights_B)),
    ).counts
