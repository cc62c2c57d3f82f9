"""Rollouts with the verifier's labels, of prompts that are not trained on: what a learnt reward is fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from allotment.lab.generation import Lab, seeded_generator
from allotment.tasks.mixture import Problem
from allotment.types import FloatArray, IntArray

Pooling = Literal["last", "mean", "choice"]
Compare = Literal["prompt", "any", "both"]

_TOGETHER = 256
"""Prompts whose rollouts are drawn at once."""


@dataclass(frozen=True)
class Labelled:
    """N rollouts with the verifier's labels and the hidden states they have under the policy that drew them."""

    states_NLH: Tensor
    """[N, L, H]"""
    right_N: FloatArray
    """[N] 1.0 where the verifier agrees."""
    prompt_N: IntArray
    """[N] number of the prompt."""

    def take(self, chosen_N: npt.NDArray[np.bool_]) -> Labelled:
        """The rollouts where ``chosen_N`` [N] is True."""
        states_NLH = self.states_NLH[torch.from_numpy(chosen_N)]
        return Labelled(states_NLH, self.right_N[chosen_N], self.prompt_N[chosen_N])


def labelled_rollouts(lab: Lab, problems: Sequence[Problem], n: int, pooling: Pooling, seed: int) -> Labelled:
    """``n`` rollouts of each problem; a function of the policy and the seed."""
    states, right, prompts = [], [], []
    for first in range(0, len(problems), _TOGETHER):
        part = problems[first : first + _TOGETHER]
        rollouts = lab.rollouts(part, np.full(len(part), n), seeded_generator(seed, 8, first))
        states.append(lab.representations(part, rollouts, pooling))
        right.append(rollouts.rewards_N)
        prompts.append(rollouts.group_N.numpy() + first)
    return Labelled(torch.cat(states), np.concatenate(right), np.concatenate(prompts))


def labelled_pairs(labelled: Labelled, compare: Compare, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Hidden states of right rollouts and of wrong ones to compare, both [P, L, H].

    ``prompt``: of one prompt each. ``any``: of any two prompts. ``both``: half of the pairs so, half so; but for this
    no rollout stands in two pairs. ``most``: pairs that are kept, at random.
    """
    if compare == "both":
        within = labelled_pairs(labelled, "prompt", most // 2, seed)
        between = labelled_pairs(labelled, "any", most - most // 2, seed)
        return torch.cat([within[0], between[0]]), torch.cat([within[1], between[1]])
    random = np.random.default_rng([seed, 8])
    order_N = random.permutation(len(labelled.right_N))
    groups = [order_N]
    if compare == "prompt":
        groups = [order_N[labelled.prompt_N[order_N] == q] for q in np.unique(labelled.prompt_N)]
    chosen, rejected = [], []
    for rows in groups:
        right, wrong = (rows[labelled.right_N[rows] == label] for label in (1, 0))
        pairs = min(len(right), len(wrong))
        chosen.append(right[:pairs])
        rejected.append(wrong[:pairs])
    kept_P = random.permutation(sum(map(len, chosen)))[:most]
    right_P, wrong_P = np.concatenate(chosen)[kept_P], np.concatenate(rejected)[kept_P]
    return labelled.states_NLH[torch.from_numpy(right_P)], labelled.states_NLH[torch.from_numpy(wrong_P)]


def balanced(problems: Sequence[Problem], n: int, seed: int) -> list[Problem]:
    """``n`` of the problems, at random, as many of each level as there are; of small levels all."""
    place_of: dict[str, int] = {}
    ranked: list[tuple[int, int]] = []
    for i in np.random.default_rng([seed, 9]).permutation(len(problems)).tolist():
        place = place_of.get(problems[i].level, 0)
        place_of[problems[i].level] = place + 1
        ranked.append((place, i))
    return [problems[i] for _, i in sorted(ranked, key=lambda entry: entry[0])[:n]]
