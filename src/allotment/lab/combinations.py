"""Which objectives stand together, beside which planner and selector; what cannot is refused with the reason."""

from __future__ import annotations

from allotment.config import ObjectiveName, TrainConfig
from allotment.errors import ConfigError
from allotment.learning import AdvantageName

ADVANTAGES: dict[ObjectiveName, AdvantageName] = {"rloo": "rloo", "dr-grpo": "dr_grpo", "grpo": "grpo"}
LOSSES: tuple[ObjectiveName, ...] = ("divergence-ppo", "flowrl", "on-policy-dpo")
WHOLE: tuple[ObjectiveName, ...] = ("flowrl", "on-policy-dpo")
"""Losses of whole trajectories."""
GATES: tuple[ObjectiveName, ...] = ("jackpot", "capo")
JUDGES: tuple[ObjectiveName, ...] = ("representation-reward", "ml-irl")
"""Learnt rewards in the verifier's place."""


def trains_on_preferences(config: TrainConfig) -> bool:
    """Whether the loss is one of pairs: by name, or the representation-based reward's own."""
    names = config.objective
    if "on-policy-dpo" in names:
        return True
    own = config.objective_settings.get("representation-reward", {})
    has_other = any(name in LOSSES for name in names) or own.get("train", "preference") != "preference"
    return "representation-reward" in names and not has_other


def check_combination(config: TrainConfig) -> None:
    """Refuse what cannot stand together, with the reason."""
    names = config.objective
    places = {"advantages": (*ADVANTAGES, "gdpo"), "the loss of a token": LOSSES, "the reward": JUDGES}
    for place, allowed in places.items():
        both = [name for name in names if name in allowed]
        if len(both) > 1:
            raise refused(config, f"{' and '.join(both)} both say {place}", "choose one of them")
    is_preference = trains_on_preferences(config)
    whole_names = [*(name for name in names if name in WHOLE)]
    for whole in whole_names or (["representation-reward"] if is_preference else []):
        if others := [n for n in names if n in GATES or n == "gdpo"]:
            reason = f"{whole}'s loss is of whole trajectories, {others[0]} is made for policy gradients"
            raise refused(config, reason, "drop one")
        if config.aggregation == "token_mean":
            reason = f"{whole}'s loss is of whole trajectories, token_mean divides it by tokens"
            raise refused(config, reason, "use prompt_mean")
    if is_preference and (others := [n for n in names if n in ADVANTAGES]):
        raise refused(config, f"preferences are made of rewards, not of {others[0]}'s advantages", "drop one")
    if is_preference and config.select == "completion-pruning":
        reason = "completion-pruning weighs single rollouts, a preference is of two"
        raise refused(config, reason, "leave the selector out")
    if (judges := [n for n in names if n in JUDGES]) and ("gdpo" in names or config.rewards != ("correctness",)):
        raise refused(config, f"{judges[0]} says itself what the reward is", "leave gdpo and --rewards out")
    _check_beside_planner(config)
    if config.select == "contextual-bandit" and (config.actor != "current" or {*names} & {*LOSSES, *GATES, *JUDGES}):
        raise refused(config, "rollouts of earlier steps have other old policies", "leave the objective out")


def _check_beside_planner(config: TrainConfig) -> None:
    """Refuse other advantages or rewards where the planner's method brings its own."""
    names, planner = config.objective, config.planner
    others = [n for n in names if n in (*ADVANTAGES, "gdpo", *WHOLE) and n != config.estimator.replace("_", "-")]
    if planner == "vip-second-look" and trains_on_preferences(config):
        others = others or ["representation-reward"]
    if planner == "vip-second-look" and others:
        raise refused(config, f"the loss of a second look has its own advantages, not {others[0]}'s", "use vip")
    if planner in ("reinforce-ada", "reinforce-ada-est") and others:
        raise refused(config, f"{planner} has its own advantages, not {others[0]}'s", "use another planner")
    judges = [name for name in names if name in JUDGES]
    if planner == "oracle" and judges:
        raise refused(config, f"oracle knows the verifier's success, not {judges[0]}'s", "use another planner")
    if planner not in ("optpo", "reinforce-ada", "reinforce-ada-est"):
        return
    if judges:
        raise refused(config, f"{planner} and {judges[0]} both say what the rewards are", "use another planner")
    if "gdpo" in names or config.rewards != ("correctness",):
        raise refused(config, f"{planner} says itself what the rewards are", "use another planner")


def refused(config: TrainConfig, reason: str, fix: str) -> ConfigError:
    """The error that says what stands against a combination."""
    return ConfigError(
        f"these cannot be combined: {reason}",
        got=f"objective {' '.join(config.objective) or 'of the estimator'}, planner {config.planner}, "
        f"select {config.select}",
        allowed="one of grpo, dr-grpo, rloo, gdpo; one of divergence-ppo, flowrl, on-policy-dpo; "
        "one of representation-reward, ml-irl; jackpot and capo beside them",
        fix=fix,
    )
