"""The rows of docs/methods.md: one method each, in words, and how it is made to be measured by ``methods.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from allotment import VIP, Uniform
from allotment.methods.planners.coba_rl import CoBARL
from allotment.methods.planners.dapo import DAPO
from allotment.methods.planners.dynamic_pruning import DynamicPruning
from allotment.methods.planners.greso import GRESO
from allotment.methods.planners.gvm import GVM
from allotment.methods.planners.knapsack import Knapsack
from allotment.methods.planners.mopps import MoPPS
from allotment.methods.planners.optpo import OptPO
from allotment.methods.planners.reinforce_ada import ReinforceAda
from allotment.methods.planners.reinforce_ada_est import ReinforceAdaEst
from allotment.methods.selectors.completion_pruning import CompletionPruning
from allotment.methods.selectors.contextual_bandit import ContextualBandit
from allotment.methods.selectors.pods import PODS
from allotment.methods.selectors.subsets import MaxReward, RandomSubset
from allotment.planning import InverseAccuracy, InverseVariance, Planner, RidgeVIP
from allotment.prediction import DiscountedCounts, LengthPredictor
from allotment.selection import Selector
from method_curves import (
    Curve,
    as_often_as_drawn,
    kept,
    max_reward_share,
    max_variance_share,
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
    """A row."""

    predicts: str
    decides: str
    keeps: str
    optimises: str
    """In words, with the weight of a prompt relative to the gradient of its success probability."""
    source: str
    deviations: str
    make: Callable[[int], Planner]
    """The planner that is measured, from a seed."""
    make_selector: Callable[[int], Selector] | None = None
    curve: Curve | None = kept
    """The weight that is known."""
    formula: str = "1"
    """What stands in the figure."""
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
BEFORE = "before generation"
AFTER = "after verification"
EXACT = "exactly C"
UNBIASED = "the mean success probability: 1"
ALIKE = (
    "the mean success probability with `rloo` and `prompt_mean`: 1; where rollouts count alike (token or sequence "
    "means) `n / mean n`"
)

PLANNERS: dict[str, Method] = {
    "uniform": Method(
        "nothing (a belief is kept for the log)",
        BEFORE,
        EXACT,
        UNBIASED,
        "the baseline of every paper here",
        "a remainder goes to prompts drawn anew at each step",
        full(Uniform, predictor=DiscountedCounts()),
    ),
    "vip": Method(
        "success probability: hierarchical model of counts, embeddings and drift",
        BEFORE,
        EXACT,
        ALIKE,
        "arXiv 2602.01601",
        "three, each measured: predictor, `E[p(1-p)]` for `p(1-p)`, exact integers; `vip-paper` has none",
        full(VIP),
    ),
    "vip-paper": Method(
        "success probability: Gaussian process on embeddings",
        BEFORE,
        EXACT,
        ALIKE,
        "arXiv 2602.01601, as printed",
        "none",
        full(VIP.paper, **EMBEDDED),
    ),
    "vip-moments": Method(
        "success probability and gradient moments",
        BEFORE,
        EXACT,
        ALIKE,
        "[gradient moments](gradient_moments.md)",
        "not in a paper; the toy tells no scores, so counts here are those of `vip`",
        full(VIP, price="gradient_moments"),
    ),
    "vip-second-look": Method(
        "success probability, twice a step",
        "before generation and after half of it",
        EXACT,
        "the mean success probability with `second_look_advantages`: 1; RLOO on the pooled group is biased",
        "[a second look](second_look.md)",
        "not in a paper",
        full(VIP, rounds=2),
    ),
    "vip-tokens": Method(
        "success probability and length",
        BEFORE,
        "C tokens in expectation",
        ALIKE,
        "[prediction](prediction.md)",
        "not in a paper; answers of the toy are one token long",
        full(in_tokens),
    ),
    "ridge": Method(
        "success probability: ridge regression on embeddings",
        BEFORE,
        EXACT,
        ALIKE,
        "arXiv 2602.01601, table 3",
        "none",
        full(RidgeVIP, **EMBEDDED),
    ),
    "inverse-accuracy": Method(
        "success probability",
        BEFORE,
        EXACT,
        ALIKE,
        "arXiv 2602.01601, appendix C.1",
        "the predictor is that of `vip`",
        full(InverseAccuracy, predictor=DiscountedCounts()),
    ),
    "inverse-variance": Method(
        "success probability",
        BEFORE,
        EXACT,
        ALIKE,
        "arXiv 2602.01601, appendix C.1",
        "the predictor is that of `vip`",
        full(InverseVariance, predictor=DiscountedCounts()),
    ),
    "dynamic-pruning": Method(
        "mean absolute advantage of a prompt's last group",
        BEFORE,
        "at most C: pruned prompts are not replaced",
        "the mean success probability, by importance weights `1/(1-P)`: 1, with more variance; `random=False`: biased",
        "DPPO, arXiv 2603.04135",
        "rule, statistic and rate are a reconstruction; the paper's proof is of random pruning, its algorithm 1 is not",
        full(DynamicPruning),
    ),
    "coba-rl": Method(
        "success probability of each prompt, failure rate of the last steps",
        BEFORE,
        EXACT,
        ALIKE,
        "arXiv 2602.03048",
        "exact split for the heap (the same counts); alpha bounds, lambda, tau, window and cold start are ours",
        full(CoBARL),
    ),
    "optpo": Method(
        "the vote of a prompt, within a step",
        "after every vote",
        "at most C: from N to M votes for each prompt",
        "the probability of the policy's own modal answer, without labels: where it is wrong (here below p = 0.3) the "
        "step leads away from the right one. The plot is its projection on the gradient of p",
        "arXiv 2512.02882",
        "threshold, p0, classes, M and N are ours; N votes come before the first test",
        full(OptPO, budget=2 * MEAN_COUNT * ASKED, bounds=(3, 64)),
        curve=None,
    ),
    "reinforce-ada": Method(
        "nothing, or a belief to start from",
        "between rounds of a step",
        "from C to `rounds` times C, by what comes back",
        'neither p nor log p: `1/(2p(1-p)) - 1` without the cap (line: exact, with it); `baseline="p"`, `"log_p"`: '
        "p, log p but for the bias of the pool's mean",
        "arXiv 2510.04996, v1/v2 and code",
        "no token mean; v3's 1/p weight by name (`log_pool`)",
        full(ReinforceAda, bounds=(2, 32)),
        curve=reinforce_ada(),
        formula="about 1/(2p(1-p)) - 1; line: exact for 4 rounds of 8",
    ),
    "reinforce-ada-est": Method(
        "success probability: discounted Beta counts",
        BEFORE,
        EXACT,
        'about log p, where every rollout counts alike (`shares="rollouts"`): counts go with `1/sqrt(p)`, advantages '
        "with another `1/sqrt(p)`; both bounded by epsilon and the counts",
        "arXiv 2510.04996 v3, algorithm 1 (no code)",
        "epsilon, prior, forgetting and bounds are ours",
        full(ReinforceAdaEst),
        curve=root_weighting(),
        formula="n / mean n times E[k(n-k) / (n² sqrt(k/n + e))] / (p(1-p)), about 1/p",
    ),
    "dapo": Method(
        "nothing",
        "between rounds of a step",
        "at most C trained on; generated: until enough groups are mixed",
        "the mean success probability, with a larger step: 1 / (share of mixed groups) for every p; with GRPO's "
        "standard deviation not",
        "arXiv 2503.14476, verl `recipe/dapo`",
        "surplus groups are dropped at random, not by order; the candidates asked are the limit",
        choosing(DAPO),
        curve=as_often_as_drawn,
        formula="constant",
    ),
    "greso": Method(
        "whether a group will have zero variance, from its last visits",
        "before generation and between rounds",
        "as `dapo`",
        "a prompt counts by how often it is let through: in proportion to its rollouts",
        "arXiv 2506.02177, released code",
        "draw sizes per group wanted; accuracy 0 and 1 where the code has 0.11 and 0.98",
        choosing(GRESO),
        curve=as_often_as_drawn,
        formula="in proportion to how often a prompt is drawn",
        measuring={"warm_up": 30},
    ),
    "mopps": Method(
        "success probability: discounted Beta counts, one draw from each",
        BEFORE,
        "exactly C on the chosen prompts",
        "a prompt counts by how often it is chosen: prompts near p = 1/2",
        "arXiv 2507.04632, code thu-rllab/MoPPS",
        "a visit discounts only prompts that were rolled out; how a band fills up",
        choosing(MoPPS),
        curve=as_often_as_drawn,
        formula="in proportion to how often a prompt is chosen",
    ),
    "knapsack": Method(
        "success rate of the last visit",
        BEFORE,
        EXACT,
        ALIKE,
        "Knapsack RL, arXiv 2509.25849, from secondary sources (no official code)",
        "exact without dynamic programming (the value is concave); rule for batches of new and known prompts",
        full(Knapsack, bounds=(2, 128)),
    ),
    "gvm": Method(
        "success probability and gradient norm",
        BEFORE,
        EXACT,
        ALIKE + "; RAFT's own loss weighs by 1/p",
        "GVM-RAFT, arXiv 2505.02391, code RLHFlow/GVM",
        "beliefs instead of a pilot of 8; p = 0 gets the lower bound, not nothing",
        full(GVM),
    ),
}

SELECTORS: dict[str, Method] = {
    "pods": Method(
        "nothing",
        AFTER,
        "m of n rollouts of every group",
        "rare outcomes count more: `E[f(1-f)] m/(m-1) / (p(1-p))`, f the successes' share of the m; for large n "
        "`1/(4p(1-p))` times `m/(m-1)`",
        "arXiv 2504.13818",
        "one sort for the code's replacement scan (the same subset); groups of unequal size",
        counted,
        lambda seed: PODS(keep=4, seed=seed),
        curve=subset(max_variance_share, 16, 4),
        formula="E[f(1-f)] m/(m-1) / (p(1-p)), f = half, as far as possible",
    ),
    "max-reward": Method(
        "nothing",
        AFTER,
        "m of n rollouts of every group",
        "prompts that hardly ever succeed, and no others: as `pods` with `f = min(S, m)/m`",
        "arXiv 2504.13818, its baseline",
        "ties at random",
        counted,
        lambda seed: MaxReward(keep=4, seed=seed),
        curve=subset(max_reward_share, 16, 4),
        formula="E[f(1-f)] m/(m-1) / (p(1-p)), f = min(S, m)/m",
    ),
    "random": Method(
        "nothing",
        AFTER,
        "m of n rollouts of every group",
        UNBIASED,
        "arXiv 2504.13818, its baseline",
        "none",
        counted,
        lambda seed: RandomSubset(keep=4, seed=seed),
    ),
    "contextual-bandit": Method(
        "gain of a rollout: perceptron on ten features, learnt from the change of the mean reward",
        AFTER,
        "a share of every group, or K rollouts of the last L steps",
        "what the perceptron has learnt; no closed form, no importance weights. The toy has nothing to gain: each run "
        "comes to prefer successes or failures, by chance, and the plot is the mean over runs",
        "CBS, arXiv 2602.08499",
        "seven of ten features are the paper's; network, exploration, defaults are a reconstruction",
        counted,
        lambda seed: ContextualBandit(seed=seed),
        curve=None,
    ),
    "completion-pruning": Method(
        "nothing",
        AFTER,
        "random, below what was generated",
        "the mean success probability, by importance weights `1/(1-P)`: 1, with more variance",
        "DPPO, arXiv 2603.04135",
        "rule and rate are a reconstruction",
        counted,
        lambda seed: CompletionPruning(seed=seed),
    ),
}
"""Measured on 16 rollouts of every prompt, m = 4."""

METHODS = PLANNERS | SELECTORS
