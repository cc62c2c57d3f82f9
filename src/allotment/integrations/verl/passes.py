"""A fixed number of optimizer passes over a batch, whatever the number of rollouts that it has.

verl fills a batch up to whole mini-batches of ``ppo_mini_batch_size x n`` rows, so that one rollout too many makes
another optimizer step of hardly anything but filling. Here the batch is cut into as many mini-batches as a uniform one
has, each as large as it takes, and filled up by less than a row for each of their parts.
"""

from __future__ import annotations

import math
from typing import Any

from omegaconf import DictConfig

LENGTHS = ("mini_batch_size", "global_batch_size")
"""Keys of a batch that verl's workers read: rows of a mini-batch, and what a mean over its rollouts is divided by."""


def optimizer_passes(prompts: int, mini_batch_prompts: int) -> int:
    """Mini-batches of a batch with equal counts: what verl is configured to make of it."""
    return -(-prompts // mini_batch_prompts)


def row_multiple(config: DictConfig, data_parallel: int, passes: dict[str, int]) -> int:
    """What the rows of a batch are filled up to a multiple of.

    Every pass then has the same number of rows on each data-parallel rank, in whole micro-batches.

    Args:
        config: verl's.
        data_parallel: ranks.
        passes: optimizer passes of each model that is updated, ``actor`` and ``critic``.
    """
    models, multiple = config.actor_rollout_ref, 1
    micro = {
        "actor": _micro(models.actor, "ppo_micro_batch_size_per_gpu", "use_dynamic_bsz"),
        "critic": _micro(config.critic, "ppo_micro_batch_size_per_gpu", "use_dynamic_bsz"),
    }
    read = [models.rollout, *([models.ref] if _uses_reference(config) else [])]
    for model, count in passes.items():
        multiple = math.lcm(multiple, count * micro[model])
    for model in read:
        key = "log_prob_micro_batch_size_per_gpu"
        multiple = math.lcm(multiple, _micro(model, key, "log_prob_use_dynamic_bsz"))
    return data_parallel * multiple


def _micro(model: DictConfig, size: str, is_dynamic: str) -> int:
    """Rows of a micro-batch; 1 where verl cuts them by tokens."""
    return 1 if model.get(is_dynamic) else int(model.get(size) or 1)


def _uses_reference(config: DictConfig) -> bool:
    return bool(config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward)


def is_padding(tag: dict[str, Any]) -> bool:
    """Whether a row was appended by verl to fill up a batch."""
    return bool(tag.get("is_padding", False))


class FixedPasses:
    """In front of one of verl's worker groups while it is updated: the batch is cut into ``passes`` mini-batches.

    A mean over rollouts is over those that are there, not over the number that a uniform batch would have had.
    """

    def __init__(self, group: Any, passes: int) -> None:
        self._group, self._passes = group, passes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)

    def update_actor(self, batch: Any) -> Any:
        """verl's, of the actor."""
        return self._group.update_actor(self._cut(batch))

    def train_mini_batch(self, batch: Any) -> Any:
        """verl's, of the critic."""
        return self._group.train_mini_batch(self._cut(batch))

    def _cut(self, batch: Any) -> Any:
        rows = sum(not is_padding(tag) for tag in batch.tags)
        lengths = len(batch) // self._passes, max(rows, 1) / self._passes
        batch.extra_info.update(zip(LENGTHS, lengths, strict=True))
        return batch
