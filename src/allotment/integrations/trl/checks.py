"""What is looked at before a run of TRL starts, and at its first batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from allotment.errors import ConfigError
from allotment.integrations.fitting import Sizes
from allotment.integrations.trl.config import AllotmentArguments
from allotment.planning import Planner, Uniform
from allotment.planning.success import SuccessPlanner

log = logging.getLogger("allotment")


def check_loss(loss_type: str) -> None:
    """Refuse a loss that a belief as baseline would bias; see :func:`allotment.learning.aggregation.check_believed`."""
    if loss_type != "dr_grpo":
        raise ConfigError(
            "the planner's baselines are biased where the loss divides by lengths that depend on the rollouts",
            got=f"loss_type={loss_type!r}",
            allowed="loss_type='dr_grpo', or RLOOTrainer",
            fix="set loss_type='dr_grpo', or use the planner with estimator 'rloo'",
        )


def check_success_reward(name: str | None, known: list[str]) -> None:
    """Refuse the name of a reward function that is not there."""
    if name is not None and name not in known:
        raise ConfigError(
            "there is no reward function of that name",
            got=f"success_reward={name!r}",
            allowed=", ".join(known),
            fix="name one of them, or leave success_reward out for their weighted sum",
        )


def check_whole_parameters(accelerator: Any) -> None:
    """Refuse score sketches where a process holds a part of each parameter only: they read whole matrices."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    stage = getattr(plugin, "zero_stage", 0)
    is_fsdp = getattr(accelerator.state, "fsdp_plugin", None) is not None
    if stage == 3 or is_fsdp:
        raise ConfigError(
            "score sketches need whole parameters, and here each process holds a part of them",
            got=f"DeepSpeed ZeRO stage {stage}" if stage == 3 else "FSDP",
            allowed="one process, DDP, or DeepSpeed ZeRO up to stage 2",
            fix="use a planner without score sketches, such as 'vip'",
        )


def warn_of_nothing_to_allocate(planner: Planner, sizes: Sizes) -> None:
    """Warn at the start where every plan must be the same."""
    if isinstance(planner, Uniform):
        return
    lower, upper = planner.bounds
    if sizes.prompts == 1:
        log.warning(
            "a batch holds one prompt, so there is nothing to allocate: %d rows / num_generations=%d. Set "
            "gradient_accumulation_steps=%d (or a larger per_device_train_batch_size) for 8 prompts a batch",
            sizes.budget,
            sizes.mean,
            8,
        )
    elif sizes.budget in (lower * sizes.prompts, upper * sizes.prompts):
        log.warning(
            "bounds %s leave nothing to allocate: %d prompts share %d rows. Raise num_generations, or set wider bounds "
            "in planner_kwargs",
            planner.bounds,
            sizes.prompts,
            sizes.budget,
        )


def warn_of_rewards(rewards: Sequence[float], planner: Planner, settings: AllotmentArguments) -> None:
    """Warn at the first batch where rewards are no two values and nobody said what a success is."""
    values = sorted(set(rewards))
    says = settings.success_threshold is not None or planner.success_threshold != Planner.success_threshold
    if len(values) > 2 and isinstance(planner, SuccessPlanner) and not isinstance(planner, Uniform) and not says:
        log.warning(
            "rewards are not two-valued (%d values from %g to %g): the planner takes those of at least %g for "
            "successes and splits by that. Set success_threshold, or success_reward='NAME' for the function that says "
            "whether an answer is right, or planner='reward-variance' for rewards of any size",
            len(values),
            values[0],
            values[-1],
            planner.success_threshold,
        )
