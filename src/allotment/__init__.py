"""Allotment decides how many rollouts each prompt gets in reinforcement learning with verifiable rewards.

    planner = VIP(budget=4096, bounds=(3, 32), estimator="rloo")
    plan = planner.ask(prompt_ids)               # plan.counts: int array [Q], sums to 4096
    planner.tell(plan, rewards, group_ids)       # rewards: float array [4096], group_ids: their prompt ids

Importing this loads numpy and scipy, never torch; :mod:`allotment.learning` and :mod:`allotment.lab` need torch.
"""

from allotment.allocation import allocate, allocate_exact, allocate_relaxed
from allotment.errors import AllotmentError
from allotment.planning import (
    DAPO,
    GRESO,
    GVM,
    VIP,
    CoBARL,
    DynamicPruning,
    InverseAccuracy,
    InverseVariance,
    Knapsack,
    MoPPS,
    OptPO,
    Outcome,
    Planner,
    ReinforceAda,
    ReinforceAdaEst,
    RewardVarianceVIP,
    RidgeVIP,
    Uniform,
)
from allotment.types import Allocation, BetaPosterior, Plan, Posterior

__version__ = "0.1.0"

__all__ = [
    "DAPO",
    "GRESO",
    "GVM",
    "VIP",
    "Allocation",
    "AllotmentError",
    "BetaPosterior",
    "CoBARL",
    "DynamicPruning",
    "InverseAccuracy",
    "InverseVariance",
    "Knapsack",
    "MoPPS",
    "OptPO",
    "Outcome",
    "Plan",
    "Planner",
    "Posterior",
    "ReinforceAda",
    "ReinforceAdaEst",
    "RewardVarianceVIP",
    "RidgeVIP",
    "Uniform",
    "allocate",
    "allocate_exact",
    "allocate_relaxed",
]
