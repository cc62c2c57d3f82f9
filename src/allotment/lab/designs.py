"""Designs of a step by name: prompts, candidates, rollouts, bounds, estimator and belief."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from allotment.errors import ConfigError
from allotment.lab.design_names import NEYMAN, TWICE, DesignName
from allotment.pricing import get_estimator
from allotment.registry import PLANNERS

if TYPE_CHECKING:
    from allotment.lab.config import GradientVarianceConfig


@dataclass(frozen=True)
class Design:
    """How a step is made."""

    name: str
    planner: str
    """Of the registry, or ``neyman``."""
    prompts: int
    """P, prompts for which the budget is meant."""
    rollouts: int
    """N, rollouts of a prompt on average."""
    candidates: int
    """Prompts that the planner is asked for."""
    bounds: tuple[int, int]
    """Least and most rollouts of a prompt."""
    estimator: str
    predictor: str | None
    """Name of the belief; None for the planner's own."""

    @property
    def budget(self) -> int:
        """Rollouts of a step."""
        return self.prompts * self.rollouts

    @property
    def splits(self) -> bool:
        """Whether it only says how the rollouts of given prompts are split, by RLOO: what a fixed batch can measure."""
        return DesignName.of(self.name).prompts is None and self.estimator == "rloo" and not _chooses(self.planner)

    @classmethod
    def of(cls, name: str, config: GradientVarianceConfig) -> Design:
        """The design of that name. Raises ConfigError: it cannot be made from the prompts of the measurement."""
        parts = DesignName.of(name)
        planner = "uniform" if name == TWICE else parts.planner
        prompts = parts.prompts or config.prompts_per_step
        rollouts = parts.rollouts or config.rollouts_per_prompt * (2 if name == TWICE else 1)
        candidates = parts.candidates or prompts
        if _chooses(planner):
            usual = config.candidates or prompts * PLANNERS[planner].candidates
            candidates = parts.candidates or min(usual, config.measured_prompts)
        own = None if planner == NEYMAN else PLANNERS[planner].estimator
        curve = get_estimator(parts.estimator or own or ("shrinkage" if rollouts == 1 else "rloo"))
        lower = 1 if curve.believes else max(min(config.bounds[0], rollouts), curve.minimum_count)
        bounds = (lower, config.bounds[1])
        design = cls(name, planner, prompts, rollouts, candidates, bounds, curve.name, _predictor(planner, parts))
        design._check(config.measured_prompts)
        return design

    def _check(self, pool: int) -> None:
        lower, upper = self.bounds
        most = max(self.prompts, self.candidates)
        if self.candidates != self.prompts and not _chooses(self.planner):
            wrong, allowed = f"{self.planner} takes every prompt it is asked for", "-of-M with a planner such as joint"
            fix = "leave -of-M out"
        elif most > pool:
            wrong, allowed = f"a step of {most} prompts", f"the {pool} prompts that are measured"
            fix = "raise --batches or --prompts, or leave it out of --planners"
        elif not lower <= self.rollouts <= upper:
            wrong, allowed = f"{self.rollouts} rollouts a prompt", f"{lower} to {upper} with {self.estimator}"
            fix = "change the number or --bounds; with -shrinkage groups of one are allowed"
        else:
            return
        raise ConfigError(f"the design {self.name!r} cannot be made: {wrong}", got=self.name, allowed=allowed, fix=fix)


def _chooses(planner: str) -> bool:
    """Whether it may give prompts no rollouts."""
    return planner != NEYMAN and PLANNERS[planner].contract.leaves_out


def _predictor(planner: str, parts: DesignName) -> str | None:
    """Uniform's belief: only as a baseline does it matter, and without a name it is the same for all prompts."""
    if planner != "uniform" or parts == DesignName("uniform"):
        return None
    return "global-mean" if parts.estimator is None else "hierarchical"
