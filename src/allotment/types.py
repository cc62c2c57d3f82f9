"""Results and beliefs that travel between the parts; all frozen, every array with its shape.

Axis suffixes, used everywhere in the code: ``_Q`` prompt of the batch, ``_N`` rollout (groups of unequal size, one
flat axis), ``_T`` token, ``_K`` count of rollouts on a grid, ``_M`` registered prompt, ``_D`` embedding dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, expit

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
PromptId = int | str
PromptIds = Sequence[PromptId] | npt.NDArray[np.int64] | npt.NDArray[np.str_]

QUADRATURE_NODES = ((2.0, 41), (4.0, 61), (float("inf"), 101))
"""Up to these logit variances times steepness, so many. Error of ``E[p]``: 1e-7 up to 9, 2e-6 at 16, 3e-4 at 50."""


@lru_cache(maxsize=8)
def gauss_hermite(count: int) -> tuple[FloatArray, FloatArray]:
    """Nodes and weights for the expectation under a standard normal; both [count]."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return nodes, weights / weights.sum()


@dataclass(frozen=True, eq=False)
class Posterior:
    """Belief about the success probability of each prompt: a normal distribution of its logit.

    ``p_q = sigmoid(g_q)``, ``g_q ~ Normal(mean_q, variance_q)``. A variance of 0 is a point estimate. Expectations are
    by Gauss-Hermite quadrature. Other forms: :mod:`allotment.prediction.posteriors`.
    """

    mean: FloatArray
    """[Q] mean of the logit."""
    variance: FloatArray
    """[Q] variance of the logit, >= 0."""

    def __len__(self) -> int:
        return len(self.mean)

    def success_probability(self) -> FloatArray:
        """[Q] ``E[p]``, in [0, 1]."""
        return self._mean_of_p.copy()

    def expected_variance(self) -> FloatArray:
        """[Q] ``E[p (1 - p)]``, in [0, 1/4]: the expected variance of one 0/1 reward, unknown p averaged out."""
        return self._variance_of_reward.copy()

    @cached_property
    def _mean_of_p(self) -> FloatArray:
        return self._expect(expit, 1.0)

    @cached_property
    def _variance_of_reward(self) -> FloatArray:
        return self._expect(lambda g: (odds := np.exp(-np.abs(g))) / (1.0 + odds) ** 2, 1.0)  # beats expit

    def power_moment(self, successes: int, failures: int) -> FloatArray:
        """[Q] ``E[p^successes (1 - p)^failures]``: the expected probability of that sequence of outcomes."""
        return self._expect(lambda g: expit(g) ** successes * expit(-g) ** failures, 1e3)  # one rule for all powers

    def plug_in_probability(self) -> FloatArray:
        """[Q] ``sigmoid(mean)``: the prediction of the paper (VIP section 5.1), which ignores the variance."""
        return np.asarray(expit(self.mean), dtype=np.float64)

    def standard_deviation(self) -> FloatArray:
        """[Q] standard deviation of p (not of the logit): ``sqrt(E[p] (1 - E[p]) - E[p (1 - p)])``."""
        mean = self.success_probability()
        return np.sqrt(np.maximum(mean * (1 - mean) - self.expected_variance(), 0.0))

    def count_cdf(self, counts: IntArray, trials: IntArray) -> FloatArray:
        """[Q] ``E[P(K <= counts)]``, ``K ~ Binomial(trials, p)``: at most ``counts`` [Q] of ``trials`` [Q] succeed."""
        some_Q1, trials_Q1 = np.maximum(counts, 0)[:, None], trials[:, None]
        cdf_Q = self._expect(lambda g: np.asarray(bdtr(some_Q1, trials_Q1, expit(g))), np.maximum(trials / 8, 1.0))
        return np.asarray(np.where(counts < 0, 0.0, np.minimum(cdf_Q, 1.0)), dtype=np.float64)

    def take(self, rows: IntArray) -> Self:
        """The belief about some of the prompts; ``rows`` [R], places in 0..Q-1."""
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def _expect(self, function: Callable[[FloatArray], FloatArray], steep: float | FloatArray) -> FloatArray:
        """``steep``: how many times as steep as p the function may be."""
        largest = (self.variance * steep).max(initial=0.0)
        nodes, weights = gauss_hermite(next(count for up_to, count in QUADRATURE_NODES if not largest > up_to))
        logits = self.mean[:, None] + np.sqrt(self.variance)[:, None] * nodes
        return np.asarray((function(logits) * weights).sum(axis=1), dtype=np.float64)  # no BLAS: equal rows, equal bits


