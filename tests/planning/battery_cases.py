"""What the battery runs over: every registered planner and selector with what it declares, and a world that answers.

A method of another package is in the battery as soon as it is registered.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from planning_cases import EMBEDDED, IDS

from allotment.planning import Contract, PlannerEntry, make_planner
from allotment.planning.making import parameters
from allotment.prediction import DiscountedCounts
from allotment.registry import PLANNERS, SELECTORS
from allotment.selection import SelectorEntry, make_selector

BUDGET, LOWER, UPPER = 6 * len(IDS) + 3, 3, 10
"""A few are left over when it is split evenly."""
DEFAULTS: dict[str, Any] = {"budget": BUDGET, "bounds": (LOWER, UPPER)}
CHANCES = dict(zip(IDS, np.linspace(0.05, 0.95, len(IDS)), strict=True))
"""Success probability of each prompt in the usual world; 1/2 for others."""


def chances(ids):
    """[Q] as an oracle is told them."""
    return np.array([CHANCES.get(prompt, 0.5) for prompt in ids])


OFFERS: dict[str, dict[str, Any]] = {"embeddings": EMBEDDED, "success_probability": {"success_probability": chances}}
"""What is known of the prompts, by what a planner may need."""
OFFERED = {name: value for offer in OFFERS.values() for name, value in offer.items()}


@dataclass(frozen=True)
class Case:
    """A planner, and what its method promises of a step of Q prompts with budget C."""

    constructor: Callable[..., Any]
    settings: dict[str, Any]
    contract: Contract
    """What it declares."""
    least: float
    """Fewest rollouts of a step, as a share of C."""
    most: float
    """Most rollouts of a step, as a share of C."""
    is_embedded: bool = False
    """Whether it knows only the prompts whose embeddings it was given."""
    trains_on_all: bool = True
    """Whether every rollout it asks for is trained on."""

    @property
    def budget(self):
        return self.settings["budget"]

    @property
    def bounds(self):
        """Least and most rollouts of a prompt that gets any, over all rounds."""
        return self.settings["bounds"]

    @property
    def drops(self):
        """Whether a prompt may get no rollouts at all."""
        return self.contract.leaves_out

    @property
    def has_rounds(self):
        """Whether a step may have further rounds."""
        return self.contract.several_rounds

    def make(self, **settings):
        return self.constructor(**{**self.settings, **settings})


MANY_ROUNDS = {"bounds": (3, 28)}
FOUR = {"trained_prompts": 4, "budget": 4 * 6 + 2}
"""Of all that are asked, so many get rollouts, or are trained on; where that can be set."""
SETTINGS: dict[str, dict[str, Any]] = {"reinforce-ada": MANY_ROUNDS, "optpo": MANY_ROUNDS}
"""Settings other than the usual ones."""
STRONGER: dict[str, dict[str, Any]] = {
    "vip-tokens": {"least": 0.5, "most": 1.2},
    "dynamic-pruning": {"least": 1 / len(IDS)},
    "dapo": {"least": 1.0, "most": 3},
    "greso": {"least": 0.2, "most": 3},
    "reinforce-ada": {"most": 4},
    "optpo": {"least": 0.4, "trains_on_all": True},
    "reinforce-ada-est": {"trains_on_all": True},
}
"""What a method keeps here beyond its contract: contracts hold for all settings and any batch."""


def case_of(name: str, entry: PlannerEntry, *, settings=None, stronger=None) -> Case:
    """The case of a registered planner, made by name from what it needs; its promises are those of its contract."""
    offered = {key: value for need in entry.needs for key, value in OFFERS[need].items()}
    chosen = FOUR if "trained_prompts" in parameters(entry.make) else {}
    least, most = entry.contract.spends
    promises = {"least": least, "most": most, "trains_on_all": entry.contract.selects is None}
    narrower = {**STRONGER.get(name, {}), **(stronger or {})}
    assert least <= narrower.get("least", least) <= narrower.get("most", most) <= most
    return Case(
        partial(make_planner, name, offered=offered),
        {**DEFAULTS, **chosen, **SETTINGS.get(name, {}), **(settings or {})},
        entry.contract,
        is_embedded="embeddings" in entry.needs,
        **{**promises, **narrower},
    )


def cases() -> dict[str, Case]:
    """One for every planner that is registered now."""
    return {name: case_of(name, entry) for name, entry in PLANNERS}


def variant(name: str, *, stronger=None, **settings) -> Case:
    """A registered planner with other settings."""
    return case_of(name, PLANNERS[name], settings=settings, stronger=stronger)


def reinforce_ada_with_prior(**settings):
    return make_planner("reinforce-ada", predictor=DiscountedCounts(), **settings)


CASES: dict[str, Case] = cases() | {
    "reinforce-ada-positive": variant("reinforce-ada", exit="positive"),
    "reinforce-ada-prior": replace(variant("reinforce-ada"), constructor=reinforce_ada_with_prior),
    "optpo-long": variant("optpo", budget=24 * len(IDS), votes=2, stronger={"least": 0.1}),
}


SELECTOR_SETTINGS: dict[str, dict[str, Any]] = {
    "pods": {"keep": 3},
    "max-reward": {"keep": 3},
    "random": {"keep": 0.5},
}
"""Settings other than the usual ones."""


@dataclass(frozen=True)
class SelectorCase:
    """A registered selector."""

    name: str
    entry: SelectorEntry
    settings: dict[str, Any]

    def __call__(self, seed):
        """A new one."""
        return make_selector(self.entry, self.name, seed=seed, **self.settings)


def selector_cases() -> dict[str, SelectorCase]:
    """One for every selector that is registered now."""
    return {name: SelectorCase(name, entry, SELECTOR_SETTINGS.get(name, {})) for name, entry in SELECTORS}


SELECTOR_CASES: dict[str, SelectorCase] = selector_cases() | {
    "contextual-bandit-global": SelectorCase(
        "contextual-bandit", SELECTORS["contextual-bandit"], {"mode": "global", "window": 3}
    ),
}
MAY_EMPTY_GROUPS = ("contextual-bandit-global",)
"""Selectors that choose among all rollouts at once."""


class World:
    """Rewards as a function of prompt, step and place in the step; another world from ``fork`` = (step, round) on."""

    def __init__(self, probability=None, fork=(10**9, 0)):
        self.probability = CHANCES if probability is None else probability
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
