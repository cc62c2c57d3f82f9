"""The variance of a fixed batch, relative to the uniform split, of planners that only split its rollouts."""

from __future__ import annotations

import numpy as np

from allotment.allocation import allocate_exact
from allotment.errors import ConfigError
from allotment.lab.config import GradientVarianceConfig
from allotment.lab.design_names import NEYMAN, TWICE
from allotment.lab.designs import Design
from allotment.lab.gradient_measurement import Measured
from allotment.lab.gradient_moments import Moments
from allotment.planning.success import SuccessPlanner
from allotment.pricing import TablePrice
from allotment.types import IntArray


def ratios_of_batch(
    config: GradientVarianceConfig, batch: Measured, planners: dict[str, SuccessPlanner], number: int
) -> dict[str, float]:
    """By name, the variance in a fixed batch, relative to uniform."""
    halves = batch.halves
    uniform = sum(half.variance(np.full(config.prompts, config.rollouts_per_prompt)).sum() for half in halves)
    if not uniform > 0:
        raise ConfigError(
            f"batch {number + 1} has no gradient variance: no prompt had both a right and a wrong rollout",
            got=f"{config.prompts} prompts of {config.rollouts} rollouts",
            allowed="batches with variance",
            fix="raise --prompts or --rollouts",
        )
    ratios = {}
    for design in (design for design in config.designs if design.splits):
        counts = [_counts(design, config, batch.ids, planners, known) for known in (halves[1], halves[0])]
        planned = sum(half.variance(c).sum() for half, c in zip(halves, counts, strict=True))
        ratios[design.name] = float(planned / uniform)
    return ratios


def _counts(
    design: Design,
    config: GradientVarianceConfig,
    ids: tuple[str, ...],
    planners: dict[str, SuccessPlanner],
    known: Moments,
) -> IntArray:
    """[Q] the counts in a fixed batch; only ``neyman`` looks at ``known``, the moments of the other half."""
    if design.name == TWICE:
        return np.full(len(ids), design.rollouts)
    if design.planner == NEYMAN:
        return neyman_counts(known, config.rollouts_per_prompt * len(ids), config.bounds)
    planner = planners[design.name]
    plan = planner.ask(ids)
    planner.cancel(plan)
    return plan.counts


def neyman_counts(known: Moments, budget: int, bounds: tuple[int, int]) -> IntArray:
    """[Q] the split of least variance for these moments."""
    grid_K1 = np.arange(2, bounds[1] + 1)[:, None]
    price = TablePrice(np.ascontiguousarray(known.variance(grid_K1).T), minimum_count=2)
    return allocate_exact(price, budget, lower=bounds[0], upper=bounds[1]).counts
