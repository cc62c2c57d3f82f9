"""Names of designs of a step: who plans it, for how many prompts and rollouts, and what rollouts are compared with.

A name is that of a planner and what differs from the usual step, each part optional: ``PLANNER-PxN-ESTIMATOR-of-M``.
P prompts with N rollouts each on average; ``rloo`` or ``shrinkage``; M candidates, for planners that choose among them.
So ``uniform-64x2``, ``vip-64x2-shrinkage``, ``joint-of-128``. Beside planners there are two yardsticks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from allotment.errors import ConfigError
from allotment.planning.contract import Capability, check_planner_name

TWICE, NEYMAN = "uniform-2x", "neyman"
YARDSTICKS = (TWICE, NEYMAN)
"""Uniform at twice the rollouts; least variance within a batch for known gradient moments."""
_NUMBER = r"([1-9]\d*)"
_PARTS = re.compile(rf"(.+?)(?:-{_NUMBER}x{_NUMBER})?(?:-(rloo|shrinkage))?(?:-of-{_NUMBER})?")


@dataclass(frozen=True)
class DesignName:
    """The parts of a name; None where it says nothing."""

    planner: str
    """A planner or a yardstick."""
    prompts: int | None = None
    rollouts: int | None = None
    estimator: str | None = None
    candidates: int | None = None

    @classmethod
    def of(cls, name: str) -> DesignName:
        """Read a name; the planner is not looked up."""
        found = _PARTS.fullmatch(name)
        if found is None or name in YARDSTICKS:
            return cls(name)
        planner, prompts, rollouts, estimator, candidates = found.groups()
        p, n, m = (None if number is None else int(number) for number in (prompts, rollouts, candidates))
        return cls(planner, p, n, estimator, m)

    def __str__(self) -> str:
        shape = "" if self.prompts is None else f"-{self.prompts}x{self.rollouts}"
        estimator = "" if self.estimator is None else f"-{self.estimator}"
        return f"{self.planner}{shape}{estimator}" + ("" if self.candidates is None else f"-of-{self.candidates}")


def check_design_name(name: str, consumer: Capability) -> str:
    """The name with its planner as the registry spells it; ConfigError where it is none, or ``consumer`` cannot carry
    out what it names.
    """
    if name in YARDSTICKS:
        return name
    parts = DesignName.of(name)
    try:
        return str(replace(parts, planner=check_planner_name(parts.planner, consumer)))
    except ConfigError as error:
        more = f"{' and '.join(YARDSTICKS)} are measured too, and other steps as uniform-64x2, vip-64x2-shrinkage"
        raise ConfigError(f"{error}; {more}") from None
