"""Which objectives stand together, beside which planner and selector; what cannot is refused with the reason."""

from __future__ import annotations

from allotment.errors import ConfigError
from allotment.lab.config import TrainConfig
from allotment.learning.objective import ObjectiveEntry, Place
from allotment.planning.making import parameters
from allotment.registry import OBJECTIVES, PLANNERS, SELECTORS

_PLACES: dict[Place, str] = {"advantages": "advantages", "loss": "the loss of a token", "reward": "the reward"}


def declared(config: TrainConfig, place: Place | None = None) -> dict[str, ObjectiveEntry]:
    """The objectives of a configuration by name, in its order; those that fill ``place`` if given."""
    entries = {name: OBJECTIVES[name] for name in config.objective}
    return {name: entry for name, entry in entries.items() if place in (None, entry.place)}


def trains_on_preferences(config: TrainConfig) -> bool:
    """Whether the loss is one of pairs: that of an objective, or the one a learnt reward brings."""
    if any(entry.preferences for entry in declared(config, "loss").values()):
        return True
    brings = [name for name, entry in declared(config, "reward").items() if entry.preferences]
    own = config.objective_settings.get(brings[0], {}) if brings else {}
    return bool(brings) and not declared(config, "loss") and own.get("train", "preference") == "preference"


def check_combination(config: TrainConfig) -> None:
    """Refuse, with the reason, objectives that fill one place or contradict each other, the planner or the selector."""
    for place, what in _PLACES.items():
        if len(both := [name for name in config.objective if OBJECTIVES[name].place == place]) > 1:
            raise refused(config, f"{' and '.join(both)} both say {what}", "choose one of them")
    advantages = list(declared(config, "advantages"))
    judges, gates = list(declared(config, "reward")), list(declared(config, "gate"))
    combined = [name for name in advantages if OBJECTIVES[name].make is not None]
    is_preference = trains_on_preferences(config)
    whole = [name for name, entry in declared(config).items() if entry.whole] or judges * is_preference
    for name in whole:
        if others := gates + combined:
            reason = f"{name}'s loss is of whole trajectories, {others[0]} is made for policy gradients"
            raise refused(config, reason, "drop one")
        if config.aggregation == "token_mean":
            reason = f"{name}'s loss is of whole trajectories, token_mean divides it by tokens"
            raise refused(config, reason, "use prompt_mean")
    if is_preference and advantages:
        reason = f"preferences are made of rewards, not of {advantages[0]}'s advantages"
        raise refused(config, reason, "drop one")
    needs = None if config.select is None else SELECTORS[config.select].needs
    if is_preference and needs is not None and needs.weighs_single:
        reason = f"{config.select} weighs single rollouts, a preference is of two"
        raise refused(config, reason, "leave the selector out")
    several = [n for n, e in declared(config, "advantages").items() if e.make and "rewards" in parameters(e.make)]
    if judges and (several or config.rewards != ("correctness",)):
        fix = f"leave {' and '.join([*several, '--rewards'])} out"
        raise refused(config, f"{judges[0]} says itself what the reward is", fix)
    _check_beside_planner(config, is_preference)
    others = [name for name, entry in declared(config).items() if entry.place != "advantages"]
    if needs is not None and needs.looks_back and (config.actor != "current" or others):
        raise refused(config, "rollouts of earlier steps have other old policies", "leave the objective out")


def _check_beside_planner(config: TrainConfig, is_preference: bool) -> None:
    """Refuse other advantages or rewards where the planner's method brings its own."""
    planner, contract = config.planner, PLANNERS[config.planner].contract
    believes = contract.baselines or config.priced == "shrinkage"
    brings = frozenset() if contract.selects is None else contract.selects.brings
    judges, entries = list(declared(config, "reward")), declared(config)
    others = [n for n, e in entries.items() if (e.place == "advantages" and n != config.priced) or e.whole]
    if contract.own_advantages is not None:
        others = others or judges * is_preference
        if others:
            raise refused(config, f"the loss of a second look has its own advantages, not {others[0]}'s", "use vip")
    if ("advantages" in brings or believes) and others:
        raise refused(config, f"{planner} has its own advantages, not {others[0]}'s", "use another planner")
    if believes and (is_preference or judges or config.rewards != ("correctness",)):
        reason = "the planner's baselines are of correctness and beside a policy gradient"
        raise refused(config, reason, "use estimator rloo and another planner")
    if "success_probability" in PLANNERS[planner].needs and judges:
        raise refused(config, f"{planner} knows the verifier's success, not {judges[0]}'s", "use another planner")
    if not brings:
        return
    if judges:
        raise refused(config, f"{planner} and {judges[0]} both say what the rewards are", "use another planner")
    combines = any(entry.make is not None for entry in declared(config, "advantages").values())
    if combines or config.rewards != ("correctness",):
        raise refused(config, f"{planner} says itself what the rewards are", "use another planner")


def refused(config: TrainConfig, reason: str, fix: str) -> ConfigError:
    """The error that says what stands against a combination."""
    places: dict[str, list[str]] = {}
    for name, entry in OBJECTIVES:
        places.setdefault(entry.place, []).append(name)
    *single, gates = (places[place] for place in ("advantages", "loss", "reward", "gate"))
    return ConfigError(
        f"these cannot be combined: {reason}",
        got=f"objective {' '.join(config.objective) or 'of the estimator'}, planner {config.planner}, "
        f"select {config.select}",
        allowed="; ".join(f"one of {', '.join(names)}" for names in single) + f"; {' and '.join(gates)} beside them",
        fix=fix,
    )
