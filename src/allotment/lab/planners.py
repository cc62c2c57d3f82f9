"""Planners of the lab: what it offers them, and what chooses among a step's rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from allotment.errors import ConfigError
from allotment.lab.config import CAPABILITY, TrainConfig
from allotment.lab.embeddings import prompt_embeddings, standard_features
from allotment.lab.generation import Lab
from allotment.lab.regime import PRONUNCIATION
from allotment.planning import Planner
from allotment.planning import make_planner as planner_by_name
from allotment.planning.contract import check_planner_name, check_selector_name
from allotment.planning.making import parameters
from allotment.prediction import text_features
from allotment.registry import PLANNERS, SELECTORS
from allotment.selection import Selector, make_selector
from allotment.tasks.mixture import Problem
from allotment.types import FloatArray, PromptId


def make_planner(
    name: str,
    lab: Lab,
    problems: Sequence[Problem],
    *,
    tokens_per_rollout: float = 1.0,
    trained_prompts: int | None = None,
    by_text: bool = False,
    **settings: Any,
) -> Planner:
    """The planner of that name over ``problems``, all prompts that will be asked; ConfigError if there is none, or on a
    setting it does not know.

    ``lab``: whose policy the oracle looks into. ``tokens_per_rollout``: for a token budget, what a rollout is expected
    to take before any is seen. ``trained_prompts``: how many of the prompts asked get rollouts, for planners that
    choose among them. ``by_text``: numbers counted in the texts stand for the embeddings, which take milliseconds a
    prompt; where prompts are words, letters are counted in any case. ``settings``: ``budget``, ``bounds``,
    ``estimator``, ``seed`` and further ones.
    """
    name = check_planner_name(name, CAPABILITY)
    by_id = {p.id: p for p in problems}

    def success_probability(ids: tuple[PromptId, ...]) -> FloatArray:
        return lab.success_probability([by_id[str(i)] for i in ids])

    offered: dict[str, Any] = {"tokens_per_rollout": tokens_per_rollout, "success_probability": success_probability}
    if trained_prompts is not None:
        offered["trained_prompts"] = trained_prompts
    if "embeddings" in parameters(PLANNERS[name].make) or isinstance(settings.get("predictor"), str):
        questions = [p.question for p in problems]
        offered["ids"] = list(by_id)
        are_words = lab.regime.name == PRONUNCIATION.name
        if by_text or are_words:
            offered["embeddings"] = standard_features(tuple(questions), are_words)
        else:
            offered |= {"embeddings": prompt_embeddings(questions), "features": text_features(questions)}
    return planner_by_name(name, offered=offered, **settings)


def make_training_selector(planner: Planner, config: TrainConfig) -> Selector | None:
    """What chooses among a step's rollouts: the planner's own way, or the one of the configuration. Raises
    ConfigError: both are named, or a setting is not known.
    """
    if config.select is None:
        return planner.selector
    if planner.contract.own_advantages is not None:
        reason = "the loss of a step in two rounds takes every rollout of both"
    elif planner.selector is not None:
        reason = f"{config.planner} says itself which rollouts are trained on and how they count"
    elif (planner.contract.weights or planner.contract.baselines) and SELECTORS[config.select].needs.looks_back:
        reason = f"{config.planner} says itself how the prompts of a step count, not those of the steps before"
    else:
        entry = check_selector_name(config.select, CAPABILITY)
        return make_selector(entry, config.select, **{"seed": config.seed, **config.select_settings})
    raise ConfigError(
        f"--select {config.select} cannot be combined with --planner {config.planner}: {reason}",
        got=f"planner {config.planner}, select {config.select}",
        allowed="a planner that trains on all it generates, such as vip or uniform",
        fix="leave --select out, or choose another planner",
    )
