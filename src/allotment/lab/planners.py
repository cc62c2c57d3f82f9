"""The planners that the lab's command line names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from scipy.special import logit

from allotment.config import CHOOSE_PROMPTS, MethodName, PlannerName, TrainConfig
from allotment.errors import ConfigError
from allotment.lab.embeddings import prompt_embeddings
from allotment.lab.generation import Lab
from allotment.planning import VIP, Planner
from allotment.planning.named import make_planner as named_planner
from allotment.prediction import (
    DiscountedCounts,
    HierarchicalRegression,
    LengthPredictor,
    Predictor,
    default_predictor,
    text_features,
)
from allotment.selection import ImportanceWeights, Selector
from allotment.selection.chain import Chain
from allotment.selection.named import make_selector
from allotment.state import State
from allotment.tasks.mixture import Problem
from allotment.types import Posterior, PromptIds

NAMES: tuple[PlannerName, ...] = get_args(PlannerName)
"""Planners whose counts are a function of what they have observed."""
METHODS: tuple[MethodName, ...] = get_args(MethodName)
"""Planners that also say how their rollouts are trained on, go in rounds, or choose among the prompts."""


class Oracle:
    """A predictor that knows: the exact success probability under the current policy."""

    def __init__(self, lab: Lab, problems: Sequence[Problem]) -> None:
        self._lab, self._problems = lab, {p.id: p for p in problems}

    def predict(self, ids: PromptIds) -> Posterior:
        """The exact success probability of each prompt, without uncertainty; [Q]."""
        p_Q = self._lab.success_probability([self._problems[str(i)] for i in ids])
        mean_Q = logit(np.clip(p_Q, 1e-9, 1 - 1e-9))
        return Posterior(mean_Q, np.zeros_like(mean_Q))

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """Nothing to learn."""

    def state_dict(self) -> State:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Nothing to restore."""


def make_planner(
    name: str,
    lab: Lab,
    problems: Sequence[Problem],
    *,
    budget: int,
    bounds: tuple[int, int],
    estimator: str = "rloo",
    tokens_per_rollout: float = 1.0,
    seed: int = 0,
    prompts: int | None = None,
    **method: Any,
) -> Planner:
    """The planner of that name over ``problems``.

    Args:
        name: one of :data:`NAMES` or :data:`METHODS`, or ``"vip-second-look"``, ``"vip-tokens"``.
        lab: whose policy the oracle looks into.
        problems: every prompt that will be asked.
        budget: rollouts of a step.
        bounds: least and most rollouts of a prompt.
        estimator: ``"rloo"`` or ``"dr_grpo"``.
        tokens_per_rollout: for a token budget, what a rollout is expected to take before any is seen.
        seed: breaks ties.
        prompts: how many of the prompts asked get rollouts, for planners that choose among them.
        method: further settings of the planner's class.

    Raises:
        ConfigError: there is no planner of that name, or it does not know a setting.
    """
    settings: dict[str, Any] = {"budget": budget, "bounds": bounds, "estimator": estimator}
    ids = [p.id for p in problems]
    questions = [p.question for p in problems]

    def described() -> dict[str, Any]:
        return {"embeddings": prompt_embeddings(questions), "ids": ids, "features": text_features(questions)}

    if isinstance(method.get("predictor"), str):
        method["predictor"] = _predictor_named(method["predictor"], described())
    match name:
        case "vip-second-look":
            return VIP(**settings, **described(), rounds=2, seed=seed, **method)
        case "vip-tokens":
            model = HierarchicalRegression(**described())
            lengths = LengthPredictor(typical_length=tokens_per_rollout, model=model)
            tokens = int(budget * tokens_per_rollout)
            return VIP(
                **{**settings, "budget": tokens}, **described(), unit="tokens", lengths=lengths, seed=seed, **method
            )
        case "oracle":
            return VIP(**settings, predictor=Oracle(lab, problems), seed=seed, **method)
        case _ if name in CHOOSE_PROMPTS:
            return named_planner(name, **settings, seed=seed, prompts=prompts, **method)
        case _ if name in NAMES or name in METHODS:
            return named_planner(name, **settings, **described(), seed=seed, **method)
    raise ConfigError(
        "unknown planner",
        got=repr(name),
        allowed=f"{', '.join(NAMES)}, {', '.join(METHODS)}, vip-second-look, vip-tokens",
        fix="choose one of them",
    )


def _predictor_named(name: str, described: dict[str, Any]) -> Predictor:
    """The belief that a planner starts from, where its settings name one."""
    if name == "vip":
        return default_predictor(*described.values())
    if name == "counts":
        return DiscountedCounts()
    raise ConfigError("unknown predictor", got=repr(name), allowed="vip, counts", fix="choose one, or leave it out")


def make_training_selector(planner: Planner, config: TrainConfig) -> Selector | None:
    """What chooses among a step's rollouts: the planner's own way, the one of the configuration, or both in turn.

    Raises:
        ConfigError: the two cannot be combined, or a setting is not known.
    """
    own: Selector | None = getattr(planner, "selector", None)
    if config.select is None:
        return own
    chosen = make_selector(config.select, **{"seed": config.seed, **config.select_settings})
    if config.planner == "vip-second-look":
        reason = "the loss of a step in two rounds takes every rollout of both"
    elif own is None:
        return chosen
    elif isinstance(own, ImportanceWeights) and chosen.window == 1:
        return Chain(own, chosen)
    else:
        reason = f"{config.planner} says itself which rollouts are trained on and how they count"
    raise ConfigError(
        f"--select {config.select} cannot be combined with --planner {config.planner}: {reason}",
        got=f"planner {config.planner}, select {config.select}",
        allowed="a planner that trains on all it generates, such as vip or uniform",
        fix="leave --select out, or choose another planner",
    )
