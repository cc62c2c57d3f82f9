"""Planners of designs, each having learnt from the same past."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from allotment.lab.config import MEASUREMENT, GradientVarianceConfig
from allotment.lab.design_names import NEYMAN
from allotment.lab.designs import Design
from allotment.lab.generation import Lab
from allotment.lab.past import past_steps
from allotment.lab.planners import make_planner
from allotment.lab.scores import sketch_named
from allotment.planning.contract import refuse, works_with
from allotment.planning.success import SuccessPlanner
from allotment.registry import PLANNERS
from allotment.tasks.mixture import Problem


def informed_planners(config: GradientVarianceConfig, lab: Lab, pool: Sequence[Problem]) -> dict[str, SuccessPlanner]:
    """By name of the design, its planner, which has observed ``config.history`` rollouts of every prompt."""
    designs = [design for design in config.designs if design.planner != NEYMAN]
    planners = {design.name: _planner(config, design, lab, pool) for design in designs}
    needs_scores = any("scores" in planner.contract.told for planner in planners.values())
    sketch = sketch_named(config.sketch, lab, config.sketches, config.seed) if needs_scores else None
    for step in past_steps(lab, pool, config.history, config.seed, sketch):
        for planner in planners.values():
            step.teach(planner)
    return planners


def _planner(config: GradientVarianceConfig, design: Design, lab: Lab, pool: Sequence[Problem]) -> SuccessPlanner:
    settings: dict[str, Any] = {} if design.predictor is None else {"predictor": design.predictor}
    settings |= {"bounds": design.bounds, "estimator": design.estimator, "seed": config.seed}
    budget = config.rollouts_per_prompt * config.prompts if design.splits else design.budget
    planner = make_planner(design.planner, lab, pool, trained_prompts=design.prompts, budget=budget, **settings)
    believes = isinstance(planner, SuccessPlanner)
    reason = None if believes else "its past is told in counts of successes"
    refuse(PLANNERS, design.planner, MEASUREMENT, reason, works_with(MEASUREMENT))
    assert isinstance(planner, SuccessPlanner)
    return planner
