"""A plan and a selection in a trainer: asked for, and what they mean for a loss that averages over all rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from allotment.errors import RewardMismatchError
from allotment.planning import Planner
from allotment.planning.shortlist import shortlist
from allotment.prompts.ids import canonical_ids
from allotment.selection import Scored, Selection, Selector, check_selection
from allotment.types import FloatArray, IntArray, Plan, PromptId, PromptIds

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


def selected_advantages(
    selection: Selection,
    batch: Batch,
    estimate: Callable[[FloatArray, npt.NDArray[np.bool_]], FloatArray],
) -> FloatArray:
    """[N] advantages of a selection: its own, or the estimator's within whole groups or what is kept of them.

    ``estimate(rewards_N, among_N)`` gives the estimator's advantages where ``among_N`` is True.
    """
    if selection.advantages_N is not None:
        return selection.advantages_N
    if selection.rewards_N is None and selection.baseline == "generated":
        return batch.advantages_N
    rewards_N = batch.rewards_N if selection.rewards_N is None else selection.rewards_N
    everything_N = np.ones(len(rewards_N), dtype=np.bool_)
    return estimate(rewards_N, selection.is_kept if selection.baseline == "kept" else everything_N)


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


def beliefs(plan: Plan, prompt_ids: tuple[PromptId, ...]) -> tuple[FloatArray, FloatArray] | None:
    """[Q] twice, baseline and share of each prompt with rollouts; None where the plan has none."""
    if plan.baselines is None:
        return None
    shares_Q = np.ones(len(plan.prompt_ids)) if plan.baseline_shares is None else plan.baseline_shares
    return of_prompts(plan, plan.baselines, prompt_ids), of_prompts(plan, shares_Q, prompt_ids)


def ask(
    planner: Planner, prompt_ids: PromptIds, *, budget: int | None = None, trained_prompts: int | None = None
) -> Plan:
    """The plan for a batch, refused where its counts cannot be used; of a planner that was checked before.

    Args:
        planner: of one round.
        prompt_ids: [Q] distinct ids.
        budget: rollouts of this batch, if not the planner's own.
        trained_prompts: prompts that get rollouts, those of largest expected reward variance; the others are not in the
            plan. A planner that leaves out prompts itself is asked for all.

    Raises:
        RewardMismatchError: a planner that spends its budget exactly did not, or a count is 1 without a baseline: a
            group of one has no advantage.
    """
    ids = canonical_ids(prompt_ids)
    offered = ids if trained_prompts is None else shortlist(planner, list(ids), trained_prompts)
    plan = planner.ask(offered, budget=budget)
    has_lone = bool((plan.counts == 1).any()) and plan.baselines is None
    if has_lone or (budget is not None and planner.contract.is_exact and plan.budget != budget):
        planner.cancel(plan)
        raise RewardMismatchError(
            "the plan cannot be carried out",
            got=f"{plan.budget} rollouts, counts from {plan.counts.min()} to {plan.counts.max()}",
            allowed=f"{'any sum' if budget is None else budget}, each count 0 or from 2 on",
            fix="use a planner that spends its budget exactly, with a lower bound of 2 or more",
        )
    return plan
