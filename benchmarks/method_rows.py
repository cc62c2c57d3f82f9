"""How the methods of docs/methods.md are made to be measured by ``methods.py``; their rows are in the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from allotment import VIP, Uniform
from allotment.learning.advantages import AdvantageFunction, AdvantageName
from allotment.methods.objectives.jspo import JSPO
from allotment.methods.objectives.krpo import KRPO
from allotment.methods.planners.coba_rl import CoBARL
from allotment.methods.planners.dapo import DAPO
from allotment.methods.planners.dynamic_pruning import DynamicPruning
from allotment.methods.planners.greso import GRESO
from allotment.methods.planners.gvm import GVM
from allotment.methods.planners.knapsack import Knapsack
from allotment.methods.planners.mopps import MoPPS
from allotment.methods.planners.optpo import OptPO
from allotment.methods.planners.pilot_commit import PilotCommit
from allotment.methods.planners.reinforce_ada import ReinforceAda
from allotment.methods.planners.reinforce_ada_est import ReinforceAdaEst
from allotment.methods.planners.spo import SPO
from allotment.methods.selectors.completion_pruning import CompletionPruning
from allotment.methods.selectors.contextual_bandit import ContextualBandit
from allotment.methods.selectors.subsets import PODS, MaxReward, RandomSubset
from allotment.planning import InverseAccuracy, InverseVariance, Planner, RewardVarianceVIP, RidgeVIP
from allotment.prediction import DiscountedCounts, LengthPredictor
from allotment.registry import PLANNERS, SELECTORS
from allotment.selection import Selector
from method_curves import (
    Curve,
    as_often_as_drawn,
    kalman,
    kept,
    max_reward_share,
    max_variance_share,
    pilot_commit,
    reinforce_ada,
    root_weighting,
    subset,
)

P = np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98])
"""The grid."""
COPIES = 4
"""Prompts of each success probability that are asked at every step."""
ASKED, CHOSEN, MEAN_COUNT = len(P) * COPIES, len(P), 8
"""Prompts that are asked, prompts that get rollouts where the method chooses, rollouts of a prompt."""


@dataclass(frozen=True)
class Method:
    """How a method is measured; what it is in words is declared beside its class."""

    make: Callable[[int], Planner]
    """The planner that is measured, from a seed."""
    make_selector: Callable[[int], Selector] | None = None
    curve: Curve | None = kept
    """The weight that is known."""
    formula: str = "1"
    """What stands in the figure."""
    estimator: AdvantageName | AdvantageFunction = "rloo"
    """Of the advantages, unless planner or selector bring their own."""
    measuring: dict[str, Any] = field(default_factory=dict)
    """Settings of :func:`theory.toy.measured_weights`."""


def full(constructor: Callable[..., Planner], **settings: Any) -> Callable[[int], Planner]:
    """Eight rollouts for every prompt asked, in the mean."""
    return lambda seed: constructor(**{"budget": MEAN_COUNT * ASKED, "seed": seed, **settings})


def choosing(constructor: Callable[..., Planner], **settings: Any) -> Callable[[int], Planner]:
    """Eight rollouts for every prompt that is chosen, a quarter of those asked."""
    return full(constructor, budget=MEAN_COUNT * CHOSEN, trained_prompts=CHOSEN, **settings)


def counted(seed: int) -> Planner:
    """Uniform, 16 rollouts each: what selectors choose from."""
    return Uniform(budget=2 * MEAN_COUNT * ASKED, seed=seed, predictor=DiscountedCounts())


def in_tokens(**settings: Any) -> Planner:
    """The budget in tokens, of rollouts of one token."""
    return VIP(**settings, unit=LengthPredictor(typical_length=1.0))


EMBEDDED = {"embeddings": 100.0 * np.eye(ASKED), "ids": list(range(ASKED))}
"""Prompts that have nothing in common: what is left of a predictor on embeddings is each prompt's last visits."""
JOINT = {"choose": "prompts", "estimator": "shrinkage"}
MEASURED_PLANNERS: dict[str, Method] = {
    "reward-variance": Method(full(RewardVarianceVIP, **EMBEDDED)),
    "uniform": Method(
        full(Uniform, predictor=DiscountedCounts()),
    ),
    "vip": Method(
        full(VIP),
    ),
    "joint": Method(
        full(VIP, budget=MEAN_COUNT * CHOSEN, bounds=(1, 32), **JOINT),
    ),
    "vip-paper": Method(
        full(VIP.paper, **EMBEDDED),
    ),
    "joint-scores": Method(
        full(VIP, budget=MEAN_COUNT * CHOSEN, bounds=(1, 32), **JOINT, baseline="score_weighted"),
    ),
    "vip-moments": Method(
        full(VIP, price="gradient_moments"),
    ),
    "vip-second-look": Method(
        full(VIP, rounds=2),
    ),
    "vip-tokens": Method(
        full(in_tokens),
    ),
    "ridge": Method(
        full(RidgeVIP, **EMBEDDED),
    ),
    "inverse-accuracy": Method(
        full(InverseAccuracy, predictor=DiscountedCounts()),
    ),
    "inverse-variance": Method(
        full(InverseVariance, predictor=DiscountedCounts()),
    ),
    "dynamic-pruning": Method(
        full(DynamicPruning),
    ),
    "coba-rl": Method(
        full(CoBARL),
    ),
    "optpo": Method(
        full(OptPO, budget=2 * MEAN_COUNT * ASKED, bounds=(3, 64)),
        curve=None,
    ),
    "reinforce-ada": Method(
        full(ReinforceAda, bounds=(2, 32)),
        curve=reinforce_ada(),
        formula="about 1/(2p(1-p)) - 1; line: exact for 4 rounds of 8",
    ),
    "reinforce-ada-est": Method(
        full(ReinforceAdaEst),
        curve=root_weighting(),
        formula="n / mean n times E[k(n-k) / (n² sqrt(k/n + e))] / (p(1-p)), about 1/p",
    ),
    "dapo": Method(
        choosing(DAPO),
        curve=as_often_as_drawn,
        formula="constant",
    ),
    "greso": Method(
        choosing(GRESO),
        curve=as_often_as_drawn,
        formula="in proportion to how often a prompt is drawn",
        measuring={"warm_up": 30},
    ),
    "mopps": Method(
        choosing(MoPPS),
        curve=as_often_as_drawn,
        formula="in proportion to how often a prompt is chosen",
    ),
    "pilot-commit": Method(
        choosing(PilotCommit),
        curve=pilot_commit(3, MEAN_COUNT),
        formula="E[1{k/3 in band} K(8-K)] / (56 p(1-p)), k of 3 in the pilot, K of all 8",
    ),
    "spo": Method(
        full(SPO, budget=2 * CHOSEN),
        curve=as_often_as_drawn,
        formula="in proportion to how often a prompt is drawn",
        measuring={"warm_up": 30},
    ),
    "knapsack": Method(
        full(Knapsack, bounds=(2, 128)),
    ),
    "gvm": Method(
        full(GVM),
    ),
}

