"""What a plan and a selection mean for advantages, in a trainer whose loss averages over all rows of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from allotment.selection import Scored, Selection, Selector, check_selection
from allotment.types import FloatArray, IntArray, Plan, PromptId

Weighting = Literal["prompt", "rollout"]
"""Whether every prompt, or every rollout of a batch, counts the same in the loss."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The N verified rollouts of a plan."""

    prompt_ids: tuple[PromptId, ...]
    """[Q] the prompts with rollouts."""
    group_N: IntArray
    """[N] row of each rollout's prompt."""
    rewards_N: FloatArray
    """[N] finite."""
    advantages_N: FloatArray
    """[N] within whole groups."""
    lengths_N: IntArray
    """[N] completion tokens."""
    truncated_N: npt.NDArray[np.bool_] | None = None
    """[N] whether a rollout was cut at the length limit; None where that is not known."""


def selected(selector: Selector, batch: Batch, *, step: int, first_number: int, progress: float = 0.0) -> Selection:
    """What a selector keeps of a batch.

    ``step`` counts from 0, ``first_number`` the rollouts generated before this step: random choices depend on both.
    """
    n = len(batch.group_N)
    unknown_N = np.zeros(n)
    scored = Scored(
        step=step + 1,
        progress=progress,
        prompt_ids=batch.prompt_ids,
        rows_N=batch.group_N,
        rewards_N=batch.rewards_N,
        advantages_N=batch.advantages_N,
        lengths_N=batch.lengths_N,
        truncated_N=np.zeros(n, dtype=np.bool_) if batch.truncated_N is None else batch.truncated_N,
        entropies_N=unknown_N,
        ages_Q=np.zeros(len(batch.prompt_ids), dtype=np.int64),
        numbers_N=first_number + np.arange(n),
        clip_fractions_N=unknown_N,
    )
    return check_selection(selector.select(scored), scored)


def row_factors(group_N: IntArray, weighting: Weighting, selection: Selection | None = None) -> FloatArray:
    """[N] what each advantage is multiplied with, so that a mean over all N rows is the loss that is meant.

    Without a selection ``N / (Q n_q)``, so that prompts count alike, or 1. With one its weights, and, where it says so,
    the kept rollouts in place of all in N, Q and n_q.
    """
    among_N = np.ones(len(group_N), dtype=np.bool_)
    weights_N = np.ones(len(group_N))
    if selection is not None:
        weights_N = selection.weights_N
        among_N = selection.is_kept if selection.denominator == "kept" else among_N
    sizes_Q = np.bincount(group_N[among_N], minlength=int(group_N.max(initial=-1)) + 1)
    if weighting == "rollout":
        return np.asarray(weights_N * len(group_N) / max(int(among_N.sum()), 1), dtype=np.float64)
    groups = max(int((sizes_Q > 0).sum()), 1)
    return np.asarray(weights_N * len(group_N) / (groups * np.maximum(sizes_Q, 1)[group_N]), dtype=np.float64)


def prompt_factors(plan: Plan, prompt_ids: tuple[PromptId, ...]) -> FloatArray | None:
    """[Q] factor of each prompt with rollouts, from the plan's weights; None where it has none."""
    factors = plan.loss_factors(len(prompt_ids))
    return None if factors is None else of_prompts(plan, factors, prompt_ids)


def of_prompts(plan: Plan, values: FloatArray, prompt_ids: tuple[PromptId, ...]) -> FloatArray:
    """[Q] the values of a plan's prompts, in the order of ``prompt_ids``."""
    value_of = dict(zip(plan.prompt_ids, values.tolist(), strict=True))
    return np.array([value_of[prompt] for prompt in prompt_ids])
