"""Planners by name, for command lines and configuration files."""

from __future__ import annotations

from typing import Any, Literal, get_args

from allotment.errors import ConfigError
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
from allotment.planning.base import Planner
from allotment.planning.baselines import InverseAccuracy, InverseVariance, Uniform
from allotment.planning.vip import VIP, RidgeVIP

NamedPlanner = Literal[
    "vip",
    "vip-moments",
    "vip-paper",
    "uniform",
    "inverse-accuracy",
    "inverse-variance",
    "ridge",
    "coba-rl",
    "knapsack",
    "gvm",
]
NAMES: tuple[NamedPlanner, ...] = get_args(NamedPlanner)
"""Planners that spend their budget exactly, in one round, and train on all of it."""


def make_planner(name: str, **settings: Any) -> Planner:
    """The planner of that name.

    Args:
        name: one of :data:`NAMES`, or of the methods in ``docs/methods.md``.
        settings: what its constructor takes. ``embeddings``, ``ids`` and ``features`` may be given to all; a planner
            that makes no use of them passes over them.

    Raises:
        ConfigError: there is no planner of that name, it lacks embeddings, or it does not know a setting.
        InvalidInputError: a setting is not allowed.
    """
    constructors: dict[str, Any] = {
        "vip": VIP,
        "vip-moments": lambda **given: VIP(**given, price="gradient_moments"),
        "vip-paper": VIP.paper,
        "ridge": RidgeVIP,
        "uniform": Uniform,
        "inverse-accuracy": InverseAccuracy,
        "inverse-variance": InverseVariance,
        "coba-rl": CoBARL,
        "knapsack": Knapsack,
        "gvm": GVM,
        "dynamic-pruning": DynamicPruning,
        "optpo": OptPO,
        "reinforce-ada": ReinforceAda,
        "reinforce-ada-est": ReinforceAdaEst,
        "dapo": DAPO,
        "greso": GRESO,
        "mopps": MoPPS,
    }
    if name not in constructors:
        raise ConfigError("unknown planner", got=repr(name), allowed=", ".join(constructors), fix="choose one of them")
    takes = {"vip": _ABOUT, "vip-moments": _ABOUT, "vip-paper": _ABOUT[:2], "ridge": _ABOUT[:2]}.get(name, ())
    if name in _NEED_EMBEDDINGS and settings.get("embeddings") is None:
        raise ConfigError(
            f"the planner {name!r} predicts from embeddings of the prompts",
            got="no embeddings",
            allowed="an embedding of every prompt",
            fix="give embeddings, or use 'vip', which learns from each prompt's own record too",
        )
    try:
        return constructors[name](**{k: v for k, v in settings.items() if k not in _ABOUT or k in takes})  # type: ignore[no-any-return]
    except TypeError as error:
        raise ConfigError(
            f"the planner {name!r} cannot be made with these settings",
            got=error,
            allowed="the arguments of its class in allotment.planning",
            fix="correct the setting's name",
        ) from error


_ABOUT = ("embeddings", "ids", "features")
_NEED_EMBEDDINGS = ("vip-paper", "ridge")
