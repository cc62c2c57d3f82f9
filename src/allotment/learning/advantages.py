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
from allotment.learning.checks import check_finite, check_per_rollout
from allotment.learning.groups import Groups, group

AdvantageName = Literal["rloo", "dr_grpo", "grpo"]
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
