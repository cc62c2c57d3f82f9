"""The variance of the policy gradient at a fixed policy, measured, per planner.

For each prompt, many rollouts give pairs of a reward r and a score s, the derivative of the rollout's log-probability
along a direction of the parameter space. The RLOO estimate from n rollouts is the sample covariance of r and s, whose
variance has a closed form in four moments (:meth:`Moments.variance`). Averaged over all coordinates it is the trace of
the gradient's covariance, up to a factor. A planner's figure is the sum over a batch of prompts, relative to that of
the uniform allocation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from allotment.allocation import allocate_exact
from allotment.errors import ConfigError
from allotment.lab.checkpoint import load_lab
from allotment.lab.config import MEASUREMENT, YARDSTICKS, GradientVarianceConfig
from allotment.lab.generation import Lab, Rollouts, seeded_generator
from allotment.lab.planners import make_planner
from allotment.lab.scores import Sketch, random_directions, scores, sketch_named
from allotment.planning.contract import refuse, works_with
from allotment.planning.success import SuccessPlanner
from allotment.prediction.measured import ScoreVisit
from allotment.pricing import TablePrice
from allotment.registry import PLANNERS
from allotment.tasks.countdown import mixture_of
from allotment.tasks.mixture import Problem
from allotment.types import FloatArray, IntArray

VISIT = 8
"""Rollouts of a prompt in one past visit."""
OBSERVED_TOGETHER = 16
"""Prompts of a past step."""


@dataclass(frozen=True)
class Moments:
    """Central moments of (reward, score) per prompt, averaged over directions of the score."""

    mu22: FloatArray
    """[Q] ``E[(r - E r)^2 (s - E s)^2]``."""
    squared_covariance: FloatArray
    """[Q] ``Cov(r, s)^2``: the squared gradient."""
    variances: FloatArray
    """[Q] ``Var(r) Var(s)``."""

    @classmethod
    def of(cls, rewards_QN: FloatArray, scores_QND: npt.NDArray[np.floating[Any]]) -> Moments:
        """Sample moments from N rollouts of each of Q prompts along D directions."""
        r_QN = rewards_QN - rewards_QN.mean(1, keepdims=True)
        s_QND = scores_QND - scores_QND.mean(1, keepdims=True)
        squares_QN = np.einsum("qnd,qnd->qn", s_QND, s_QND) / s_QND.shape[2]
        covariance_QD = np.einsum("qn,qnd->qd", r_QN, s_QND) / r_QN.shape[1]
        return cls((r_QN**2 * squares_QN).mean(1), (covariance_QD**2).mean(1), (r_QN**2).mean(1) * squares_QN.mean(1))

    @classmethod
    def joined(cls, parts: Sequence[Moments]) -> Moments:
        """The moments of the prompts of all parts."""
        columns = [(part.mu22, part.squared_covariance, part.variances) for part in parts]
        return cls(*(np.concatenate(column) for column in zip(*columns, strict=True)))

    def variance(self, counts: IntArray) -> FloatArray:
        """Variance of the sample covariance of n independent pairs, for counts that broadcast against [Q].

        ``mu22 / n - (n - 2) / (n (n - 1)) Cov^2 + Var(r) Var(s) / (n (n - 1))``. Where r and s are independent this is
        ``Var(r) Var(s) / (n - 1)``: the model of VIP (proposition 4.3).
        """
        n = counts.astype(np.float64)
        return self.mu22 / n + (self.variances - (n - 2) * self.squared_covariance) / (n * (n - 1))


@dataclass(frozen=True)
class Ratio:
    """Gradient variance relative to uniform allocation, over batches of prompts."""

    ratio: float
    """Mean over batches."""
    se: float
    """Standard error over batches."""


def measure(config: GradientVarianceConfig, progress: Callable[[str], None] = lambda text: None) -> dict[str, Ratio]:
    """Gradient variance of every planner of ``config``, relative to uniform at the same budget. Raises ConfigError:
    more prompts than the pool holds, or a batch in which no prompt has any variance.
    """
    torch.set_num_threads(1)
    lab, pool = load_lab(config.regime), mixture_of(config.regime).pool
    if config.batches * config.prompts > len(pool):
        got, fix = f"{config.batches} batches of {config.prompts}", "lower --batches or --prompts"
        raise ConfigError("more prompts than the pool holds", got=got, allowed=f"{len(pool)} prompts in all", fix=fix)
    random = np.random.default_rng(config.seed)
    batches = random.permutation(len(pool))[: config.batches * config.prompts].reshape(config.batches, config.prompts)
    planners = _informed_planners(config, lab, pool, progress)
    ratios: dict[str, list[float]] = {name: [] for name in config.planners}
    for number, rows in enumerate(batches):
        progress(f"batch {number + 1} of {config.batches}: {config.prompts * config.rollouts} rollouts")
        problems = [pool[i] for i in rows]
        halves = moments_of_halves(lab, problems, config, batch=number)
        uniform = sum(half.variance(np.full(config.prompts, config.rollouts_per_prompt)).sum() for half in halves)
        if not uniform > 0:
            raise ConfigError(
                f"batch {number + 1} has no gradient variance: no prompt had both a right and a wrong rollout",
                got=f"{config.prompts} prompts of {config.rollouts} rollouts",
                allowed="batches with variance",
                fix="raise --prompts or --rollouts",
            )
        for name in config.planners:
            counts = [_counts(name, config, problems, planners, other) for other in (halves[1], halves[0])]
            planned = sum(half.variance(c).sum() for half, c in zip(halves, counts, strict=True))
            ratios[name].append(float(planned / uniform))
    return {name: Ratio(float(np.mean(r)), float(np.std(r, ddof=1) / np.sqrt(len(r)))) for name, r in ratios.items()}


def moments_of_halves(
    lab: Lab, problems: Sequence[Problem], config: GradientVarianceConfig, batch: int
) -> tuple[Moments, Moments]:
    """Moments from each half of the rollouts of the problems: who allocates by one half is judged by the other."""
    directions_PD = random_directions(lab, config.directions, config.seed, 2) if config.directions else None
    halves: tuple[list[Moments], list[Moments]] = ([], [])
    for first in range(0, len(problems), 16):  # bounds the memory
        part = problems[first : first + 16]
        counts = np.full(len(part), config.rollouts)
        rollouts = lab.rollouts(part, counts, seeded_generator(config.seed, 1, batch, first))
        for row, problem in enumerate(part):
            own = rollouts.of_prompt(row)
            scores_ND = scores(lab, problem, own)
            if directions_PD is not None:
                scores_ND = scores_ND @ directions_PD
            middle = config.rollouts // 2
            for half, chosen in zip(halves, (slice(None, middle), slice(middle, None)), strict=True):
                half.append(Moments.of(own.rewards_N[None, chosen], scores_ND[None, chosen].numpy()))
    return Moments.joined(halves[0]), Moments.joined(halves[1])


def _counts(
    name: str,
    config: GradientVarianceConfig,
    problems: Sequence[Problem],
    planners: dict[str, SuccessPlanner],
    known: Moments,
) -> IntArray:
    """[Q] the counts of a planner; only ``neyman`` looks at ``known``, the moments of the other half."""
    mean, budget = config.rollouts_per_prompt, config.rollouts_per_prompt * len(problems)
    if name == "uniform-2x":
        return np.full(len(problems), 2 * mean)
    if name == "neyman":
        grid_K1 = np.arange(2, config.bounds[1] + 1)[:, None]
        price = TablePrice(np.ascontiguousarray(known.variance(grid_K1).T), minimum_count=2)
        return allocate_exact(price, budget, lower=config.bounds[0], upper=config.bounds[1]).counts
    planner = planners[name]
    plan = planner.ask([p.id for p in problems])
    planner.cancel(plan)
    return plan.counts


def _informed_planners(
    config: GradientVarianceConfig, lab: Lab, pool: Sequence[Problem], progress: Callable[[str], None]
) -> dict[str, SuccessPlanner]:
    """The planners, each having observed the same history of every prompt of the pool."""
    progress(f"history: {config.history} rollouts of each of {len(pool)} prompts")
    named = [name for name in config.planners if name not in YARDSTICKS]
    needs_scores = any("scores" in PLANNERS[name].contract.told for name in named)
    sketch = sketch_named(config.sketch, lab, config.sketches, config.seed) if needs_scores else None
    history = list(past_steps(lab, pool, config.history, config.seed, sketch))
    planners: dict[str, SuccessPlanner] = {}
    for name in named:
        budget = config.rollouts_per_prompt * config.prompts
        planner = make_planner(name, lab, pool, budget=budget, bounds=config.bounds, seed=config.seed)
        if not isinstance(planner, SuccessPlanner):
            refuse(PLANNERS, name, MEASUREMENT, "its past is told in counts of successes", works_with(MEASUREMENT))
            continue
        for step in history:
            step.teach(planner)
        planners[name] = planner
    return planners


@dataclass(frozen=True, eq=False)
class PastStep:
    """One visit of some prompts."""

    ids: tuple[str, ...]
    """[Q] the prompts."""
    rollouts: Rollouts
    """N rollouts of them."""
    scores_NK: FloatArray | None
    """[N, K] sketches of their scores; None if nobody asked."""

    def teach(self, planner: SuccessPlanner) -> None:
        """Let a planner's beliefs observe the step."""
        groups_N, is_success_N = self.rollouts.group_N.numpy(), self.rollouts.rewards_N > 0
        trials_Q = np.bincount(groups_N, minlength=len(self.ids))
        planner.predictor.observe(self.ids, np.bincount(groups_N[is_success_N], minlength=len(self.ids)), trials_Q)
        if self.scores_NK is not None and planner.moments is not None:
            planner.moments.observe(ScoreVisit.of(self.ids, groups_N, is_success_N, self.scores_NK))


def past_steps(
    lab: Lab, pool: Sequence[Problem], rollouts: int, seed: int, sketch: Sketch | None = None
) -> Iterator[PastStep]:
    """Visits of 8 rollouts (the last may be shorter), 16 prompts a step, the pool in a new order for each visit."""
    for visit, start in enumerate(range(0, rollouts, VISIT)):
        n = min(VISIT, rollouts - start)
        order = np.random.default_rng([seed, 3, visit]).permutation(len(pool))
        for first in range(0, len(pool), OBSERVED_TOGETHER):
            part = [pool[i] for i in order[first : first + OBSERVED_TOGETHER]]
            made = lab.rollouts(part, np.full(len(part), n), seeded_generator(seed, 4, visit, first))
            yield PastStep(tuple(p.id for p in part), made, None if sketch is None else sketch(part, made))
