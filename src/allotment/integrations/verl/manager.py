"""verl's agent-loop manager, which asks the planner before it hands prompts to its workers."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ
from verl.utils import tensordict_utils as tu

from allotment.errors import message
from allotment.integrations.verl.dispatch import balanced_order
from allotment.integrations.verl.prompts import prompt_key
from allotment.integrations.verl.session import start_session
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
        """Dispatch prompts with their counts, balanced over the workers; validation as verl does it.

        Raises:
            RuntimeError: no worker is alive.
        """
        is_validation = tu.get(prompts, "validate", False)
        if not self.agent_loop_workers:
            raise RuntimeError(
                message(
                    "no agent-loop worker is alive",
                    got="all of them died",
                    allowed="at least one",
                    fix="see Ray's log for why, and resume from the last checkpoint",
                )
            )
        if not is_validation:
            prompts = self._planned(prompts)
        self._remember(prompts, "val" if is_validation else "train")
        super().generate_sequences(prompts)

    def _remember(self, prompts: TensorDict, partition: str) -> None:
        if self._watch is None:
            self._watch = Watch(self.agent_loop_workers)
        self._watch.forget_finished()
        workers = list(self.agent_loop_workers)
        for worker, chunk in zip(workers, prompts.chunk(len(workers)), strict=False):
            self._watch.sent(worker, map(str, tu.get(chunk, "uid")), partition)

    def _planned(self, prompts: TensorDict) -> TensorDict:
        columns = {name: tu.get(prompts, name) for name in ("raw_prompt", "data_source", "extra_info")}
        rows = [{name: v[q] for name, v in columns.items() if v is not None} for q in range(len(prompts))]
        keys = [prompt_key(row, self.session.settings.prompt_id) for row in rows]
        counts = self.session.plan([str(uid) for uid in tu.get(prompts, "uid")], keys, tu.get(prompts, "global_steps"))
        order = balanced_order(counts, len(self.agent_loop_workers))
        prompts = tu.index_select_tensor_dict(prompts, order)
        prompts[ROLLOUTS] = torch.tensor([counts[q] for q in order])
        return prompts
