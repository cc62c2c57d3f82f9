"""Numbers of a batch of slime's samples: rollouts and their rewards, advantages, pass@k. All on ragged groups."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from allotment.errors import InvalidInputError, needs_extra
from allotment.integrations.advantages import GroupTerms, estimated
from allotment.types import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Rollouts:
    """The N rollouts behind S samples: several samples may be one rollout, cut into parts that are trained on."""

    row_S: IntArray
    """[S] the rollout of each sample."""
    groups: tuple[int, ...]
    """[N] slime's group index of each rollout."""
    rewards_N: FloatArray
    """[N] what slime trains on."""
    successes_N: FloatArray
    """[N] success as the reward itself says it; NaN where it does not."""
    lengths_N: IntArray
    """[N] tokens, at least 1."""


def rollouts_of(args: Any, samples: Sequence[Any], success_key: str | None) -> Rollouts:
    """The rollouts of slime's samples.

    Samples with the same group and ``rollout_id`` are one rollout.

    Raises:
        InvalidInputError: a sample has no finite reward, or samples of one rollout have different ones.
    """
    number: dict[Hashable, int] = {}
    rewards: list[float] = []
    successes: list[float] = []
    groups: list[int] = []
    lengths: list[int] = []
    rows = []
    for place, sample in enumerate(samples):
        own = (sample.group_index, "sample", place)
        key = own if sample.rollout_id is None else (sample.group_index, "rollout", sample.rollout_id)
        row = number.setdefault(key, len(number))
        reward = _reward(args, sample)
        if row == len(rewards):
            rewards.append(reward)
            successes.append(_success(sample.reward, success_key))
            groups.append(sample.group_index)
            lengths.append(0)
        elif rewards[row] != reward:
            raise _unlike(sample, rewards[row], reward)
        lengths[row] += int(sample.effective_response_length)
        rows.append(row)
    return Rollouts(
        np.array(rows, dtype=np.int64),
        tuple(groups),
        np.array(rewards, dtype=np.float64),
        np.array(successes, dtype=np.float64),
        np.maximum(np.array(lengths, dtype=np.int64), 1),
    )


def _reward(args: Any, sample: Any) -> float:
    try:
        reward = float(sample.get_reward_value(args))
    except (TypeError, ValueError, KeyError) as error:
        reward, sample_says = math.nan, f"{sample.reward!r} ({type(error).__name__}: {error})"
    else:
        sample_says = repr(sample.reward)
    if not math.isfinite(reward):
        raise InvalidInputError(
            "a rollout has no reward",
            got=f"sample {sample.index} of group {sample.group_index}, {sample.status}: {sample_says}",
            allowed="a finite number for every sample that is trained on",
            fix="put unfinished groups back with add_samples, let the reward function answer 0, or set --reward-key",
        )
    return reward


def _success(reward: Any, key: str | None) -> float:
    """What a reward that is a table says of success, a share of 1; NaN where it says nothing."""
    try:
        value = float(reward[key]) if key is not None and isinstance(reward, Mapping) else math.nan
    except (KeyError, TypeError, ValueError):
        return math.nan
    return value if 0 <= value <= 1 else math.nan


def _unlike(sample: Any, first: float, other: float) -> InvalidInputError:
    return InvalidInputError(
        "samples of one rollout have different rewards, and a planner learns from one reward a rollout",
        got=f"rollout {sample.rollout_id} of group {sample.group_index}: {first:g} and {other:g}",
        allowed="the same reward on all samples with the same rollout_id",
        fix="set the reward of the whole rollout on each of them in the generate function",
    )


def told_rewards(rollouts: Rollouts) -> FloatArray:
    """[N] success where the reward says it, else the reward."""
    return np.where(np.isnan(rollouts.successes_N), rollouts.rewards_N, rollouts.successes_N)


def group_rewards(rewards_N: FloatArray, group_N: IntArray, terms: GroupTerms, estimator: str, std: bool) -> FloatArray:
    """[N] rewards within their groups, before any weight of prompts.

    Args:
        rewards_N: [N] finite.
        group_N: [N] row of each rollout's group in ``terms``.
        terms: of the groups; baselines stand before the estimator.
        estimator: ``"slime"``: as slime does it, to its last bit where groups are equal; or ``"rloo"``.
        std: with ``"slime"``, whether its rewards are divided by the standard deviation.
    """
    if estimator == "slime" and not terms.is_believed_Q.any():
        return slime_rewards(rewards_N, group_N, std)
    return estimated(rewards_N, group_N, "rloo" if estimator == "rloo" else "dr_grpo", terms)


def slime_rewards(rewards_N: FloatArray, group_N: IntArray, std: bool) -> FloatArray:
    """[N] what slime's own normalisation gives groups of one size, for groups of any: the groups of each size are a
    matrix, which it centres, and with ``std`` divides by the standard deviation + 1e-6, in single precision. 0 for a
    group of one.
    """
    with needs_extra("train"):
        import torch
    sizes_Q, order_N = np.bincount(group_N), np.argsort(group_N, kind="stable")
    size_N, result_N = sizes_Q[group_N[order_N]], np.zeros(len(rewards_N))
    for size in np.unique(sizes_Q[sizes_Q > 1]):
        rows = order_N[size_N == size]
        rewards = torch.tensor(rewards_N[rows].tolist(), dtype=torch.float).reshape(-1, int(size))
        rewards = rewards - rewards.mean(dim=-1, keepdim=True)
        if std:
            rewards = rewards / (rewards.std(dim=-1, keepdim=True) + 1e-6)
        result_N[rows] = rewards.flatten().numpy()
    return result_N


def pass_rates(is_right_N: npt.NDArray[np.bool_], group_N: IntArray, largest: int) -> dict[str, float]:
    """``pass@k`` for k = 1, 2, 4, ... up to ``largest``, as far as every prompt has k rollouts.

    The unbiased estimate of each prompt by its own number of rollouts, 1 - C(n - c, k) / C(n, k), averaged over
    prompts. With a prompt of fewer than k rollouts there is none.
    """
    sizes_Q = np.bincount(group_N)
    right_Q = np.bincount(group_N[is_right_N], minlength=len(sizes_Q))
    rates = {}
    k = 1
    while k <= min(largest, int(sizes_Q.min())):
        missed = [math.comb(int(n - c), k) / math.comb(int(n), k) for n, c in zip(sizes_Q, right_Q, strict=True)]
        rates[f"pass@{k}"] = 1.0 - float(np.mean(missed))
        k *= 2
    return rates
