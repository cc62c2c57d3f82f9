"""From a name, or a planner object, to a planner that fits a trainer's batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from allotment.errors import ConfigError
from allotment.planning import Planner, make_planner
from allotment.planning.contract import Capability, check_planner, check_planner_name

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
        defaults: dict[str, Any] = {
            "budget": sizes.budget,
            "bounds": (min(3, sizes.mean), max(UPPER, TIMES_MEAN * sizes.mean)),
            "estimator": "rloo" if is_rloo else estimator,
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
            allowed="a name, or an object of a class derived from allotment.Planner",
            fix="use 'vip'",
        )
    check_planner(planner, trainer)
    check_sizes(planner, sizes)
    return planner


def check_sizes(planner: Planner, sizes: Sizes) -> None:
    """Refuse a planner whose budget or bounds are not those of the batch.

    Raises:
        ConfigError: with the budget and the mean that fit.
    """
    lower, upper = planner.bounds
    least = 1 if planner.contract.baselines else 2
    fits = least <= lower <= sizes.mean and lower * sizes.prompts <= sizes.budget <= upper * sizes.prompts
    if planner.budget != sizes.budget or not fits:
        raise ConfigError(
            "the planner's budget contradicts the trainer's batch",
            got=f"{planner.name}: budget {planner.budget}, bounds {planner.bounds}",
            allowed=f"budget {sizes.budget}, the rollouts of a batch; bounds around {sizes.mean}, the mean over "
            f"{sizes.prompts} prompts, from {least} on",
            fix=f"make the planner with budget={sizes.budget} and lower <= {sizes.mean} <= upper",
        )
