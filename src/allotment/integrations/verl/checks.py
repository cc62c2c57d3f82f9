"""What is refused at the start of a run: settings of verl's, and methods that cannot be carried out with them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from allotment.errors import ConfigError
from allotment.integrations.capabilities import VERL
from allotment.planning import Planner, Uniform
from allotment.planning.contract import Capability, check_objective_names, obstacle, selection_obstacle, works_with
from allotment.registry import OBJECTIVES, PLANNERS, SELECTORS

if TYPE_CHECKING:
    from allotment.integrations.verl.config import AllotmentSettings, Batch

log = logging.getLogger("allotment")

PREFIX = "allotment_"
CONSTANT_DIVISORS = ("seq-mean-token-sum", "seq-mean-token-sum-norm")
"""Ways of adding up token losses with no divisor that depends on a rollout: what a belief as baseline needs."""
WITHOUT_GROUPS = ("gae", "reinforce_plus_plus", "remax")
"""verl's estimators that compare a rollout with no other rollout of its prompt."""
OWN_ESTIMATORS = ("allotment_rloo", "allotment_dr_grpo", "allotment_grpo")


def check_config(config: DictConfig, settings: AllotmentSettings, batch: Batch) -> None:
    """Refuse what rules out counts of their own for each prompt: ConfigError with the key and what to do about it."""
    estimator = str(config.algorithm.adv_estimator)
    if estimator.startswith(PREFIX):
        _check_estimator(estimator)
    reasons = (*_of_verl(config, batch), *_of_estimator(config, estimator, settings), *_of_block(settings, batch))
    for is_wrong, wrong, got, fix in reasons:
        if is_wrong:
            raise ConfigError(wrong, got=got, allowed="what docs/verl.md lists under Settings", fix=fix)


_Reason = tuple[bool, str, str, str]
"""Whether it holds, what is wrong, what was got, and how to fix it."""


def _of_verl(config: DictConfig, batch: Batch) -> Iterator[_Reason]:
    """What verl's own settings rule out."""
    yield (
        not config.trainer.use_v1,
        "the legacy trainer takes no counts",
        "trainer.use_v1=False",
        "leave trainer.use_v1 out",
    )
    yield (
        bool((config.algorithm.get("filter_groups") or {}).get("enable")),
        "filtered groups would never be told to the planner",
        "algorithm.filter_groups.enable=True",
        "leave the filter out; allotment.trained_prompts skips prompts before they cost rollouts",
    )
    yield (
        batch.prompts % batch.updates != 0,
        "a batch cannot be cut into equal updates",
        f"data.train_batch_size={batch.prompts}, parameter_sync_step={batch.updates}",
        "make data.train_batch_size a multiple of parameter_sync_step",
    )


def _of_estimator(config: DictConfig, estimator: str, settings: AllotmentSettings) -> Iterator[_Reason]:
    """What tells the planner, and what the estimator makes of unequal counts."""
    is_own, hooked = estimator.startswith(PREFIX), "trainer_mode=allotment_sync (docs/verl.md)"
    yield (
        not is_own and not settings.trainer_hook,
        "nothing tells the planner what came back",
        f"algorithm.adv_estimator={estimator}",
        f"use allotment_rloo, or {hooked}",
    )
    yield (
        estimator in WITHOUT_GROUPS,
        "the estimator compares a rollout with no other of its prompt: what one more of them is worth is not known, "
        "and in its whitening each prompt counts by its number of rollouts",
        f"algorithm.adv_estimator={estimator}",
        "set algorithm.adv_estimator=allotment_rloo, or another that works within groups, such as grpo",
    )
    yield (
        is_own and bool(config.algorithm.use_kl_in_reward) and not settings.trainer_hook,
        "the planner would be told rewards with the KL penalty in them",
        "algorithm.use_kl_in_reward=True",
        f"use {hooked}",
    )


def _of_block(settings: AllotmentSettings, batch: Batch) -> Iterator[_Reason]:
    """The block ``allotment`` and the batch."""
    named = settings.planner in PLANNERS and not PLANNERS[settings.planner].contract.baselines
    yield (
        batch.mean < 2 and named,
        "a group of one has no advantage",
        f"actor_rollout_ref.rollout.n={batch.mean}",
        "set actor_rollout_ref.rollout.n to the mean number of rollouts, from 2 on; or use the planner joint, "
        "which compares with what it believes",
    )
    yield (
        settings.trained_prompts is not None and not (batch.is_sync and settings.trained_prompts <= batch.prompts),
        "trained_prompts does not fit the batch",
        f"allotment.trained_prompts={settings.trained_prompts}",
        f"use at most data.train_batch_size={batch.prompts}, and a synchronous trainer; or leave it out",
    )
    yield (
        not batch.is_sync and not settings.trainer_hook,
        "without the trainer hook an asynchronous batch that is not exactly full makes a further optimizer step",
        "an asynchronous trainer_mode of verl's own",
        "use trainer_mode=allotment_colocate_async or allotment_separate_async (docs/verl.md)",
    )


def warn_of_nothing_to_allocate(planner: Planner, prompts: int, mean: int) -> None:
    """Warn at the start where every plan must be the same."""
    lower, upper = planner.bounds
    if isinstance(planner, Uniform) or planner.contract.leaves_out:
        return
    if prompts == 1:
        log.warning(
            "one prompt is trained on at a time, so there is nothing to allocate: raise data.train_batch_size, or "
            "lower trainer.v1.separate_async.parameter_sync_step"
        )
    elif mean in (lower, upper):
        log.warning(
            "bounds %s leave nothing to allocate where n is %d: raise actor_rollout_ref.rollout.n, or set wider bounds "
            "in allotment.planner_kwargs",
            planner.bounds,
            mean,
        )


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
    if is_sync and config.trainer.v1.sampler.get("sync_refill_failed_groups"):
        name = "verl with trainer.v1.sampler.sync_refill_failed_groups"
        refilled = replace(VERL, name=name, leaves_out=False, weights=False)  # of other candidates than the batch's
        found.append((refilled, "set trainer.v1.sampler.sync_refill_failed_groups=False, or use another method"))
    if config.algorithm.use_kl_in_reward:
        penalised = replace(VERL, name="verl with algorithm.use_kl_in_reward", selections=False)
        found.append((penalised, "use actor_rollout_ref.actor.use_kl_loss in its place, or another method"))
    return found
