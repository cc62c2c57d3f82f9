"""Advantages of a batch of ragged groups, in numpy, as the plans of its groups ask.

For loss functions that average over all rollouts. TRL's arithmetic, to its last bit:
:mod:`allotment.integrations.trl.advantages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from allotment.errors import needs_extra
from allotment.integrations.carrying import Weighting, beliefs, prompt_factors
from allotment.types import FloatArray, IntArray, Plan, PromptId


@dataclass(frozen=True, eq=False)
class GroupTerms:
    """What the plans of Q groups ask of their advantages."""

    factors_Q: FloatArray
    """[Q] factor of each group; 1 where its plan has no weights."""
    is_believed_Q: npt.NDArray[np.bool_]
    """[Q] whether the plan has a baseline for the group."""
    baselines_Q: FloatArray
    """[Q] mean reward believed before the step."""
    shares_Q: FloatArray
    """[Q] weight of the baseline against the other rollouts of the group."""


def group_terms(prompt_ids: Sequence[PromptId], plans: Sequence[Plan | None]) -> GroupTerms:
    """The terms of Q groups.

    Args:
        prompt_ids: [Q] the prompt of each group.
        plans: [Q] the plan that each group is of, None where that is not known; several plans may be in one batch.
    """
    terms = GroupTerms(*(np.full(len(plans), usual) for usual in (1.0, False, 0.0, 1.0)))
    groups_of: dict[int, list[int]] = {}
    for group, plan in enumerate(plans):
        groups_of.setdefault(id(plan), []).append(group)
    for groups in groups_of.values():
        if (plan := plans[groups[0]]) is None:
            continue
        ids = tuple(prompt_ids[group] for group in groups)
        factors_Q, believed = prompt_factors(plan, ids), beliefs(plan, ids)
        if factors_Q is not None:
            terms.factors_Q[groups] = factors_Q
        if believed is not None:
            terms.is_believed_Q[groups] = True
            terms.baselines_Q[groups], terms.shares_Q[groups] = believed
    return terms


def estimated(
    rewards_N: FloatArray,
    group_N: IntArray,
    estimator: str,
    terms: GroupTerms,
    among_N: npt.NDArray[np.bool_] | None = None,
) -> FloatArray:
    """[N] advantages within groups: against the baselines of the plans, or as the estimator has it without one.

    Args:
        rewards_N: [N] finite.
        group_N: [N] row of each rollout's group in ``terms``.
        estimator: ``"rloo"``, ``"dr_grpo"`` or ``"grpo"``.
        terms: of the groups.
        among_N: [N] which rollouts are compared with each other; the others get 0. None: all.

    Raises:
        InvalidInputError: no rollout, or a reward or baseline is not finite.
        ConfigError: an unknown estimator.
    """
    with needs_extra("train"):
        import torch

        from allotment.learning.advantages import advantage_estimator, baseline_advantages
    estimate = advantage_estimator(estimator)  # type: ignore[arg-type]
    if among_N is not None:
        result_N = np.zeros(len(rewards_N))
        if among_N.any():
            result_N[among_N] = estimated(rewards_N[among_N], group_N[among_N], estimator, terms)
        return result_N
    rewards, groups, believed_N = torch.as_tensor(rewards_N), torch.as_tensor(group_N), terms.is_believed_Q[group_N]
    if not believed_N.any():
        return np.asarray(estimate(rewards, groups).numpy())
    columns = [torch.as_tensor(values_Q[group_N]) for values_Q in (terms.baselines_Q, terms.shares_Q)]
    mixed_N = baseline_advantages(rewards, groups, *columns).numpy()
    return np.asarray(mixed_N if believed_N.all() else np.where(believed_N, mixed_N, estimate(rewards, groups).numpy()))


def weighted(advantages_N: FloatArray, group_N: IntArray, weighting: Weighting) -> FloatArray:
    """[N] advantages such that in a mean over all rollouts every prompt counts the same; or as they are.

    ``"prompt"`` multiplies by ``mean(n) / n_q``, 1 where groups are equal. Groups are numbered from 0 without gaps.
    """
    if weighting == "rollout":
        return advantages_N
    sizes_Q = np.bincount(group_N)
    return np.asarray(advantages_N * len(group_N) / (len(sizes_Q) * sizes_Q[group_N]), dtype=np.float64)
