"""Named rewards of the lab's rollouts: correctness, and easier ones that may be wanted beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from allotment.config import RewardName
from allotment.lab.generation import Lab, Rollouts


def named_rewards(names: Sequence[RewardName], lab: Lab, rollouts: Rollouts, length_target: int) -> dict[str, Tensor]:
    """Each reward by its name, [N] in {0, 1}.

    ``correctness`` is the verified answer; ``format`` a completion that ends in time and has the regime's form;
    ``length`` at most ``length_target`` tokens, end token included.
    """
    made = {
        "correctness": lambda: torch.from_numpy(rollouts.rewards_N).float(),
        "format": lambda: torch.tensor([answer is not None for answer in rollouts.answers_N]).float(),
        "length": lambda: (rollouts.mask_NT.sum(1) <= length_target).float(),
    }
    return {name: made[name]() for name in names}
