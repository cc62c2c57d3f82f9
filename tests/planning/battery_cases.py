"""What the battery runs over: every planner with the budget its method keeps, and a world that answers its plans."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from planning_cases import EMBEDDED, IDS

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
from allotment.planning import InverseAccuracy, InverseVariance, RewardVarianceVIP, RidgeVIP
from allotment.prediction import DiscountedCounts, LengthPredictor
from allotment.selection import ImportanceWeights

BUDGET, LOWER, UPPER = 6 * len(IDS) + 3, 3, 10
"""A few are left over when it is split evenly."""
DEFAULTS: dict[str, Any] = {"budget": BUDGET, "bounds": (LOWER, UPPER)}


@dataclass(frozen=True)
class Case:
    """A planner, and what its method promises of a step of Q prompts with budget C."""

    constructor: Any
    settings: dict[str, Any]
    least: float = 1.0
    """Fewest rollouts of a step, as a share of C."""
    most: float = 1.0
    """Most rollouts of a step, as a share of C."""
    drops: bool = False
    """Whether a prompt may get no rollouts at all."""
    bounds: tuple[int, int] = (LOWER, UPPER)
    """Least and most rollouts of a prompt that gets any, over all rounds."""
    is_embedded: bool = False
    """Whether it knows only the prompts whose embeddings it was given."""
    trains_on_all: bool = True
    """Whether every rollout it asks for is trained on."""

    @property
    def budget(self):
        return self.settings.get("budget", BUDGET)

    def make(self, **settings):
        return self.constructor(**{**DEFAULTS, **self.settings, **settings})


def tokens(**settings):
    """The budget in tokens, of rollouts of one token; kept in expectation."""
    return VIP(**settings, unit="tokens", lengths=LengthPredictor(typical_length=1.0))


def reinforce_ada_with_prior(**settings):
    return ReinforceAda(**settings, predictor=DiscountedCounts())


FOUR = {"prompts": 4, "budget": 4 * 6 + 2}
"""Of all that are asked, so many get rollouts, or are trained on."""
MANY_ROUNDS = {"bounds": (3, 28)}
IN_ROUNDS: dict[str, Any] = {"most": 4, "bounds": (3, 28), "trains_on_all": False}
CASES: dict[str, Case] = {
    "vip": Case(VIP, {}),
    "vip-second-look": Case(VIP, {"rounds": 2}),
    "vip-tokens": Case(tokens, {}, least=0.5, most=1.2),
    "vip-moments": Case(VIP, {"price": "gradient_moments"}),
    "vip-paper": Case(VIP.paper, EMBEDDED, is_embedded=True),
    "ridge": Case(RidgeVIP, EMBEDDED, is_embedded=True),
    "reward-variance": Case(RewardVarianceVIP, EMBEDDED, is_embedded=True),
    "uniform": Case(Uniform, {}),
    "inverse-accuracy": Case(InverseAccuracy, {}),
    "inverse-variance": Case(InverseVariance, {}),
    "coba-rl": Case(CoBARL, {}),
    "dynamic-pruning": Case(DynamicPruning, {}, least=1 / len(IDS), drops=True),
    "knapsack": Case(Knapsack, {}),
    "gvm": Case(GVM, {}),
    "mopps": Case(MoPPS, FOUR, drops=True),
    "dapo": Case(DAPO, FOUR, most=3, drops=True, trains_on_all=False),
    "greso": Case(GRESO, FOUR, least=0.2, most=3, drops=True, trains_on_all=False),
    "reinforce-ada": Case(ReinforceAda, MANY_ROUNDS, **IN_ROUNDS),
    "reinforce-ada-positive": Case(ReinforceAda, {**MANY_ROUNDS, "exit": "positive"}, **IN_ROUNDS),
    "reinforce-ada-prior": Case(reinforce_ada_with_prior, MANY_ROUNDS, **IN_ROUNDS),
    "reinforce-ada-est": Case(ReinforceAdaEst, {}),
    "optpo": Case(OptPO, MANY_ROUNDS, least=0.4, bounds=(3, 28)),
    "optpo-long": Case(OptPO, {**MANY_ROUNDS, "budget": 24 * len(IDS), "votes": 2}, least=0.1, bounds=(3, 28)),
}


SELECTORS: dict[str, Any] = {
    "importance": lambda seed: ImportanceWeights(),
    "completion-pruning": lambda seed: CompletionPruning(seed=seed),
    "contextual-bandit": lambda seed: ContextualBandit(seed=seed),
    "contextual-bandit-global": lambda seed: ContextualBandit(mode="global", window=3, seed=seed),
    "pods": lambda seed: PODS(keep=3, seed=seed),
    "max-reward": lambda seed: MaxReward(keep=3, seed=seed),
    "random": lambda seed: RandomSubset(keep=0.5, seed=seed),
}
"""From a seed."""
MAY_EMPTY_GROUPS = ("contextual-bandit-global",)
"""Selectors that choose among all rollouts at once."""


class World:
    """Rewards as a function of prompt, step and place in the step; another world from ``fork`` = (step, round) on."""

    def __init__(self, probability=None, fork=(10**9, 0)):
        shares = np.linspace(0.05, 0.95, len(IDS))
        self.probability = dict(zip(IDS, shares, strict=True)) if probability is None else probability
        self.fork = fork
        self._places: dict[Any, int] = {}

    def answer(self, plan):
        """Keyword arguments of ``tell``, groups one after another in plan order; the same at any order of prompts."""
        salt = "after" if (plan.step, plan.round) >= self.fork else "before"
        draws = [(self._draw(salt, plan.step, prompt), self._success(prompt)) for prompt in plan.group_ids()]
        return {
            "rewards": [float(u < p) for u, p in draws],
            "group_ids": plan.group_ids(),
            "lengths": [1.0] * len(draws),
            "answers": ["right" if u < p else f"wrong {int(1e6 * u) % 3}" for u, p in draws],
        }

    def _success(self, prompt):
        return self.probability if isinstance(self.probability, float) else self.probability.get(prompt, 0.5)

    def _draw(self, salt, step, prompt):
        key = (step, prompt)
        place = self._places[key] = self._places.get(key, -1) + 1
        digest = hashlib.blake2b(f"{salt}/{step}/{prompt!r}/{place}".encode(errors="replace"), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64


def rows(told, chosen):
    """Some rows of what :meth:`World.answer` gave, in that order."""
    return {name: [column[i] for i in chosen] for name, column in told.items()}


def one_step(planner, ids, world, **told):
    """The plans of all rounds of a step."""
    plans = [planner.ask(ids)]
    planner.tell(plans[-1], **world.answer(plans[-1]), **told)
    while not planner.done:
        plans.append(planner.ask(ids))
        planner.tell(plans[-1], **world.answer(plans[-1]), **told)
        assert len(plans) < 200, "a step that does not end"
    return plans


def total_counts(plans):
    """Rollouts of each prompt in a step, by id."""
    counts = dict.fromkeys(plans[0].prompt_ids, 0)
    for plan in plans:
        for prompt, n in zip(plan.prompt_ids, plan.counts.tolist(), strict=True):
            counts[prompt] += n
    return counts
