"""Exact chances where a prompt has many right answers: of each of them, and of how many different ones are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from allotment.tasks.countdown import solutions_of
from allotment.tasks.mixture import Problem

if TYPE_CHECKING:
    from allotment.lab.generation import Lab

DISTINCT_IN = 16
"""Rollouts of a prompt among which different right answers are counted."""
_ROWS = 2048


@torch.no_grad()
def solution_chances(lab: Lab, problems: Sequence[Problem]) -> list[Mapping[str, float]]:
    """For each problem, the probability that a rollout is a right answer of each form; they sum to the success."""
    found: list[dict[str, float]] = [{} for _ in problems]
    answers = [(q, *answer) for q, problem in enumerate(problems) for answer in solutions_of(problem).items()]
    for first in range(0, len(answers), _ROWS):
        part = answers[first : first + _ROWS]
        low, high = part[0][0], part[-1][0]
        tokens_NT = lab.tokenizer.padded([lab.tokenizer.encode_answer(text) for _, text, _ in part])
        group_N = torch.tensor([q - low for q, *_ in part])
        log_p_NT = lab.log_probs(problems[low : high + 1], group_N, tokens_NT, tokens_NT != lab.tokenizer.pad)
        for (q, _, form), chance in zip(part, log_p_NT.sum(1).double().exp().tolist(), strict=True):
            found[q][form] = found[q].get(form, 0.0) + chance
    return list(found)


def expected_distinct(chances: Mapping[str, float], rollouts: int = DISTINCT_IN) -> float:
    """How many forms ``rollouts`` independent rollouts are expected to hold: ``sum 1 - (1 - p)^n``."""
    return sum(1 - (1 - chance) ** rollouts for chance in chances.values())


def many_answers(lab: Lab, name: str, problems: Sequence[Problem]) -> dict[str, Any]:
    """Mean success probability, and mean number of different right answers in 16 rollouts, of the set ``name``."""
    chances = solution_chances(lab, problems)
    return {
        f"{name}_success": float(np.mean([sum(own.values()) for own in chances])),
        f"{name}_distinct": float(np.mean([expected_distinct(own) for own in chances])),
    }
