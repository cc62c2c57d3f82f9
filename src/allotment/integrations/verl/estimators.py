"""Advantage estimators in verl's registry: ragged groups, weights, baselines and selections carried out.

verl's ``grpo`` returns the raw reward for a group of one; here its advantage is 0, unless its plan has a baseline. The
planner is told the rewards unless the trainer hook did so before.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est

from allotment.integrations.verl.checks import OWN_ESTIMATORS, PREFIX
from allotment.integrations.verl.running import current_session

PADDING = "pad"
"""How verl's uids of padding rows begin; those of prompts are hexadecimal."""


def padding_rows(uids: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[N] which rows verl appended to fill its mini-batches."""
    return np.array([str(uid).startswith(PADDING) for uid in uids], dtype=np.bool_)


def outcome_advantages(
    estimator: str, token_level_rewards: Tensor, response_mask: Tensor, index: Any, **_: Any
) -> tuple[Tensor, Tensor]:
    """[N, T] twice, advantages and returns: one number a rollout, over its response; 0 for padding.

    Args:
        estimator: ``"rloo"``, ``"dr_grpo"`` or ``"grpo"``.
        token_level_rewards: [N, T]; their sum is the reward of a rollout.
        response_mask: [N, T], 1 for tokens of the policy.
        index: [N] the uid of each row's prompt.
    """
    session = current_session()
    real_N = ~padding_rows(index)
    rewards_N = token_level_rewards.sum(dim=-1).double().cpu().numpy()
    uids = [str(uid) for uid in np.asarray(index)[real_N]]
    rollouts = uids, rewards_N[real_N], response_mask.sum(dim=-1).cpu().numpy()[real_N]
    session.tell(*rollouts)
    advantages_N = np.zeros(len(rewards_N))
    advantages_N[real_N] = session.advantages(*rollouts, estimator)
    values_N = torch.as_tensor(advantages_N, dtype=torch.float32, device=response_mask.device)
    advantages_NT = values_N[:, None] * response_mask
    return advantages_NT, advantages_NT.clone()


for _name in OWN_ESTIMATORS:
    register_adv_est(_name)(partial(outcome_advantages, _name.removeprefix(PREFIX)))
