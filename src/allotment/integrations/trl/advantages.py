"""TRL's advantages for groups of unequal size, and the weight of a prompt.

With equal groups every number here is TRL's to the last bit: rewards are laid out as TRL lays them out, one row a
prompt, and the same operations run over the rows; a shorter group leaves NaN at the end of its row, which they pass
over. A rollout that no reward function scored (all None, so NaN) counts nowhere and has advantage 0.

TRL before 1.6 differs in two ways: it takes a missing reward for 0, and rounds some means and deviations otherwise.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from trl.trainer.utils import nanstd

from allotment.integrations.carrying import Weighting
from allotment.learning.advantages import baseline_advantages
from allotment.learning.groups import group
from allotment.types import FloatArray

Scale = Literal["group", "batch", "none"]
EPSILON = 1e-4
"""TRL's, added to a standard deviation before it divides."""


def weighted_rewards(rewards_NF: Tensor, weights_F: Tensor) -> Tensor:
    """[N] the sum of the F reward functions' values, weighted; NaN where none of them scored the rollout."""
    unscored_N = rewards_NF.isnan().all(dim=1)
    return (rewards_NF * weights_F).nansum(dim=1).masked_fill(unscored_N, torch.nan)


def grpo_advantages(rewards_N: Tensor, group_N: Tensor, scale: Scale) -> Tensor:
    """[N] reward minus the mean of its group, divided by a standard deviation plus 1e-4.

    ``rewards_N``: [N], NaN where a rollout has none. ``group_N``: [N] integer. ``scale``: whose standard deviation,
    the group's, the batch's, or none.
    """
    rewards_QK = by_group(rewards_N, group_N)
    centred_QK = rewards_QK - torch.nanmean(rewards_QK, dim=1, keepdim=True)
    if scale == "group":
        centred_QK = centred_QK / (nanstd(rewards_QK, dim=1, keepdim=True) + EPSILON)
    elif scale == "batch":
        centred_QK = centred_QK / (nanstd(rewards_N) + EPSILON)
    return torch.nan_to_num(by_rollout(centred_QK, group_N), nan=0.0)


def gdpo_advantages(rewards_NF: Tensor, weights_F: Tensor, group_N: Tensor) -> Tensor:
    """[N] each reward function normalised in its group, weighted, summed, normalised over the batch.

    TRL's ``multi_objective_aggregation="normalize_then_sum"`` (GDPO, arXiv 2601.05242).
    """
    rewards_QKF = by_group(rewards_NF, group_N)
    centred_QKF = rewards_QKF - torch.nanmean(rewards_QKF, dim=1, keepdim=True)
    scaled_NF = by_rollout(centred_QKF / (nanstd(rewards_QKF, dim=1, keepdim=True) + EPSILON), group_N)
    total_N = (scaled_NF * weights_F).nansum(dim=1).masked_fill(rewards_NF.isnan().all(dim=1), torch.nan)
    return torch.nan_to_num((total_N - torch.nanmean(total_N)) / (nanstd(total_N) + EPSILON), nan=0.0)


def rloo_advantages(rewards_N: Tensor, group_N: Tensor, *, normalize: bool) -> Tensor:
    """[N] reward minus the mean of the other scored rollouts of its group; 0 without another.

    ``rewards_N``: [N], any constant added, NaN where a rollout has none. ``normalize``: to mean 0 and standard
    deviation 1 over the batch, TRL's ``normalize_advantages``.
    """
    rewards_QK = by_group(rewards_N, group_N)
    others_Q1 = (~rewards_QK.isnan()).sum(dim=1, keepdim=True) - 1
    baselines_QK = (torch.nansum(rewards_QK, dim=1, keepdim=True) - rewards_QK) / others_Q1
    advantages_N = rewards_N - by_rollout(baselines_QK, group_N)
    if normalize:
        advantages_N = (advantages_N - torch.nanmean(advantages_N)) / (nanstd(advantages_N) + EPSILON)
    return torch.nan_to_num(advantages_N, nan=0.0)


def believed_advantages(rewards_N: Tensor, group_N: Tensor, baselines_Q: FloatArray, shares_Q: FloatArray) -> Tensor:
    """[N] reward minus a mixture of the belief and the other scored rollouts of the prompt; 0 where a rollout has none.

    ``baselines_Q``, ``shares_Q``: [Q] by group, see :func:`allotment.learning.baseline_advantages`.
    """
    scored_N, advantages_N = ~rewards_N.isnan(), torch.zeros_like(rewards_N)
    rewards_S, group_S = rewards_N[scored_N], group_N[scored_N]
    beliefs = [torch.from_numpy(values).to(rewards_S)[group_S] for values in (baselines_Q, shares_Q)]
    advantages_N[scored_N] = baseline_advantages(rewards_S, group_S, *beliefs).to(advantages_N)
    return advantages_N


def prompt_weights(group_N: Tensor, weighting: Weighting) -> Tensor:
    """[N] what an advantage is multiplied with, 1 where groups are equal.

    ``"prompt"``: ``mean(n) / n_q``, so that every prompt counts the same, whatever it was given. ``"rollout"``: 1, so
    that a prompt counts as often as it was given rollouts.
    """
    if weighting == "rollout":
        return torch.ones_like(group_N, dtype=torch.float32)
    groups = group(group_N)
    return len(group_N) / (len(groups) * groups.sizes_per_rollout().float())


def constant_groups(rewards_N: Tensor, group_N: Tensor) -> Tensor:
    """[Q] whether the standard deviation of a group's rewards is 0, as TRL's ``frac_reward_zero_std`` judges it."""
    std_Q = nanstd(by_group(rewards_N, group_N), dim=1)
    return torch.isclose(std_Q, torch.zeros_like(std_Q))


def by_group(values_N: Tensor, group_N: Tensor) -> Tensor:
    """[Q, K, ...] one row a group, in the order of the rollouts, K the largest group; the rest NaN."""
    groups = group(group_N)
    rows_QK = values_N.new_full((len(groups), int(groups.sizes_Q.max()), *values_N.shape[1:]), torch.nan)
    rows_QK[groups.index_N, _places(group_N)] = values_N
    return rows_QK


def by_rollout(rows_QK: Tensor, group_N: Tensor) -> Tensor:
    """[N, ...] the inverse of :func:`by_group`."""
    return rows_QK[group(group_N).index_N, _places(group_N)]


def _places(group_N: Tensor) -> Tensor:
    """[N] the place of each rollout within its group."""
    groups = group(group_N)
    order_N = torch.argsort(groups.index_N, stable=True)
    starts_Q = groups.sizes_Q.cumsum(0) - groups.sizes_Q
    places_N = torch.empty_like(order_N)
    places_N[order_N] = torch.arange(len(order_N), device=order_N.device) - starts_Q.repeat_interleave(groups.sizes_Q)
    return places_N
