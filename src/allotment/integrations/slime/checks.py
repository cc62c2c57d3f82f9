"""What is refused at the start of a run: arguments of slime's, and planners that cannot be carried out with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from allotment.errors import ConfigError
from allotment.integrations.capabilities import GENERIC
from allotment.integrations.slime.settings import Batch, Settings, planner_of
from allotment.planning import Planner
from allotment.planning.contract import Capability

HERE = "allotment.integrations.slime"
ESTIMATORS = ("grpo", "gspo", "cispo")
"""Those of slime's that take a rollout's reward for the advantage of its tokens."""
SLIME = replace(GENERIC, name="slime", in_tokens=False, any_size=False, told=frozenset({"lengths"}))
"""One generation a batch, of a fixed number of rollouts, all of them trained on."""


@dataclass(frozen=True)
class Rule:
    """An argument that would make a run wrong."""

    is_wrong: Callable[[Any], object]
    """Of slime's arguments."""
    argument: str
    """The flag, as in slime's command line."""
    wrong: str
    fix: str


def _get(name: str) -> Callable[[Any], Any]:
    return lambda args: getattr(args, name, None)


def _is_stock(args: Any) -> bool:
    return str(_get("rollout_function_path")(args)).startswith("slime.rollout.")


def _is_over_sampled(args: Any) -> bool:
    return bool((_get("over_sampling_batch_size")(args) or args.rollout_batch_size) != args.rollout_batch_size)


_PLANNED = f"use {HERE}.generate_rollout; to choose among more prompts, the setting candidates"
RULES = (
    Rule(
        lambda args: not (getattr(args, "rollout_global_dataset", True) and _get("prompt_data")(args)),
        "prompt_data",
        "there are no prompts to plan for",
        "set --prompt-data, and leave --disable-rollout-global-dataset out",
    ),
    Rule(_is_stock, "rollout_function_path", "slime's own rollout functions take groups of one size only", _PLANNED),
    Rule(
        lambda args: _get("custom_reward_post_process_path")(args) is None,
        "custom_reward_post_process_path",
        "slime would take all rollouts of a batch for one group, and nothing would tell the planner what came back",
        f"set --custom-reward-post-process-path {HERE}.reward_post_process",
    ),
    Rule(
        _is_over_sampled,
        "over_sampling_batch_size",
        "rollouts drawn over the batch would be dropped, and the sum would be another",
        "leave it out; to choose among more prompts before they cost rollouts, the setting candidates",
    ),
    Rule(
        _get("dynamic_sampling_filter_path"),
        "dynamic_sampling_filter_path",
        "filtered groups would never be told to the planner, and the sum would be another",
        "leave it out; the planner gives few rollouts to prompts that say nothing",
    ),
    Rule(
        _get("buffer_filter_path"),
        "buffer_filter_path",
        "groups that were put back are issued first in, first out",
        "leave it out",
    ),
    Rule(
        lambda args: getattr(args, "advantage_estimator", "grpo") not in ESTIMATORS,
        "advantage_estimator",
        "it does not take a reward within its group for the advantage",
        f"use one of {', '.join(ESTIMATORS)}",
    ),
    Rule(
        lambda args: not getattr(args, "rewards_normalization", True),
        "rewards_normalization",
        "rewards within groups are normalised, whatever their size",
        "leave --disable-rewards-normalization out",
    ),
    Rule(
        _get("normalize_advantages"),
        "normalize_advantages",
        "whitening over all tokens takes the zero sums and the weights of groups away",
        "leave --normalize-advantages out",
    ),
    Rule(
        _get("custom_advantage_function_path"),
        "custom_advantage_function_path",
        "the advantages of ragged groups would be computed anew",
        f"leave it out; {HERE}.reward_post_process gives the advantages",
    ),
    Rule(
        lambda args: _get("loss_type")(args) == "sft_loss",
        "loss_type",
        "this loss does not look at advantages",
        "use policy_loss, or a custom_loss that does",
    ),
    Rule(
        lambda args: not getattr(args, "compute_advantages_and_returns", True),
        "compute_advantages_and_returns",
        "the rewards of groups would not become advantages",
        "leave --disable-compute-advantages-and-returns out",
    ),
    Rule(
        _get("log_passrate"),
        "log_passrate",
        "slime cuts rewards into groups of n for pass@k, which mixes prompts where groups are ragged",
        "leave --log-passrate out; passrate/pass@k and that of evaluations are logged, prompt by prompt",
    ),
    Rule(
        _get("debug_rollout_only"),
        "debug_rollout_only",
        "the planner would never be told what came back",
        "leave --debug-rollout-only out, or use slime's own data source",
    ),
    Rule(
        _get("load_debug_rollout_data"),
        "load_debug_rollout_data",
        "rollouts from a file belong to no plan",
        "leave it out, or use slime's own data source and reward normalisation",
    ),
)


def check_args(args: Any) -> Planner:
    """Refuse what rules out counts of their own for each prompt; the planner of the run.

    The data source calls it too; called on the result of slime's ``parse_args`` it needs no GPU and no Ray.

    Raises:
        ConfigError: with the argument, and what to do about it.
    """
    settings = Settings.of(args)
    batch = Batch.of(args, settings)
    for rule in RULES:
        if rule.is_wrong(args):
            got = f"{rule.argument}={getattr(args, rule.argument, None)!r}"
            raise ConfigError(rule.wrong, got=got, allowed="what docs/slime.md lists", fix=rule.fix)
    _check_batch(args, settings, batch)
    return planner_of(args, settings, batch, capability(args))


def capability(args: Any) -> Capability:
    """What slime can carry out with these arguments.

    A belief as baseline needs a divisor that does not depend on the rollout (:func:`allotment.learning.check_believed`)
    and a loss that is linear in a token's score.
    """
    is_summed = getattr(args, "custom_pg_loss_reducer_function_path", None) == f"{HERE}.sum_of_tokens"
    is_token_mean, is_sequence = getattr(args, "calculate_per_token_loss", False), args.advantage_estimator == "gspo"
    if is_summed and not is_token_mean and not is_sequence:
        return SLIME
    name = (
        "slime with --calculate-per-token-loss"
        if is_token_mean
        else "slime with gspo"
        if is_sequence
        else f"slime without --custom-pg-loss-reducer-function-path {HERE}.sum_of_tokens"
    )
    return replace(SLIME, name=name, baselines=False)


def _check_batch(args: Any, settings: Settings, batch: Batch) -> None:
    step = int(getattr(args, "global_batch_size", None) or batch.budget)
    if batch.budget % step:
        raise ConfigError(
            "slime would drop the rollouts that fill no training step",
            got=f"{batch.prompts} prompts x {batch.mean} = {batch.budget} rollouts, global_batch_size={step}",
            allowed="a divisor of the rollouts of a batch",
            fix=f"set --global-batch-size {batch.budget}, or --num-steps-per-rollout",
        )
    if batch.mean < 2 and not capability(args).baselines:
        raise ConfigError(
            "a group of one has no advantage",
            got=f"n_samples_per_prompt={batch.mean}",
            allowed="a mean of 2 or more; 1 for planners with baselines, such as joint",
            fix=f"raise --n-samples-per-prompt, or use joint with --custom-pg-loss-reducer-function-path {HERE}"
            ".sum_of_tokens",
        )
    if batch.candidates < batch.prompts:
        raise ConfigError(
            "fewer prompts would be drawn than are trained on",
            got=f"candidates={settings.candidates}, rollout_batch_size={batch.prompts}",
            allowed=f"candidates from {batch.prompts} on",
            fix="raise candidates, or leave it out",
        )
