"""verl's agent-loop manager, which asks the planner before it hands prompts to its workers."""

from __future__ import annotations

from typing import Any

import ray
import torch
import transfer_queue as tq
from ray.exceptions import ActorDiedError
from tensordict import TensorDict
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ
from verl.utils import tensordict_utils as tu

from allotment.errors import message
from allotment.integrations.verl.dispatch import balanced_order
from allotment.integrations.verl.prompts import COLUMNS, prompt_key
from allotment.integrations.verl.running import start_session
from allotment.integrations.verl.versions import check_methods
from allotment.integrations.verl.watch import Watch

ROLLOUTS = "__rollout_n__"
"""Column that verl's agent-loop worker reads a prompt's number of rollouts from."""
check_methods(AgentLoopManagerTQ, ("create", "generate_sequences"))


class AllotmentAgentLoopManager(AgentLoopManagerTQ):
    """Named by ``actor_rollout_ref.rollout.agent.agent_loop_manager_class``; lives in the trainer's process.

    Starts the :class:`~allotment.integrations.verl.Session` of the run, and restores it where verl resumes.

    Raises:
        ConfigError: verl's configuration rules out counts of their own for each prompt.
        StateError: the planner's state in the checkpoint cannot be used.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        self.session = start_session(config)
        self._watch: Watch | None = None
        super().__init__(config, *args, **kwargs)

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Dispatch prompts with their counts, balanced over the workers; validation with verl's own counts.

        Where a worker is found dead, its share goes to the others.

        Raises:
            InvalidInputError: a prompt has no name, or that of another prompt.
            RuntimeError: no worker is alive.
        """
        if self._watch is None:
            self._watch = Watch(self.agent_loop_workers, self.session.settings.prompt_timeout)
        is_validation = tu.get(prompts, "validate", False)
        listed = tq.kv_list() or {}
        self._watch.forget_finished({key for keys in listed.values() for key in keys})
        if not is_validation:
            prompts = self._planned(prompts, set(listed.get("train", {})))
        lost = self._send(prompts, "val" if is_validation else "train")
        while lost is not None:
            lost = self._send(lost, "val" if is_validation else "train")

    def _send(self, prompts: TensorDict, partition: str) -> TensorDict | None:
        """Hand each worker its share; the prompts of workers that turn out to be dead, if there are any."""
        assert self._watch is not None
        workers = list(self.agent_loop_workers)
        if not workers:
            raise RuntimeError(
                message(
                    "no agent-loop worker is alive",
                    got="all of them died",
                    allowed="at least one",
                    fix="see Ray's log for why, and resume from the last checkpoint",
                )
            )
        shares, calls, lost = prompts.chunk(len(workers)), [], []
        for worker, share in zip(workers, shares, strict=False):
            self._watch.sent(worker, map(str, tu.get(share, "uid")), partition)
            calls.append((worker, share, worker.generate_sequences.remote(share)))
        for worker, share, call in calls:
            try:
                ray.get(call)
            except ActorDiedError:
                self._watch.bury(worker)
                lost.append(share)
        if not lost:
            return None
        again = lost[0] if len(lost) == 1 else tu.concat_tensordict(lost)
        uids = [str(uid) for uid in tu.get(again, "uid")]
        tq.kv_batch_put(keys=uids, partition_id=partition, tags=[{"status": "pending"} for _ in uids])
        return again

    def _planned(self, prompts: TensorDict, alive: set[str]) -> TensorDict:
        columns = {name: tu.get(prompts, name) for name in COLUMNS}
        rows = [{name: v[q] for name, v in columns.items() if v is not None} for q in range(len(prompts))]
        settings, uids = self.session.settings, [str(uid) for uid in tu.get(prompts, "uid")]
        keys = [prompt_key(row, settings.prompt_id) for row in rows]
        if settings.check_prompts:
            self.session.book.check(keys, rows)
        counts = self.session.plan(uids, keys, tu.get(prompts, "global_steps"), alive | set(uids))
        order = balanced_order(counts, len(self.agent_loop_workers))
        prompts = tu.index_select_tensor_dict(prompts, order)
        prompts[ROLLOUTS] = torch.tensor([counts[q] for q in order])
        return prompts
