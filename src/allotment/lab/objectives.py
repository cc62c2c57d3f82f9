"""Which objective a run of the lab has: its places filled by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch import Tensor, nn

from allotment.errors import ConfigError
from allotment.lab.combinations import check_combination, declared, refused, trains_on_preferences
from allotment.lab.config import TrainConfig
from allotment.lab.generation import Lab
from allotment.learning import AdvantageName
from allotment.learning.objective import Place
from allotment.learning.record import Need, Surrogate, TokenGate, TokenObjective
from allotment.planning.making import parameters
from allotment.registry import OBJECTIVES

_PREFERENCE = {"beta": 0.15, "pairs": "extreme", "alpha": 7.5}
"""How a representation-based reward trains; the first and the last can be set."""


class Combined(Protocol):
    """Advantages from named rewards, each [N], of all groups of a batch together: GDPO, JSPO, KRPO."""

    def advantages(self, rewards: Mapping[str, Tensor], group_ids_N: Tensor, lengths_N: Tensor | None = None) -> Tensor:
        """[N] advantages."""
        ...


@dataclass(frozen=True)
class Objective:
    """What is learnt from the rollouts: advantages, the loss of a token, gates on tokens."""

    advantage: AdvantageName
    """Estimator within groups; also where :attr:`combined` has the advantages."""
    combined: Combined | None
    """Advantages of another form than the estimator's; None for the estimator's."""
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
    """The objective of a configuration; an empty one is the policy gradient of its estimator. Raises ConfigError:
    two names fill one place, cannot stand beside each other or beside the planner, or a setting is of none of them.
    """
    settings = _settings(config)
    check_combination(config)
    offered = {"width": lab.policy.width, "seed": config.seed, "rewards": config.rewards}

    def parts(place: Place) -> dict[str, Any]:
        entries = declared(config, place).items()
        return {name: made(name, e.make, settings, **offered) for name, e in entries if e.make is not None}

    loss = next(iter(parts("loss").values()), None) or _usual_loss(config, settings)
    gates = parts("gate")
    if "jackpot" in gates and getattr(loss, "anchor", "old") == "rollout":
        reason = "divergence-ppo and jackpot both weigh by the ratio to the rollout policy"
        raise refused(config, reason, 'give divergence-ppo the setting "anchor": "old"')
    return Objective(_advantage(config), next(iter(parts("advantages").values()), None), loss, gates)


def _usual_loss(config: TrainConfig, settings: Mapping[str, dict[str, Any]]) -> TokenObjective:
    """Where no objective says the loss: preferences for a learnt reward that trains so, else the clipped surrogate."""
    name, make = "surrogate", cast(Any, Surrogate)
    if trains_on_preferences(config):
        name, make = next(iter(declared(config, "reward"))), OBJECTIVES["on-policy-dpo"].make
        own = settings.get(name, {})
        settings = {name: {key: own.get(key, value) for key, value in _PREFERENCE.items()}}
    return cast(TokenObjective, made(name, make, settings))


def _advantage(config: TrainConfig) -> AdvantageName:
    """The estimator that an objective is, or that its loss is made for; else that of the run.

    FlowRL's reward is the standardised one; preferences are made of differences of rewards, as they are.
    """
    named = [entry.advantage for place in ("advantages", "loss") for entry in declared(config, place).values()]
    usual: AdvantageName = "dr_grpo" if trains_on_preferences(config) else config.group_advantage
    return next((name for name in named if name is not None), usual)


def judge_settings(config: TrainConfig, name: str) -> dict[str, Any]:
    """The settings of a learnt reward, without those of the loss that it brings; ConfigError on another ``train``."""
    settings = dict(_settings(config).get(name, {}))
    if name == "representation-reward":
        train, allowed = settings.pop("train", "preference"), "preference, policy-gradient"
        if train not in allowed.split(", "):
            wrong = "a representation-based reward cannot train so"
            raise ConfigError(wrong, got=repr(train), allowed=allowed, fix="choose one of them")
        settings = {key: value for key, value in settings.items() if key not in ("beta", "alpha")}
    return settings


def _settings(config: TrainConfig) -> dict[str, dict[str, Any]]:
    settings = config.objective_settings
    has_loss = bool(declared(config, "loss"))
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


def made(name: str, make: Any, settings: Mapping[str, dict[str, Any]], **offered: Any) -> Any:
    """A part of an objective from its settings (ConfigError on others), and what it takes of what is offered."""
    own = settings.get(name, {})
    taken = parameters(make)
    try:
        return make(**{key: value for key, value in offered.items() if key in taken}, **own)
    except (TypeError, AttributeError) as error:
        raise ConfigError(
            f"the objective {name!r} cannot be made with these settings",
            got=error,
            allowed=f"the arguments of {make.__module__}.{make.__name__}",
            fix="correct the setting's name",
        ) from error
