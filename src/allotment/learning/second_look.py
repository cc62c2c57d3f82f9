"""Advantages for a step whose rollouts come in two rounds, the second allocated by what the first brought.

A prompt's pooled group is biased then: its size depends on its rewards. With weights fixed before round 0 the gradient
stays unbiased. Derivation and measured bias: ``docs/second_look.md``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from allotment.errors import ConfigError, InvalidInputError
from allotment.learning.advantages import rloo_advantages
from allotment.learning.groups import group

SecondLookName = Literal["unbiased", "pooled"]


def second_look_advantages(
    rewards_N: Tensor,
    group_ids_N: Tensor,
    rounds_N: Tensor,
    expected_N: Tensor,
    estimator: SecondLookName = "unbiased",
) -> Tensor:
    """Advantages of both rounds together, [N]; use them like :func:`~allotment.learning.rloo_advantages`.

    With the weights of ``rollout_weights(..., "prompt_mean")`` the estimate of a prompt is ``w G_0 + (1 - w) G_1``: a
    mean over each round of ``(r_j - b_j) s_j``, with w and the mixture in the baseline b_j (own round without j, other
    round) made from m, the rollouts of round 0, and e, the *expected* rollouts of round 1. Where round 1 turns out to
    have e rollouts, this is RLOO on the pooled group. ``"pooled"`` is RLOO on the pooled group always: biased.

    A prompt whose expected second round did not come at all is RLOO on round 0.

    ``rewards_N``: [N] finite. ``group_ids_N``: [N] integer. ``rounds_N``: [N] integer, 0 or 1. ``expected_N``: [N] e of
    the rollout's prompt, ``plan.expected_later``; the same for all rollouts of a prompt, >= 0.

    Raises :class:`~allotment.errors.InvalidInputError` for shapes or values that do not fit,
    :class:`~allotment.errors.ConfigError` for an unknown estimator.
    """
    pooled_N = rloo_advantages(rewards_N, group_ids_N)  # also checks rewards and ids
    if estimator == "pooled":
        return pooled_N
    if estimator != "unbiased":
        raise ConfigError(
            "unknown estimator", got=repr(estimator), allowed="'unbiased', 'pooled'", fix="use 'unbiased'"
        )
    _check(group_ids_N, rounds_N, expected_N)
    groups, is_later_N = group(group_ids_N), rounds_N == 1
    index_N = groups.index_N
    low_Q = pooled_N.new_full((len(groups),), torch.inf).scatter_reduce(0, index_N, rewards_N.to(pooled_N), "amin")
    r_N = rewards_N.to(pooled_N) - low_Q[index_N]  # equal rewards give exactly 0
    m_N, k_N = (groups.sums(part.to(r_N))[index_N] for part in (~is_later_N, is_later_N))
    early_N, late_N = (groups.sums(torch.where(part, r_N, 0.0))[index_N] for part in (~is_later_N, is_later_N))
    e_N = torch.where(k_N > 0, expected_N.to(r_N), 0.0)
    others_N = (m_N + e_N - 1).clamp(min=1)
    from_early_N = torch.where(is_later_N, _share(m_N / others_N, m_N > 0, k_N > 1), 0.0)
    from_early_N = torch.where(is_later_N, from_early_N, _share((m_N - 1) / others_N, m_N > 1, k_N > 0))
    left_out_N = torch.where(is_later_N, 0.0, r_N)
    mean_early_N = (early_N - left_out_N) / (m_N - (~is_later_N).to(r_N)).clamp(min=1)
    mean_late_N = (late_N - (r_N - left_out_N)) / (k_N - is_later_N.to(r_N)).clamp(min=1)
    baseline_N = from_early_N * mean_early_N + (1 - from_early_N) * mean_late_N
    weight_N = torch.where(is_later_N, e_N / k_N.clamp(min=1), 1.0) / (m_N + e_N).clamp(min=1)
    sizes_N = m_N + k_N
    return torch.where(sizes_N > 1, sizes_N * weight_N * (r_N - baseline_N), 0.0)


def _share(share_N: Tensor, early_N: Tensor, late_N: Tensor) -> Tensor:
    """The share of round 0 in a baseline: ``share_N`` where both rounds have something to give, else all of the one."""
    return torch.where(late_N, torch.where(early_N, share_N.clamp(max=1), 0.0), 1.0)


def _check(group_ids_N: Tensor, rounds_N: Tensor, expected_N: Tensor) -> None:
    shapes = [tuple(x.shape) for x in (group_ids_N, rounds_N, expected_N)]
    if not shapes[0] == shapes[1] == shapes[2]:
        wrong, got = "Rounds and expected counts do not fit the group ids.", f"{shapes[1]}, {shapes[2]} for {shapes[0]}"
    elif not ((rounds_N == 0) | (rounds_N == 1)).all():
        wrong, got = "A round is neither 0 nor 1.", f"rounds from {int(rounds_N.min())} to {int(rounds_N.max())}"
    elif not (torch.isfinite(expected_N) & (expected_N >= 0)).all():
        wrong, got = "An expected count is no count.", f"least {expected_N.min()}"
    elif _differs(expected_N.double(), group_ids_N):
        wrong, got = "The rollouts of one prompt differ in their expected count.", "two values for one group id"
    else:
        return
    raise InvalidInputError(
        wrong,
        got=got,
        allowed="all [N]: rounds 0 or 1, one finite expected count >= 0 for each prompt",
        fix="plan.round and plan.expected_later of the plan each rollout belongs to",
    )


def _differs(values_N: Tensor, group_ids_N: Tensor) -> bool:
    """Whether two rollouts of a group have different values."""
    groups = group(group_ids_N)
    last_Q = values_N.new_zeros(len(groups)).index_put((groups.index_N,), values_N)
    return bool((values_N != last_Q[groups.index_N]).any())
