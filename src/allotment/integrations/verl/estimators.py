"""Advantage estimators in verl's registry: ragged groups, per-prompt weights, no advantage for a group of one.

verl's ``grpo`` returns the raw reward for a group of one; here its advantage is 0. The planner is told the rewards
unless the trainer hook did so before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est

from allotment.integrations.generic import group_advantages
from allotment.integrations.verl.session import current_session

PADDING = "pad"
"""How verl's uids of padding rows begin; those of prompts are hexadecimal."""


def padding_rows(uids: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[N] which rows verl appended to fill its mini-batches."""
    return np.array([str(uid).startswith(PADDING) for uid in uids], dtype=np.bool_)


def outcome_advantages(
    estimator: str, token_level_rewards: Tensor, response_mask: Tensor, index: Any
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
    session.tell(uids, rewards_N[real_N], response_mask.sum(dim=-1).cpu().numpy()[real_N])
    advantages_N = np.zeros(len(rewards_N))
    advantages_N[real_N] = group_advantages(rewards_N[real_N], uids, estimator, session.settings.prompt_weighting)
    values_N = torch.as_tensor(advantages_N, dtype=torch.float32, device=response_mask.device)
    advantages_NT = values_N[:, None] * response_mask
    return advantages_NT, advantages_NT.clone()


@register_adv_est("allotment_rloo")
def rloo(
    token_level_rewards: Tensor, response_mask: Tensor, index: Any, config: Any = None, **_: Any
) -> tuple[Tensor, Tensor]:
    """Reward minus the mean of the other rollouts of the prompt."""
    return outcome_advantages("rloo", token_level_rewards, response_mask, index)


@register_adv_est("allotment_dr_grpo")
def dr_grpo(
    token_level_rewards: Tensor, response_mask: Tensor, index: Any, config: Any = None, **_: Any
) -> tuple[Tensor, Tensor]:
    """Reward minus the mean of the prompt."""
    return outcome_advantages("dr_grpo", token_level_rewards, response_mask, index)


@register_adv_est("allotment_grpo")
def grpo(
    token_level_rewards: Tensor, response_mask: Tensor, index: Any, config: Any = None, **_: Any
) -> tuple[Tensor, Tensor]:
    """Reward minus the mean of the prompt, over its standard deviation plus 1e-4."""
    return outcome_advantages("grpo", token_level_rewards, response_mask, index)
