"""Named rewards of the lab's rollouts: correctness, and easier ones that may be wanted beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from allotment.lab.config import RewardName
from allotment.lab.generation import Lab, Rollouts

VOWELS = frozenset("aeiou")


def named_rewards(names: Sequence[RewardName], lab: Lab, rollouts: Rollouts, length_target: int) -> dict[str, Tensor]:
    """Each reward by its name, [N] in {0, 1}.

    ``correctness`` is the verified answer; ``format`` a completion that ends in time, has the regime's form, and has a
    vowel in its scratchpad; ``length`` at most ``length_target`` tokens, end token included.

    The form alone would be constant: the shipped policy keeps it in all but 1 of 3000 rollouts, and writes a vowel in
    two of three.
    """
    made = {
        "correctness": lambda: torch.from_numpy(rollouts.rewards_N).float(),
        "format": lambda: torch.tensor(_has_format(lab, rollouts)).float(),
        "length": lambda: (rollouts.mask_NT.sum(1) <= length_target).float(),
    }
    return {name: made[name]() for name in names}


def _has_format(lab: Lab, rollouts: Rollouts) -> list[bool]:
    free = lab.regime.scratchpad
    return [
        answer is not None and (not free or not VOWELS.isdisjoint(lab.tokenizer.decode(tokens[:free])))
        for answer, tokens in zip(rollouts.answers_N, rollouts.tokens_NT.tolist(), strict=True)
    ]
