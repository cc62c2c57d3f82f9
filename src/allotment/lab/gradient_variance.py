"""The variance of the policy gradient at a fixed policy, measured, per design of a step.

Twofold. In fixed batches, whose prompts all get rollouts: the RLOO estimate of a prompt from n rollouts is the sample
covariance of reward and score, whose variance has a closed form in four moments (:meth:`Moments.variance`). A planner's
figure is the sum over a batch, relative to that of the uniform split at the same budget. And of whole steps, which draw
their prompts, so that designs of different shape can be compared: :mod:`allotment.lab.step_variance`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from allotment.errors import ConfigError
from allotment.lab.checkpoint import load_lab
from allotment.lab.config import GradientVarianceConfig
from allotment.lab.design_names import NEYMAN
from allotment.lab.designs import Design
from allotment.lab.fixed_batches import neyman_counts, ratios_of_batch
from allotment.lab.generation import Lab
from allotment.lab.gradient_measurement import Measured, measured
from allotment.lab.gradient_moments import Moments
from allotment.lab.informed import informed_planners
from allotment.lab.step_variance import Ask, Judge
from allotment.planning.success import SuccessPlanner
from allotment.tasks.countdown import mixture_of
from allotment.tasks.mixture import Problem
from allotment.types import IntArray, Plan

Progress = Callable[[str], None]
Measure = Callable[[Lab, Sequence[Problem], GradientVarianceConfig, int], Measured]


@dataclass(frozen=True)
class Figures:
    """Gradient variance of a design."""

    ratio: float | None
    """Of a split of the rollouts of fixed batches: its variance relative to the uniform split, mean over batches; None
    for designs that choose prompts, have another shape or another estimator than RLOO."""
    se: float | None
    """Standard error of ``ratio`` over batches."""
    between: float
    """What a whole step varies by because of the prompts it has; this and what follows relative to the total of uniform
    steps of ``prompts_per_step`` prompts with ``rollouts_per_prompt`` rollouts."""
    within: float
    """What it varies by because of rollouts and baselines."""
    total: float
    """Both."""
    total_se: float
    """Standard error over passes; the measured moments, which all designs share, are taken as given: compare seeds."""


def measure(
    config: GradientVarianceConfig, progress: Progress = lambda text: None, measure_batch: Measure = measured
) -> dict[str, Figures]:
    """Gradient variance of every design of ``config``. Raises ConfigError: more prompts than the pool holds, or a batch
    in which no prompt has any variance.
    """
    torch.set_num_threads(1)
    lab, pool = load_lab(config.regime), mixture_of(config.regime).pool
    if config.measured_prompts > len(pool):
        got, fix = f"{config.batches} batches of {config.prompts}", "lower --batches or --prompts"
        raise ConfigError("more prompts than the pool holds", got=got, allowed=f"{len(pool)} prompts in all", fix=fix)
    random = np.random.default_rng(config.seed)
    rows = random.permutation(len(pool))[: config.measured_prompts].reshape(config.batches, config.prompts)
    progress(f"history: {config.history} rollouts of each of {len(pool)} prompts")
    planners = informed_planners(config, lab, pool)
    ratios: dict[str, list[float]] = {design.name: [] for design in config.designs if design.splits}
    batches = []
    for number, batch in enumerate(rows):
        progress(f"batch {number + 1} of {config.batches}: {config.prompts * config.rollouts} rollouts")
        batches.append(measure_batch(lab, [pool[i] for i in batch], config, number))
        for name, ratio in ratios_of_batch(config, batches[-1], planners, number).items():
            ratios[name].append(ratio)
    judge = Judge(Measured.joined(batches))
    return {d.name: _figures(config, d, ratios.get(d.name), judge, planners, progress) for d in config.designs}


def _figures(
    config: GradientVarianceConfig,
    design: Design,
    ratios: list[float] | None,
    judge: Judge,
    planners: dict[str, SuccessPlanner],
    progress: Progress,
) -> Figures:
    progress(f"steps of {design.name}")
    ask = _neyman(design, judge.pool) if design.planner == NEYMAN else _ask(design, judge.pool, planners[design.name])
    step = judge.over_passes(ask, design.candidates, config.steps, config.seed)
    unit = judge.uniform(config.prompts_per_step, config.rollouts_per_prompt)
    ratio, se = (None, None) if ratios is None else _mean_and_error(ratios)
    return Figures(ratio, se, step.between / unit, step.within / unit, step.total / unit, step.se / unit)


def _mean_and_error(ratios: list[float]) -> tuple[float, float]:
    return float(np.mean(ratios)), float(np.std(ratios, ddof=1) / np.sqrt(len(ratios)))


def _ask(design: Design, pool: Measured, planner: SuccessPlanner) -> Ask:
    def ask(rows: IntArray) -> tuple[Plan, Plan]:
        plan = planner.ask([pool.ids[row] for row in rows], budget=design.budget)
        planner.cancel(plan)
        return plan, plan

    return ask


def _neyman(design: Design, pool: Measured) -> Ask:
    def plan(rows: IntArray, known: Moments) -> Plan:
        counts = neyman_counts(known.take(rows), design.budget, design.bounds)
        return Plan(tuple(pool.ids[row] for row in rows), counts, step=0)

    return lambda rows: (plan(rows, pool.halves[1]), plan(rows, pool.halves[0]))
