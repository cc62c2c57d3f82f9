"""Advantages of rollouts, each against its own group: RLOO, Dr. GRPO, GRPO; and against a belief.

All take rewards [N] and group ids [N], and return [N] in the same order (float32, or float64 for float64 rewards),
without gradient. Without a belief, a group of one has nothing to compare itself with: its advantage is 0, never the
raw reward (verl returns the raw reward there). A group whose rewards are all equal has advantage exactly 0 then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from allotment.errors import ConfigError, InvalidInputError
from allotment.learning.groups import Groups, check_finite, check_per_rollout, group

AdvantageName = Literal["rloo", "dr_grpo", "grpo"]
"""What a reward is compared with, see :func:`advantage_estimator`."""
SecondLookName = Literal["unbiased", "pooled"]
"""How two rounds of a step are put together, see :func:`second_look_advantages`."""
AdvantageFunction = Callable[[Tensor, Tensor], Tensor]
"""``(rewards_N, group_ids_N) -> advantages_N``."""


def rloo_advantages(rewards_N: Tensor, group_ids_N: Tensor) -> Tensor:
    """Reward minus the mean reward of the *other* rollouts of the prompt: ``r_j - mean_{k != j} r_k``.

    The same as ``n / (n - 1) * (r_j - mean r)``; the mean over a group of advantage times score is an unbiased
    estimate of the policy gradient for every n >= 2.

    ``rewards_N``: [N] finite. ``group_ids_N``: [N] integer. Returns [N], in units of the reward.

    Raises :class:`~allotment.errors.InvalidInputError` for rewards that are not finite, or shapes that do not fit.
    Source: Ahmadian et al. 2024 (arXiv 2402.14740); VIP (arXiv 2602.01601) section 3.
    """
    groups, centred_N = _centred(rewards_N, group_ids_N)
    sizes_N = groups.sizes_per_rollout().to(centred_N.dtype)
    return centred_N * sizes_N / (sizes_N - 1).clamp(min=1)


def dr_grpo_advantages(rewards_N: Tensor, group_ids_N: Tensor) -> Tensor:
    """Reward minus the mean reward of the prompt, itself included: ``r_j - mean r``.

    ``(n - 1) / n`` times :func:`rloo_advantages`. With unequal groups the factor differs between prompts (2/3 at
    n = 3, 0.97 at n = 32) and re-weights them.

    ``rewards_N``: [N] finite. ``group_ids_N``: [N] integer. Returns [N], in units of the reward.

    Raises :class:`~allotment.errors.InvalidInputError` for rewards that are not finite, or shapes that do not fit.
    Source: Liu et al. 2025 (arXiv 2503.20783); VIP (arXiv 2602.01601) section 3.
    """
    return _centred(rewards_N, group_ids_N)[1]


def grpo_advantages(rewards_N: Tensor, group_ids_N: Tensor, epsilon: float = 1e-4) -> Tensor:
    """Standardised reward: ``(r_j - mean r) / (std r + epsilon)``.

    The standard deviation is the one with ``n - 1`` in the denominator (``torch.std``), as TRL and verl use it; the
    paper of GRPO does not say. ``epsilon`` is the one of TRL (verl: 1e-6). The division multiplies a prompt's weight
    by about ``1 / sqrt(p (1 - p))``; see ``docs/weights.md``.

    ``rewards_N``: [N] finite. ``group_ids_N``: [N] integer. Returns [N], without unit.

    Raises :class:`~allotment.errors.InvalidInputError` for rewards that are not finite, shapes that do not fit, or
    ``epsilon <= 0``. Source: Shao et al. 2024 (arXiv 2402.03300).
    """
    if not epsilon > 0:
        raise InvalidInputError(
            "epsilon is not positive.", got=epsilon, allowed="> 0", fix="use 1e-4 (TRL) or 1e-6 (verl)"
        )
    groups, centred_N = _centred(rewards_N, group_ids_N)
    std_Q = (groups.sums(centred_N**2) / (groups.sizes_Q - 1).clamp(min=1)).sqrt()
    return centred_N / (std_Q[groups.index_N] + epsilon)


def baseline_advantages(rewards_N: Tensor, group_ids_N: Tensor, baseline_N: Tensor, share_N: Tensor) -> Tensor:
    """Reward minus a baseline that mixes a belief with the other rollouts: ``r_j - w m - (1 - w) mean_{k != j} r_k``.

    The baseline of a rollout does not depend on the rollout itself, so the mean over a group of advantage times score
    is an unbiased estimate of the policy gradient for every n >= 1, whatever m and w, as long as both are chosen before
    the rollouts are drawn. A group of one has the baseline m whatever w. With w = 0 a larger group is
    :func:`rloo_advantages` to the last bit; with w = 1 all are ``r - m``.

    ``rewards_N``: [N] finite. ``group_ids_N``: [N] integer. ``baseline_N``: [N] m, finite, the belief about the mean
    reward of the rollout's prompt. ``share_N``: [N] w in [0, 1]. m and w are meant to be equal within a prompt, which
    is not checked. Returns [N], in units of the reward.

    Raises :class:`~allotment.errors.InvalidInputError` for rewards or baselines that are not finite, shares outside
    [0, 1], or shapes that do not fit.
    """
    rloo_N = rloo_advantages(rewards_N, group_ids_N)
    check_per_rollout("baselines", baseline_N, group_ids_N)
    check_per_rollout("shares", share_N, group_ids_N)
    check_finite("The baseline at index {}", baseline_N, fix="give the belief about the prompt's mean reward")
    if not ((share_N >= 0) & (share_N <= 1)).all():
        raise InvalidInputError(
            "A share of the baseline is outside its range.",
            got=f"shares from {float(share_N.min())} to {float(share_N.max())}",
            allowed="[0, 1]",
            fix="give 0 for the other rollouts alone, 1 for the belief alone",
        )
    is_alone_N = group(group_ids_N).sizes_per_rollout() == 1
    share_N = torch.where(is_alone_N, 1.0, share_N.detach().to(rloo_N.dtype))
    from_belief_N = rewards_N.detach().to(rloo_N.dtype) - baseline_N.detach().to(rloo_N.dtype)
    return share_N * from_belief_N + (1 - share_N) * rloo_N


_BY_NAME: dict[str, AdvantageFunction] = {
    "rloo": rloo_advantages,
    "dr_grpo": dr_grpo_advantages,
    "grpo": grpo_advantages,
}


def advantage_estimator(name: AdvantageName) -> AdvantageFunction:
    """The advantage function of that name.

    Raises :class:`~allotment.errors.ConfigError` for an unknown name.
    """
    if name not in _BY_NAME:
        raise ConfigError(
            "Unknown advantage.", got=repr(name), allowed=", ".join(_BY_NAME), fix="use 'rloo' when in doubt"
        )
    return _BY_NAME[name]


def _centred(rewards_N: Tensor, group_ids_N: Tensor) -> tuple[Groups, Tensor]:
    """The groups, and [N] the rewards minus the mean of their group, checked and in float32 or float64."""
    groups = group(group_ids_N)
    check_per_rollout("rewards", rewards_N, group_ids_N)
    check_finite("The reward at index {}", rewards_N, fix="score a failed verification 0, or leave the rollout out")
    dtype = torch.promote_types(rewards_N.dtype, torch.float32)
    return groups, groups.centred(rewards_N.detach().to(dtype))


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

    A prompt whose expected second round did not come at all is RLOO on round 0. Why the pooled group is biased, and
    that this is not while weights are fixed before round 0: ``docs/second_look.md``.

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
    _check_rounds(group_ids_N, rounds_N, expected_N)
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


def _check_rounds(group_ids_N: Tensor, rounds_N: Tensor, expected_N: Tensor) -> None:
    shapes, groups = [tuple(x.shape) for x in (group_ids_N, rounds_N, expected_N)], group(group_ids_N)
    if not shapes[0] == shapes[1] == shapes[2]:
        wrong, got = "Rounds and expected counts do not fit the group ids.", f"{shapes[1]}, {shapes[2]} for {shapes[0]}"
    elif not ((rounds_N == 0) | (rounds_N == 1)).all():
        wrong, got = "A round is neither 0 nor 1.", f"rounds from {int(rounds_N.min())} to {int(rounds_N.max())}"
    elif not (torch.isfinite(expected_N) & (expected_N >= 0)).all():
        wrong, got = "An expected count is no count.", f"least {expected_N.min()}"
    elif groups.centred(expected_N.double()).any():
        wrong, got = "The rollouts of one prompt differ in their expected count.", "two values for one group id"
    else:
        return
    raise InvalidInputError(
        wrong,
        got=got,
        allowed="all [N]: rounds 0 or 1, one finite expected count >= 0 for each prompt",
        fix="plan.round and plan.expected_later of the plan each rollout belongs to",
    )