MEASURED_SELECTORS: dict[str, Method] = {
    "pods": Method(
        counted,
        lambda seed: PODS(keep=4, seed=seed),
        curve=subset(max_variance_share, 16, 4),
        formula="E[f(1-f)] m/(m-1) / (p(1-p)), f = half, as far as possible",
    ),
    "max-reward": Method(
        counted,
        lambda seed: MaxReward(keep=4, seed=seed),
        curve=subset(max_reward_share, 16, 4),
        formula="E[f(1-f)] m/(m-1) / (p(1-p)), f = min(S, m)/m",
    ),
    "random": Method(
        counted,
        lambda seed: RandomSubset(keep=4, seed=seed),
    ),
    "contextual-bandit": Method(
        counted,
        lambda seed: ContextualBandit(seed=seed),
        curve=None,
    ),
    "completion-pruning": Method(
        counted,
        lambda seed: CompletionPruning(seed=seed),
    ),
}
"""Measured on 16 rollouts of every prompt, m = 4."""


def jspo(rewards_N: Tensor, group_ids_N: Tensor) -> Tensor:
    """Advantages of JSPO."""
    return JSPO().advantages({"reward": rewards_N}, group_ids_N)


def krpo(rewards_N: Tensor, group_ids_N: Tensor) -> Tensor:
    """Advantages of KRPO, over what a prompt of the mean number of rollouts weighs."""
    return KRPO().advantages({"reward": rewards_N}, group_ids_N) / KRPO().weight(MEAN_COUNT)


MEASURED_OBJECTIVES: dict[str, Method] = {
    "jspo": Method(full(VIP), estimator=jspo),
    "krpo": Method(
        full(VIP), curve=kalman, formula="c(n), which grows about like sqrt(n); 1 for n = 8", estimator=krpo
    ),
}
"""Advantages of their own, beside VIP: what they make of unequal numbers of rollouts."""

ONLY_IN_THE_LAB = ("oracle",)
"""Planners without a row: it knows every p, a bound and no method."""
METHODS = {
    name: (MEASURED_PLANNERS | MEASURED_SELECTORS)[name]
    for name in (*PLANNERS.built_in, *SELECTORS.built_in)
    if name not in ONLY_IN_THE_LAB
} | MEASURED_OBJECTIVES
"""Every planner and selector that comes with the library, in the order of the registry, and objectives."""
