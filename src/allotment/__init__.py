"""Allotment decides how many rollouts each prompt gets in reinforcement learning with verifiable rewards.

    planner = VIP(budget=4096, bounds=(3, 32), estimator="rloo")
    plan = planner.ask(prompt_ids)               # plan.counts: int array [Q], sums to 4096
    planner.tell(plan, rewards, group_ids)       # rewards: float array [4096], group_ids: their prompt ids

Importing this loads numpy and scipy, never torch; :mod:`allotment.learning` and :mod:`allotment.lab` need torch.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from allotment import errors
from allotment.allocation import allocate_exact
from allotment.errors import AllotmentError
from allotment.lazy import lazily
from allotment.planning import VIP, Outcome, Planner
from allotment.prediction import HierarchicalPredictor, Predictor
from allotment.types import Allocation, Plan, Posterior

if TYPE_CHECKING:
    from allotment.allocation import allocate, allocate_tokens
    from allotment.planning import Uniform, make_planner
    from allotment.prediction import DiscountedCounts, embed

__version__ = "0.2.0"

__all__ = [
    "VIP",
    "Allocation",
    "AllotmentError",
    "DiscountedCounts",
    "HierarchicalPredictor",
    "Outcome",
    "Plan",
    "Planner",
    "Posterior",
    "Predictor",
    "Uniform",
    "allocate",
    "allocate_exact",
    "allocate_tokens",
    "embed",
    "errors",
    "make_planner",
]

_MOVED = {
    **dict.fromkeys(("InverseAccuracy", "InverseVariance", "RewardVarianceVIP", "RidgeVIP"), "planning"),
    "CoBARL": "methods.planners.coba_rl",
    "DAPO": "methods.planners.dapo",
    "DynamicPruning": "methods.planners.dynamic_pruning",
    "GRESO": "methods.planners.greso",
    "GVM": "methods.planners.gvm",
    "Knapsack": "methods.planners.knapsack",
    "MoPPS": "methods.planners.mopps",
    "OptPO": "methods.planners.optpo",
    "ReinforceAda": "methods.planners.reinforce_ada",
    "ReinforceAdaEst": "methods.planners.reinforce_ada_est",
    "BetaPosterior": "prediction.posteriors",
    "allocate_relaxed": "allocation",
}
"""Names that stood here in 0.1.0, and the sub-module that has them now."""


_present = lazily(
    __name__,
    {
        "allocation": "allocate allocate_tokens",
        "planning": "Uniform make_planner",
        "prediction": "DiscountedCounts embed",
    },
)


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        return _present(name)
    place = f"{__name__}.{_MOVED[name]}"
    warnings.warn(f"{name} is in {place} now", DeprecationWarning, stacklevel=2)
    return getattr(import_module(place), name)
