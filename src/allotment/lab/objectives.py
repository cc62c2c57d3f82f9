"""Which objective a run of the lab has: its places filled by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from allotment.config import ObjectiveName, TrainConfig
from allotment.errors import ConfigError
from allotment.lab.combinations import ADVANTAGES, LOSSES, check_combination, refused, trains_on_preferences
from allotment.lab.generation import Lab
from allotment.learning import AdvantageName
from allotment.learning.record import Need, TokenGate, TokenObjective
from allotment.learning.surrogate import Surrogate
from allotment.methods.objectives.gdpo import GDPO

_PREFERENCE = {"beta": 0.15, "pairs": "extreme", "alpha": 7.5}
"""How a representation-based reward trains; the first and the last can be set."""


@dataclass(frozen=True)
class Objective:
    """What is learnt from the rollouts: advantages, the loss of a token, gates on tokens."""

    advantage: AdvantageName
    """Estimator within groups; also where ``gdpo`` combines several rewards."""
    gdpo: GDPO | None
    loss: TokenObjective
    gates: Mapping[str, TokenGate]

    @property
    def needs(self) -> frozenset[Need]:
        """All that the parts ask of a record."""
        return frozenset(self.loss.needs).union(*(gate.needs for gate in self.gates.values()))

    @property
    def needs_every_row(self) -> bool:
        """Whether rollouts without advantage have a gradient too."""
        return bool(getattr(self.loss, "needs_every_row", False))

    @property
    def module(self) -> nn.Module | None:
        """What is trained beside the policy."""
        return getattr(self.loss, "module", None)


def make_objective(config: TrainConfig, lab: Lab) -> Objective:
    """The objective of a configuration; an empty one is the policy gradient of its estimator.

    Raises:
        ConfigError: two names fill one place, cannot stand beside each other or beside the planner, or a setting is
            of none of them.
    """
    names = config.objective
    settings = _settings(config)
    check_combination(config)
    advantage: AdvantageName = next((ADVANTAGES[n] for n in names if n in ADVANTAGES), _default_advantage(config))
    loss: TokenObjective = made("surrogate", Surrogate, settings)
    if "divergence-ppo" in names:
        from allotment.methods.objectives.divergence import DivergencePPO

        loss = made("divergence-ppo", DivergencePPO, settings)
    if "flowrl" in names:
        from allotment.methods.objectives.flowrl import FlowRL

        loss = made("flowrl", FlowRL, settings, width=lab.policy.size.width, seed=config.seed)
    if "on-policy-dpo" in names:
        from allotment.methods.objectives.preference import Preference

        loss = made("on-policy-dpo", Preference, settings)
    elif trains_on_preferences(config):
        from allotment.methods.objectives.preference import Preference

        own = settings.get("representation-reward", {})
        chosen = {name: own.get(name, value) for name, value in _PREFERENCE.items()}
        loss = made("representation-reward", Preference, {"representation-reward": chosen})
    gates: dict[str, TokenGate] = {}
    if "jackpot" in names:
        from allotment.methods.objectives.jackpot import Jackpot

        gates["jackpot"] = made("jackpot", Jackpot, settings)
        if getattr(loss, "anchor", "old") == "rollout":
            reason = "divergence-ppo and jackpot both weigh by the ratio to the rollout policy"
            raise refused(config, reason, 'give divergence-ppo the setting "anchor": "old"')
    if "capo" in names:
        from allotment.methods.objectives.capo import CAPO

        gates["capo"] = made("capo", CAPO, settings)
    gdpo: GDPO | None = made("gdpo", GDPO, settings, rewards=config.rewards) if "gdpo" in names else None
    return Objective(advantage, gdpo, loss, gates)


def _default_advantage(config: TrainConfig) -> AdvantageName:
    """FlowRL's reward is the standardised one; preferences are made of differences of rewards, as they are."""
    if trains_on_preferences(config):
        return "dr_grpo"
    return "grpo" if "flowrl" in config.objective else config.estimator


def judge_settings(config: TrainConfig, name: ObjectiveName) -> dict[str, Any]:
    """The settings of a learnt reward, without those of the loss that it brings.

    Raises:
        ConfigError: ``train`` has another value.
    """
    settings = dict(_settings(config).get(name, {}))
    if name == "representation-reward":
        train = settings.pop("train", "preference")
        if train not in ("preference", "policy-gradient"):
            raise ConfigError(
                "a representation-based reward cannot train so",
                got=repr(train),
                allowed="preference, policy-gradient",
                fix="choose one of them",
            )
        settings = {key: value for key, value in settings.items() if key not in ("beta", "alpha")}
    return settings


def _settings(config: TrainConfig) -> dict[str, dict[str, Any]]:
    settings = config.objective_settings
    has_loss = any(name in LOSSES for name in config.objective)
    allowed = [*config.objective, *([] if has_loss else ["surrogate"])]
    for name, values in settings.items():
        if name not in allowed or not isinstance(values, dict):
            raise ConfigError(
                "objective_settings has an entry that is of no objective of the run",
                got=f"{name!r}: {values!r}",
                allowed=f"a table of settings for each of: {', '.join(allowed)}",
                fix='such as \'{"divergence-ppo": {"delta": 0.15}}\'',
            )
    return settings


def made(name: str, constructor: Any, settings: Mapping[str, dict[str, Any]], **given: Any) -> Any:
    """A part of an objective with its settings.

    Raises:
        ConfigError: it does not know one of them.
    """
    try:
        return constructor(**given, **settings.get(name, {}))
    except (TypeError, AttributeError) as error:
        raise ConfigError(
            f"the objective {name!r} cannot be made with these settings",
            got=error,
            allowed=f"the arguments of {constructor.__module__}.{constructor.__name__}",
            fix="correct the setting's name",
        ) from error
