"""From a name, or an object, to a planner and a selector that fit a trainer's batch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from allotment.errors import ConfigError
from allotment.planning import Planner, make_planner
from allotment.planning.contract import Capability, check_planner, check_planner_name, check_selector_name
from allotment.pricing import get_estimator
from allotment.registry import PLANNERS, SELECTORS
from allotment.selection import Selector, make_selector

UPPER, TIMES_MEAN = 32, 4
"""Default upper bound: the larger of the first and the second times the mean."""


@dataclass(frozen=True)
class Sizes:
    """A generation batch."""

    budget: int
    """Rollouts of a batch, over all processes."""
    mean: int
    """Mean rollouts of a prompt that is trained on."""
    prompts: int
    """Prompts that get rollouts, at most."""

    @property
    def terms(self) -> tuple[str, str]:
        """What budget and mean are in the trainer's own settings."""
        return "the rollouts of a batch", "the mean"


def fitted_planner(
    given: object,
    sizes: Sizes,
    trainer: Capability,
    *,
    settings: Mapping[str, Any],
    offered: Mapping[str, Any],
    estimator: str,
    seed: int,
) -> Planner:
    """The planner of a name, with defaults that fit the batch, or the object itself, checked.

    Args:
        given: a name, or a planner.
        sizes: what a batch holds.
        trainer: what it can carry out.
        settings: of a planner by name; they stand before the defaults.
        offered: what is known of prompts, see :func:`~allotment.planning.make_planner`.
        estimator: ``"rloo"`` or ``"dr_grpo"``, whose variance is priced by default.
        seed: of a planner by name.

    Raises:
        ConfigError: the trainer cannot carry the planner out, it cannot be made, or it does not fit the batch.
    """
    if isinstance(given, str):
        name = check_planner_name(given, trainer)
        is_rloo = name == "vip-moments" or sizes.mean < 3  # the price of Dr. GRPO needs groups of 3
        usual = PLANNERS[name].estimator or ("rloo" if is_rloo else estimator)
        lower = min(get_estimator(settings.get("estimator", usual)).usual_lower, sizes.mean)
        defaults: dict[str, Any] = {
            "budget": sizes.budget,
            "bounds": (lower, max(UPPER, TIMES_MEAN * sizes.mean)),
            "estimator": usual,
            "seed": seed,
        }
        chosen = {"trained_prompts": sizes.prompts, **offered}
        planner = make_planner(name, offered=chosen, **{**defaults, **settings})
    elif isinstance(given, Planner):
        planner = given
    else:
        raise ConfigError(
            "this is no planner",
            got=repr(given),
            allowed="a name, or a planner object, of a class derived from allotment.Planner",
            fix="use 'vip'",
        )
    check_planner(planner, trainer)
    _check_sizes(planner, sizes, trainer)
    return planner


def imported(path: str, *, setting: str, where: str) -> Any:
    """What ``module:name`` stands for, a planner or what makes one; ``where`` the module must be installed.

    Raises ConfigError: there is no such module or name.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "the planner cannot be imported",
            got=f"{setting}{path!r}: {error}",
            allowed="a name, or module:function",
            fix=f"check the path, and that the module is installed where {where} runs",
        ) from error


def fitted_selector(
    given: str | Selector | None, planner: Planner, trainer: Capability, *, settings: Mapping[str, Any], seed: int
) -> Selector | None:
    """What chooses among the rollouts of a batch: the planner's own way, or the one that is given; None for neither.

    Args:
        given: a name, or a selector.
        planner: whose own way comes first.
        trainer: what it can carry out.
        settings: of a selector by name.
        seed: of a selector by name, unless ``settings`` has one.

    Raises:
        ConfigError: the trainer cannot carry the selector out, there are two, or a setting is not known.
    """
    if given is None and settings:
        raise ConfigError(
            "settings of a selector, and none is chosen",
            got=", ".join(map(str, settings)),
            allowed=f"a selector, such as {', '.join(SELECTORS.built_in)}; or no settings",
            fix="name one",
        )
    if given is None:
        return planner.selector
    if planner.selector is not None:
        raise ConfigError(
            "a selector beside a planner that selects itself",
            got=f"select {given!r}, planner {planner.name}",
            allowed="a planner that trains on all it generates, such as vip or uniform",
            fix="leave select out, or choose another planner",
        )
    if not isinstance(given, str):
        return given
    return make_selector(check_selector_name(given, trainer), given, **{"seed": seed, **settings})


def _check_sizes(planner: Planner, sizes: Sizes, trainer: Capability) -> None:
    """Refuse a planner whose budget or bounds are not those of the batch.

    Raises:
        ConfigError: with the budget and the mean that fit.
    """
    lower, upper = planner.bounds
    of_budget, of_mean = sizes.terms
    least = 1 if planner.contract.baselines else 2
    fits = least <= lower <= sizes.mean and lower * sizes.prompts <= sizes.budget <= upper * sizes.prompts
    if planner.budget != sizes.budget or not fits:
        raise ConfigError(
            f"the planner does not fit the batch of {trainer.name}",
            got=f"{planner.name}: budget {planner.budget}, bounds {planner.bounds}",
            allowed=f"budget {sizes.budget} = {of_budget}; bounds around {of_mean} = "
            f"{sizes.budget / sizes.prompts:g}, the mean over {sizes.prompts} prompts, from {least} on",
            fix=f"make the planner with budget={sizes.budget} and lower <= {sizes.mean} <= upper",
        )
