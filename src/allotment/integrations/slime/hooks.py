"""What slime calls with the samples of a step: ``--custom-reward-post-process-path``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from allotment.errors import ConfigError, RewardMismatchError
from allotment.integrations.slime.needed import needs_slime
from allotment.integrations.slime.rewards import Rollouts, rollouts_of

if TYPE_CHECKING:
    from allotment.integrations.slime.source import AllotmentDataSource

SOURCES: WeakValueDictionary[int, AllotmentDataSource] = WeakValueDictionary()
"""The data source made with each of slime's arguments, by their ``id``: a source holds the arguments, so that the id
stays theirs as long as the source lives.
"""


def reward_post_process(args: Any, samples: Sequence[Any]) -> tuple[list[float], list[float]]:
    """Raw rewards, and in place of slime's normalised ones the advantages of ragged groups; tells the planner.

    Args:
        args: slime's arguments, the object that the data source was made with.
        samples: [S] all that is trained on in this step.

    Returns:
        [S] twice.

    Raises:
        ConfigError: there is no data source for these arguments.
        InvalidInputError: a sample has no reward, or belongs to no group that is waited for.
        RewardMismatchError: slime would not train on all of them.
    """
    source = SOURCES.get(id(args))
    if source is None:
        raise ConfigError(
            "the reward hook has no data source",
            got=f"--data-source-path {getattr(args, 'data_source_path', None)}",
            allowed="allotment.integrations.slime.AllotmentDataSource, made with the same arguments",
            fix="set --data-source-path to it, and hand the arguments on as they are",
        )
    rollouts = rollouts_of(args, samples, source.session.settings.success_key)
    _check_whole(args, rollouts, source.session.batch.budget)
    step = source.session.told_batches
    rewards_N, figures = source.session.told(rollouts, held=source.held_groups())
    _log(args, figures, step)
    raw = [float(sample.get_reward_value(args)) for sample in samples]
    return raw, rewards_N[rollouts.row_S].tolist()


def _check_whole(args: Any, rollouts: Rollouts, budget: int) -> None:
    """Refuse a number of rollouts of which slime would drop some."""
    step, came = int(getattr(args, "global_batch_size", None) or budget), len(rollouts.groups)
    if came % step or not came:
        raise RewardMismatchError(
            "slime would not train on all rollouts",
            got=f"{came} rollouts, global_batch_size={step}",
            allowed=f"a multiple of {step}; {budget} were asked for",
            fix="give a sample for each that get_samples gave: one that failed with reward 0 and remove_sample=True, "
            "unfinished groups with add_samples and get_samples again until the batch is whole",
        )


def _log(args: Any, figures: dict[str, float], rollout_id: int) -> None:
    """Where slime's own figures of the step go."""
    with needs_slime():
        from slime.observability import logging_utils  # type: ignore[import-not-found]
        from slime.observability.metric_utils import compute_rollout_step  # type: ignore[import-not-found]
    step = compute_rollout_step(args, rollout_id)
    logging_utils.log(args, {**figures, "rollout/step": step}, step_key="rollout/step")
