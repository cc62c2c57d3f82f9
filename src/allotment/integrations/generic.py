"""For a trainer without an adapter: three calls between its data loader, its generation and its loss.

    asked = plan(planner, prompt_ids, budget=4096)
    rows = expand(prompts, counts_of(asked, prompt_ids))    # as many copies of each prompt as it has rollouts
    ...                                                     # generate and verify: one reward a row
    advantages = group_advantages(rewards, group_ids, "rloo")
    planner.tell(asked, rewards, group_ids, allow_missing_groups=True)

Recipes for slime, OpenRLHF, AReaL, SkyRL, NeMo-RL and prime-rl: docs/other_trainers.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from allotment.errors import ConfigError, InvalidInputError, RewardMismatchError, needs_extra
from allotment.integrations.capabilities import GENERIC
from allotment.integrations.carrying import Weighting, of_prompts, prompt_factors
from allotment.planning import Planner
from allotment.planning.contract import check_planner
from allotment.planning.shortlist import shortlist
from allotment.prompts.ids import canonical_ids
from allotment.types import FloatArray, Plan, PromptId, PromptIds

Row = TypeVar("Row")


def plan(
    planner: Planner, prompt_ids: PromptIds, *, budget: int | None = None, trained_prompts: int | None = None
) -> Plan:
    """Ask for the counts of a batch, and refuse what a trainer cannot use.

    Args:
        planner: any planner of one round, whose selections and advantages, if it has any of its own, are not left out:
            one that has them is refused.
        prompt_ids: [Q] distinct ids.
        budget: rollouts of this batch, if not the planner's own.
        trained_prompts: prompts that get rollouts, those of largest expected reward variance; the others are not in the
            plan. A planner that leaves out prompts itself is asked for all.

    Raises:
        ConfigError: the planner needs more than these functions carry out.
        RewardMismatchError: the counts do not sum to the budget, or one is 1 without a baseline: a group of one has no
            advantage.
    """
    check_planner(planner, GENERIC)
    ids = canonical_ids(prompt_ids)
    offered = ids if trained_prompts is None else shortlist(planner, list(ids), trained_prompts)
    asked = planner.ask(offered, budget=budget)
    has_lone = bool((asked.counts == 1).any()) and asked.baselines is None
    if has_lone or (budget is not None and asked.budget != budget):
        planner.cancel(asked)
        raise RewardMismatchError(
            "the plan cannot be carried out",
            got=f"{asked.budget} rollouts, counts from {asked.counts.min()} to {asked.counts.max()}",
            allowed=f"{'any sum' if budget is None else budget}, each count 0 or from 2 on",
            fix="use a planner that spends its budget exactly, with a lower bound of 2 or more",
        )
    return asked


def counts_of(asked: Plan, prompt_ids: Iterable[PromptId]) -> list[int]:
    """The count of each prompt, in the order given; 0 for one the plan leaves out."""
    count_of = dict(zip(asked.prompt_ids, asked.counts.tolist(), strict=True))
    return [count_of.get(prompt, 0) for prompt in prompt_ids]


def expand(rows: Sequence[Row], counts: Sequence[int]) -> list[Row]:
    """[N] each row as often as its count says, copies one after another; the same objects, not copies of them.

    Raises:
        InvalidInputError: another number of counts than rows, or a count below 0.
    """
    if len(rows) != len(counts) or any(count < 0 for count in counts):
        raise InvalidInputError(
            "rows and counts do not fit together",
            got=f"{len(rows)} rows, {len(counts)} counts, the least {min(counts, default=0)}",
            allowed="one count >= 0 for each row",
            fix="pass counts_of(plan, ids of the rows)",
        )
    return [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]


def group_advantages(
    rewards: npt.ArrayLike,
    group_ids: Sequence[Any],
    estimator: str = "rloo",
    weighting: Weighting = "prompt",
    *,
    asked: Plan | None = None,
) -> FloatArray:
    """[N] the advantage of each rollout against its own group, ragged groups in any order.

    Args:
        rewards: [N] finite.
        group_ids: [N] hashable, equal ids are one prompt.
        estimator: ``"rloo"``, ``"dr_grpo"`` or ``"grpo"`` (:mod:`allotment.learning.advantages`).
        weighting: ``"prompt"`` multiplies by mean(n) / n, so that in a mean over rollouts every prompt counts the
            same; ``"rollout"`` leaves them as they are. The factor is 1 where groups are equal.
        asked: the plan, whose weights and baselines are carried out; needed where it has any. ``group_ids`` are then
            its prompt ids.

    Raises:
        InvalidInputError: a reward is not finite, or the numbers differ.
        ConfigError: an unknown estimator or weighting.
    """
    with needs_extra("train"):
        import torch

        from allotment.learning.advantages import advantage_estimator, baseline_advantages
    if weighting not in get_args(Weighting):
        raise ConfigError(
            "there is no such weighting", got=repr(weighting), allowed="prompt, rollout", fix="use 'prompt'"
        )
    number: dict[Any, int] = {}
    group_N = np.array([number.setdefault(group, len(number)) for group in group_ids], dtype=np.int64)
    given = torch.as_tensor(np.asarray(rewards, dtype=np.float64)), torch.as_tensor(group_N)
    if asked is not None and asked.baselines is not None:
        shares_Q = np.ones(len(asked.prompt_ids)) if asked.baseline_shares is None else asked.baseline_shares
        beliefs = (of_prompts(asked, values, tuple(number))[group_N] for values in (asked.baselines, shares_Q))
        advantages_N = baseline_advantages(*given, *map(torch.as_tensor, beliefs)).numpy()
    else:
        advantages_N = advantage_estimator(estimator)(*given).numpy()  # type: ignore[arg-type]
    if weighting == "prompt":
        advantages_N = advantages_N * len(group_N) / (len(number) * np.bincount(group_N)[group_N])
    factors_Q = None if asked is None else prompt_factors(asked, tuple(number))
    if factors_Q is not None:
        advantages_N = advantages_N * factors_Q[group_N]
    return np.asarray(advantages_N, dtype=np.float64)
