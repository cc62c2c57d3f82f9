"""verl's asynchronous replay buffer, which trains on whole blocks of prompts where there are any."""

from __future__ import annotations

from typing import Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBufferAsync

from allotment.integrations.verl.session import current_session
from allotment.integrations.verl.versions import check_methods

check_methods(ReplayBufferAsync, ("_select_prompt_uids",))


class WholeBlocks(ReplayBufferAsync):
    """Named by ``trainer.v1.sampler.custom_sampler``.

    verl takes the oldest groups that are ready. With counts of their own these rarely fill a mini-batch exactly, and
    verl then adds rows without weight, up to another whole mini-batch. A block of prompts has exactly the rollouts of a
    mini-batch, so complete blocks go first; without one, the oldest groups do.
    """

    def _select_prompt_uids(self, partition_id: str, sampleable_keys: set[str], batch_size: int) -> Any:
        uids, *snapshots = super()._select_prompt_uids(partition_id, sampleable_keys, len(sampleable_keys))
        if partition_id == "train":
            uids = current_session().whole_blocks_first(uids)
        return uids[:batch_size], *snapshots
