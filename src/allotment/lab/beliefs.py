"""What a plan says of its prompts beside counts, spread over their rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from allotment.lab.generation import Rollouts
from allotment.learning import group
from allotment.types import FloatArray, Plan


@dataclass(frozen=True)
class Beliefs:
    """What a plan says of each rollout's prompt beside its count; None where it says nothing."""

    factor_N: torch.Tensor | None = None
    """[N] factor in the loss."""
    baseline_N: torch.Tensor | None = None
    """[N] mean reward believed before the step."""
    share_N: torch.Tensor | None = None
    """[N] weight of that against the other rollouts."""

    @classmethod
    def of(cls, plan: Plan, row_of: Mapping[str, int], group_N: torch.Tensor) -> Beliefs:
        """Those of a plan; ``group_N`` are rows of the batch."""
        shares_Q = plan.baseline_shares
        if plan.baselines is not None and shares_Q is None:
            shares_Q = np.ones(len(plan.prompt_ids))
        factors_Q = None if plan.weights is None else plan.loss_factors(len(group(group_N)))
        values = (factors_Q, plan.baselines, shares_Q)
        return cls(*(None if v_Q is None else _spread(v_Q, plan, row_of, group_N) for v_Q in values))

    def take(self, rows_N: torch.Tensor) -> Beliefs:
        """Those of some rollouts."""
        return Beliefs(*(None if v is None else v[rows_N] for v in (self.factor_N, self.baseline_N, self.share_N)))

    def weighted(self, weights_NT: torch.Tensor) -> torch.Tensor:
        """[N, T] weights of tokens in the loss, times each prompt's factor."""
        return weights_NT if self.factor_N is None else weights_NT * self.factor_N[:, None]


NO_BELIEFS = Beliefs()
"""Of a plan that says nothing beside its counts."""


def second_look(
    plans: list[Plan], parts: list[Rollouts], row_of: Mapping[str, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round and expected later rollouts of each rollout, both [N]."""
    expected_Q = plans[0].expected_later
    assert expected_Q is not None
    rounds_N = torch.cat([torch.full_like(p.group_N, plan.round) for plan, p in zip(plans, parts, strict=True)])
    return rounds_N, _spread(expected_Q.astype(np.float64), plans[0], row_of, torch.cat([p.group_N for p in parts]))


def _spread(values_Q: FloatArray, plan: Plan, row_of: Mapping[str, int], group_N: torch.Tensor) -> torch.Tensor:
    """[N] the value of each rollout's prompt, 0 for prompts that are not in the plan."""
    by_row = torch.zeros(len(row_of), dtype=torch.float64)
    by_row[[row_of[str(i)] for i in plan.prompt_ids]] = torch.from_numpy(values_Q)
    return by_row[group_N].float()
