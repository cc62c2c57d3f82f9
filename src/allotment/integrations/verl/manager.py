"""verl's agent-loop manager, which asks the planner before it hands prompts to its workers."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ
from verl.utils import tensordict_utils as tu

from allotment.integrations.verl.dispatch import balanced_order
from allotment.integrations.verl.prompts import prompt_key
from allotment.integrations.verl.session import start_session
from allotment.integrations.verl.versions import check_methods

ROLLOUTS = "__rollout_n__"
"""Column that verl's agent-loop worker reads a prompt's number of rollouts from."""
check_methods(AgentLoopManagerTQ, ("create", "generate_sequences"))


class AllotmentAgentLoopManager(AgentLoopManagerTQ):  # type: ignore[misc]
    """Named by ``actor_rollout_ref.rollout.agent.agent_loop_manager_class``; lives in the trainer's process.

    Starts the :class:`~allotment.integrations.verl.Session` of the run, and restores it where verl resumes.

    Raises:
        ConfigError: verl's configuration rules out counts of their own for each prompt.
        StateError: the planner's state in the checkpoint cannot be used.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        self.session = start_session(config)
        super().__init__(config, *args, **kwargs)

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Dispatch prompts with their counts, balanced over the workers; validation as verl does it."""
        if not tu.get(prompts, "validate", False):
            prompts = self._planned(prompts)
        super().generate_sequences(prompts)

    def _planned(self, prompts: TensorDict) -> TensorDict:
        columns = [tu.get(prompts, name) for name in ("raw_prompt", "data_source", "extra_info")]
        names = ("raw_prompt", "data_source", "extra_info")
        rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        keys = [prompt_key(row, self.session.settings.prompt_id) for row in rows]
        counts = self.session.plan([str(uid) for uid in tu.get(prompts, "uid")], keys, tu.get(prompts, "global_steps"))
        order = balanced_order(counts, len(self.agent_loop_workers))
        prompts = tu.index_select_tensor_dict(prompts, order)
        prompts[ROLLOUTS] = torch.tensor([counts[q] for q in order])
        return prompts
