"""What is refused at the start of a run: settings of verl's, and methods that cannot be carried out with them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from allotment.errors import ConfigError
from allotment.integrations.capabilities import VERL
from allotment.planning import Planner
from allotment.planning.contract import Capability, check_objective_names, obstacle, selection_obstacle, works_with
from allotment.registry import OBJECTIVES, SELECTORS

if TYPE_CHECKING:
    from allotment.integrations.verl.config import AllotmentSettings, Batch

PREFIX = "allotment_"
CONSTANT_DIVISORS = ("seq-mean-token-sum", "seq-mean-token-sum-norm")
"""Ways of adding up token losses with no divisor that depends on a rollout: what a belief as baseline needs."""
OWN_ESTIMATORS = ("allotment_rloo", "allotment_dr_grpo", "allotment_grpo")


def check_config(config: DictConfig, settings: AllotmentSettings, batch: Batch) -> None:
    """Refuse what rules out counts of their own for each prompt: ConfigError with the key and what to do about it."""
    estimator = str(config.algorithm.adv_estimator)
    is_own = estimator.startswith(PREFIX)
    if is_own:
        _check_estimator(estimator)
    if not config.trainer.use_v1:
        wrong, got, fix = "the legacy trainer takes no counts", "trainer.use_v1=False", "leave trainer.use_v1 out"
    elif batch.mean < 2:
        wrong, got = "a group of one has no advantage", f"actor_rollout_ref.rollout.n={batch.mean}"
        fix = "set actor_rollout_ref.rollout.n to the mean number of rollouts, from 2 on"
    elif config.algorithm.filter_groups.enable:
        wrong, got = "filtered groups would never be told to the planner", "algorithm.filter_groups.enable=True"
        fix = "leave the filter out; allotment.trained_prompts skips prompts before they cost rollouts"
    elif not is_own and not settings.trainer_hook:
        wrong, got = "nothing tells the planner what came back", f"algorithm.adv_estimator={estimator}"
        fix = "use allotment_rloo, or trainer_mode=allotment_sync with VERL_USE_EXTERNAL_MODULES (docs/verl.md)"
    elif is_own and config.algorithm.use_kl_in_reward and not settings.trainer_hook:
        wrong, got = "the planner would be told rewards with the KL penalty in them", "algorithm.use_kl_in_reward=True"
        fix = "use trainer_mode=allotment_sync with VERL_USE_EXTERNAL_MODULES (docs/verl.md)"
    elif settings.trained_prompts is not None and not (batch.is_sync and settings.trained_prompts <= batch.prompts):
        wrong, got = "trained_prompts does not fit the batch", f"allotment.trained_prompts={settings.trained_prompts}"
        fix = f"use at most data.train_batch_size={batch.prompts}, and a synchronous trainer; or leave it out"
    else:
        return
    raise ConfigError(wrong, got=got, allowed="what docs/verl.md lists under Settings", fix=fix)


def _check_estimator(estimator: str) -> None:
    """Refuse an objective of Allotment's that verl does not have, and one that does not exist."""
    name = estimator.removeprefix(PREFIX)
    if name in OBJECTIVES:
        check_objective_names((name,), VERL)
    if estimator not in OWN_ESTIMATORS:
        raise ConfigError(
            "there is no such estimator",
            got=f"algorithm.adv_estimator={estimator}",
            allowed=", ".join(OWN_ESTIMATORS),
            fix="use allotment_rloo",
        )


def check_mode(config: DictConfig, is_sync: bool, method: Planner | str) -> None:
    """Refuse a planner, or a selector by name, that verl can carry out, but not with these settings: ConfigError with
    the reason, and the setting that stands against it.
    """
    for trainer, fix in _restrictions(config, is_sync):
        if isinstance(method, str):
            kind, name, reason = "selector", method, selection_obstacle(SELECTORS[method].needs, trainer)
        else:
            kind, name, reason = "planner", method.name, obstacle(method.contract, trainer)
        if reason is not None:
            raise ConfigError(
                f"{trainer.name} cannot carry out the {kind} {name!r}: {reason}",
                got=name,
                allowed=f"the planners {', '.join(works_with(trainer))}"
                + ("" if trainer.selections else ", without a selector"),
                fix=fix,
            )


def _restrictions(config: DictConfig, is_sync: bool) -> list[tuple[Capability, str]]:
    """What these settings can carry out, each where that is less than verl can, and what to do about it."""
    estimator, found = str(config.algorithm.adv_estimator), []
    if not is_sync:  # prompts come in pieces, for which a budget is carried over
        name = "verl's asynchronous trainers"
        pieces = replace(VERL, name=name, leaves_out=False, selections=False, weights=False)
        found.append((pieces, "use trainer_mode=allotment_sync, or another method"))
    if estimator not in OWN_ESTIMATORS:
        stock = replace(VERL, name=f"verl's estimator {estimator}", selections=False, weights=False, baselines=False)
        found.append((stock, "set algorithm.adv_estimator=allotment_rloo, or use another method"))
    mode = str(config.actor_rollout_ref.actor.loss_agg_mode)
    if mode not in CONSTANT_DIVISORS:  # see allotment.learning.check_believed
        divided = replace(VERL, name=f"verl with loss_agg_mode={mode}", baselines=False)
        found.append((divided, "set actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum, or use another method"))
    if config.algorithm.use_kl_in_reward:
        penalised = replace(VERL, name="verl with algorithm.use_kl_in_reward", selections=False)
        found.append((penalised, "use actor_rollout_ref.actor.use_kl_loss in its place, or another method"))
    return found
