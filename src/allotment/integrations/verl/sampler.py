"""verl's asynchronous replay buffer, which trains on a number of rollouts as near to the budget as it can."""

from __future__ import annotations

from collections import Counter
from typing import Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBufferAsync

from allotment.integrations.verl.choice import near_budget
from allotment.integrations.verl.running import current_session
from allotment.integrations.verl.versions import check_methods

check_methods(ReplayBufferAsync, ("_select_prompt_uids",))


class NearBudget(ReplayBufferAsync):
    """Named by ``trainer.v1.sampler.custom_sampler``.

    verl takes the oldest groups that are ready. With counts of their own these have more or fewer rollouts than a batch
    is meant to have; where further groups are ready, a few are exchanged.
    """

    def _select_prompt_uids(self, partition_id: str, sampleable_keys: set[str], batch_size: int) -> Any:
        uids, *snapshots = super()._select_prompt_uids(partition_id, sampleable_keys, len(sampleable_keys))
        if partition_id != "train":
            return uids[:batch_size], *snapshots
        rollouts = {key.rsplit("_", 1)[0] for key in self.partitions[partition_id]}
        count_of = Counter(rollout.rsplit("_", 1)[0] for rollout in rollouts)
        places = near_budget([count_of[uid] for uid in uids], batch_size, batch_size * current_session().batch.mean)
        return [uids[place] for place in places], *snapshots