@dataclass(frozen=True, eq=False)
class Allocation:
    """How a budget was split over the prompts of a batch, with what it achieves."""

    counts: IntArray
    """[Q] rollouts of each prompt; sums to the budget."""
    objective: float
    """Sum over prompts of the estimator variance at ``counts`` (unit: variance of the reward)."""
    uniform_objective: float
    """The same sum if the budget were split evenly (within the same bounds)."""
    multiplier: tuple[float, float]
    """[largest gain of one more rollout, smallest loss of one fewer], over all prompts that their bounds let move: the
    allocation is optimal if and only if the first is not above the second, and the interval holds the Lagrange
    multiplier of the budget. First 0.0 where no prompt can rise, second inf where none can fall."""

    @property
    def budget(self) -> int:
        """Total number of rollouts."""
        return int(self.counts.sum())

    @property
    def is_certified(self) -> bool:
        """Whether the multiplier interval proves the counts optimal."""
        return self.multiplier[0] <= self.multiplier[1]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a planner asks to be generated: ``counts[i]`` rollouts of ``prompt_ids[i]``."""

    prompt_ids: tuple[PromptId, ...]
    """[Q] distinct prompt ids, in the order they were asked."""
    counts: IntArray
    """[Q] rollouts of each prompt."""
    step: int
    """The step this plan belongs to; counts the closed ``ask`` / ``tell`` cycles of its planner."""
    round: int = 0
    """Round within the step; always 0 for one-shot planners."""
    posterior: Posterior | None = None
    """The belief the plan was made from, [Q]; None where the planner has none."""
    allocation: Allocation | None = None
    """The allocation behind the counts; None where the counts come from elsewhere."""
    expected_later: IntArray | None = None
    """[Q] rollouts of each prompt expected after round 0 of a step with a second look, the same in both rounds and
    fixed before round 0: the loss needs it (:func:`allotment.learning.second_look_advantages`). Else None."""
    weights: FloatArray | None = None
    """[Q] weight of each prompt's contribution to the mean over all ``candidates``, >= 0: one over the probability with
    which it got rollouts. None: the mean is over the prompts that got rollouts, each alike."""
    candidates: int | None = None
    """Prompts the planner was asked for, where the plan may hold fewer; Q if None."""
    baselines: FloatArray | None = None
    """[Q] the mean reward believed before the step; where given, advantages are those of
    :func:`allotment.learning.baseline_advantages`, and a group of one is allowed. None: those of the estimator."""
    baseline_shares: FloatArray | None = None
    """[Q] weight of ``baselines`` against the mean of a prompt's other rollouts, in [0, 1]; 1 if None."""

    @property
    def budget(self) -> int:
        """Total number of rollouts of this plan."""
        return int(self.counts.sum())

    def loss_factors(self, groups: int) -> FloatArray | None:
        """[Q] factor of each prompt in a loss that averages over ``groups``, the prompts with rollouts; None: ones."""
        if self.weights is None:
            return None
        return self.weights * (groups / (self.candidates or len(self.prompt_ids)))

    def group_ids(self) -> list[PromptId]:
        """[N] the prompt id of every rollout, when groups are laid one after another in plan order."""
        return [prompt for prompt, count in zip(self.prompt_ids, self.counts, strict=True) for _ in range(count)]
