"""JSPO: a baseline that shrinks the mean of a prompt's other rollouts towards the mean of the other prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from allotment.learning.advantages import baseline_advantages, rloo_advantages
from allotment.learning.groups import Groups, group
from allotment.learning.objective import ObjectiveEntry, ObjectiveRow


@dataclass(frozen=True)
class JSPO:
    """James-Stein baselines (arXiv 2511.03710): ``b = (1 - lambda) leave-one-out mean + lambda mean of other prompts``.

    Neither the mean of the other prompts nor lambda sees a reward of the own prompt, and the leave-one-out mean does
    not see that of the rollout: the gradient is unbiased, for groups of one too. No belief is kept between steps.

    With Q prompts, v the variance of the leave-one-out mean and s that of the true means between prompts, the baseline
    nearest to the true mean has ``lambda = (Q - 1) / Q * v / (v + s)``. From the formula alone (the code has no
    licence); how v and s are estimated, for groups of unequal size too, is ours: see :func:`shrinkage`.
    """

    def advantages(self, rewards: Mapping[str, Tensor], group_ids_N: Tensor, lengths_N: Tensor | None = None) -> Tensor:
        """[N] advantages of the sum of the named rewards [N] each, within groups [N]; no gradient.

        Raises:
            InvalidInputError: a reward is not finite, or shapes do not fit.
        """
        total_N = torch.stack(list(rewards.values())).sum(0)
        rloo_advantages(total_N, group_ids_N)  # checks
        groups = group(group_ids_N)
        others_Q, shares_Q = shrinkage(total_N.detach().double(), groups)
        beliefs = others_Q[groups.index_N], shares_Q[groups.index_N]
        return baseline_advantages(total_N, group_ids_N, *beliefs)


def shrinkage(rewards_N: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """[Q] the mean of the other prompts' mean rewards, 0 without others; [Q] lambda, in [0, 1].

    All from the other prompts: the variance of a reward is the mean of their unbiased sample variances (those with two
    rollouts or more), v is that over n - 1, and s is the variance between their mean rewards less what noise adds to
    it, at least 0. lambda is 0, which is RLOO, where fewer than two other prompts tell s, or none tells v.
    """
    q, sizes_Q = len(groups), groups.sizes_Q.double()
    means_Q = groups.means(rewards_N)
    varied_Q = (sizes_Q > 1).double()
    variances_Q = groups.sums(groups.centred(rewards_N) ** 2) / (sizes_Q - 1).clamp(min=1)
    others_Q = _without_own(means_Q) / max(q - 1, 1)
    if q < 3:
        return others_Q, torch.zeros_like(others_Q)
    noise_Q = _without_own(variances_Q) / _without_own(varied_Q).clamp(min=1)
    spread_Q = (_without_own(means_Q**2) - (q - 1) * others_Q**2) / (q - 2)
    s_Q = (spread_Q - noise_Q * _without_own(1 / sizes_Q) / (q - 1)).clamp(min=0)
    v_Q = noise_Q / (sizes_Q - 1).clamp(min=1)
    return others_Q, (q - 1) / q * torch.where(v_Q > 0, v_Q / (v_Q + s_Q).clamp(min=1e-300), 0.0)


def _without_own(values_Q: Tensor) -> Tensor:
    """[Q] the sum of the values of the other prompts."""
    return values_Q.sum() - values_Q


ENTRY = ObjectiveEntry(
    "advantages",
    JSPO,
    row=ObjectiveRow(
        "advantage: reward less a mix of the other rollouts' mean and the mean of the other prompts of the batch, by "
        "James and Stein's rule",
        "`rloo` for prompts that differ much, or for many rollouts",
        "arXiv 2511.03710",
        "from the formula, the code has no licence; how the variances within and between prompts are estimated",
    ),
)
