"""The variance of a whole step at a fixed policy: which prompts it takes, and what their rollouts leave.

A step estimates the mean gradient over the pool by ``sum_q c_q G_q``, G_q the mean over the rollouts of prompt q of
advantage times score and c_q the factor with which the trainer's loss counts it. Given the plan, the G_q are
independent, unbiased for g_q and of known variance (:meth:`BaselineMoments.variance`). So its mean squared error is::

    between + within = E|sum_q c_q g_q - mean g|^2 + E sum_q c_q^2 V_q(n_q)

with the expectation over steps. The first term needs inner products of gradients alone. Where c is biased, the squared
bias is part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from allotment.lab.gradient_measurement import Measured
from allotment.lab.gradient_moments import BaselineMoments
from allotment.types import FloatArray, IntArray, Plan

Ask = Callable[[IntArray], tuple[Plan, Plan]]
"""``ask(rows)``: plans for these prompts of the pool, to be judged by the first and the second half of the rollouts."""
LEAST_PASSES = 4
"""Passes over the pool at least; the standard error is over passes."""


@dataclass(frozen=True)
class Variance:
    """Of a step's gradient."""

    between: float
    """From which prompts it takes."""
    within: float
    """From their rollouts and baselines."""
    se: float
    """Standard error of the sum, over passes."""

    @property
    def total(self) -> float:
        """Both."""
        return self.between + self.within


class Judge:
    """What the variance of a step is, over a pool of prompts whose moments are measured."""

    def __init__(self, pool: Measured) -> None:
        self.pool = pool
        self._row = {prompt: row for row, prompt in enumerate(pool.ids)}
        self._products_MM = pool.products()
        self._with_mean_M = self._products_MM.mean(1)
        self._mean_squared = float(self._with_mean_M.mean())

    def __len__(self) -> int:
        return len(self._row)

    def between(self, rows: IntArray, factors_Q: FloatArray) -> float:
        """``|sum_q c_q g_q - mean g|^2`` for prompts of the pool and their factors c."""
        squared = factors_Q @ self._products_MM[np.ix_(rows, rows)] @ factors_Q
        return float(squared - 2 * factors_Q @ self._with_mean_M[rows] + self._mean_squared)

    def between_even(self, prompts: int) -> float:
        """Its expectation for prompts that are drawn without preference or repetition and count alike."""
        spread = (np.trace(self._products_MM) - len(self) * self._mean_squared) / (len(self) - 1)
        return float((1 / prompts - 1 / len(self)) * spread)

    def step(self, asked: int, plans: tuple[Plan, Plan]) -> tuple[float, float]:
        """Between and within of a step whose planner was asked for so many prompts, the mean over both halves."""
        between = within = 0.0
        for moments, plan in zip(self.pool.baseline_halves, plans, strict=True):
            rows, factors_Q = np.array([self._row[str(i)] for i in plan.prompt_ids]), factors(plan)
            is_even = len(rows) == asked and np.ptp(factors_Q) == 0  # the expectation is known then
            between += self.between_even(asked) if is_even else self.between(rows, factors_Q)
            within += _within(moments.take(rows), plan, factors_Q)
        return between / 2, within / 2

    def over_passes(self, ask: Ask, asked: int, steps: int, seed: int) -> Variance:
        """The mean over at least ``steps`` steps, in passes over the pool, each in a random order."""
        a_pass = len(self) // asked
        parts_R2 = []
        for number in range(max(LEAST_PASSES, math.ceil(steps / a_pass))):
            order = np.random.default_rng([seed, 6, number]).permutation(len(self))
            offered = order[: a_pass * asked].reshape(a_pass, asked)
            parts_R2.append(np.mean([self.step(asked, ask(rows)) for rows in offered], axis=0))
        between, within = np.mean(parts_R2, axis=0)
        se = np.std(np.sum(parts_R2, axis=1), ddof=1) / np.sqrt(len(parts_R2))
        return Variance(float(between), float(within), float(se))

    def uniform(self, prompts: int, rollouts: int) -> float:
        """The total with ``rollouts`` for each of ``prompts`` drawn without preference, RLOO; no simulation."""
        n_M = np.full(len(self), rollouts)
        within = np.mean([half.variance(n_M, None, None) for half in self.pool.baseline_halves]) / prompts
        return self.between_even(prompts) + float(within)


def factors(plan: Plan) -> FloatArray:
    """[Q] with which each prompt's gradient counts in the step's, as trainers have it; 0 without rollouts."""
    has_Q = plan.counts > 0
    groups = int(has_Q.sum())
    weights_Q = plan.loss_factors(groups)
    return np.asarray(has_Q * (1.0 if weights_Q is None else weights_Q) / groups, dtype=np.float64)


def _within(moments: BaselineMoments, plan: Plan, factors_Q: FloatArray) -> float:
    has_Q = plan.counts > 0
    baselines, shares = (None if x is None else x[has_Q] for x in (plan.baselines, plan.baseline_shares))
    variance_Q = moments.take(np.flatnonzero(has_Q)).variance(plan.counts[has_Q], baselines, shares)
    return float(factors_Q[has_Q] ** 2 @ variance_Q)
