"""For a trainer without an adapter: three calls between its data loader, its generation and its loss.

    asked = plan(planner, prompt_ids, budget=4096)
    rows = expand(prompts, counts_of(asked, prompt_ids))    # as many copies of each prompt as it has rollouts
    ...                                                     # generate and verify: one reward a row
    advantages = group_advantages(rewards, group_ids, "rloo", asked=asked)
    planner.tell(asked, rewards, group_ids, allow_missing_groups=True)

Recipes for slime, OpenRLHF, AReaL, SkyRL, NeMo-RL and prime-rl: docs/other_trainers.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from allotment.errors import ConfigError, InvalidInputError
from allotment.integrations.advantages import estimated, group_terms, weighted
from allotment.integrations.capabilities import GENERIC
from allotment.integrations.carrying import Weighting, ask
from allotment.planning import Planner
from allotment.planning.contract import check_planner
from allotment.types import FloatArray, Plan, PromptId, PromptIds

Row = TypeVar("Row")


def plan(
    planner: Planner, prompt_ids: PromptIds, *, budget: int | None = None, trained_prompts: int | None = None
) -> Plan:
    """Ask for the counts of a batch, and refuse what these functions cannot carry out.

    A plan with weights or baselines counts on :func:`group_advantages` being given the plan, as ``asked=``. That cannot
    be checked: without it both are ignored, and prompts weigh otherwise than the planner means.

    Args:
        planner: of one round, without a selection of its own. What its ``contract.told`` names must be told, too.
        prompt_ids: [Q] distinct ids.
        budget: rollouts of this batch, if not the planner's own.
        trained_prompts: prompts that get rollouts, those of largest expected reward variance; the others are not in the
            plan. A planner that leaves out prompts itself is asked for all.

    Raises:
        ConfigError: the planner needs more than these functions carry out.
        RewardMismatchError: a planner that spends its budget exactly did not, or a count is 1 without a baseline: a
            group of one has no advantage.
    """
    check_planner(planner, GENERIC)
    return ask(planner, prompt_ids, budget=budget, trained_prompts=trained_prompts)


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
        InvalidInputError: a reward is not finite, the numbers differ, or a prompt is not of the plan.
        ConfigError: an unknown estimator or weighting.
    """
    if weighting not in get_args(Weighting):
        raise ConfigError(
            "there is no such weighting", got=repr(weighting), allowed="prompt, rollout", fix="use 'prompt'"
        )
    number: dict[Any, int] = {}
    group_N = np.array([number.setdefault(group, len(number)) for group in group_ids], dtype=np.int64)
    _check_known(asked, number)
    terms = group_terms(tuple(number), [asked] * len(number))
    advantages_N = estimated(np.asarray(rewards, dtype=np.float64), group_N, estimator, terms)
    return weighted(advantages_N, group_N, weighting) * terms.factors_Q[group_N]


def _check_known(asked: Plan | None, group_ids: Iterable[Any]) -> None:
    strange = set() if asked is None else set(group_ids) - set(asked.prompt_ids)
    if strange:
        raise InvalidInputError(
            "a rollout is of a prompt that was not asked",
            got=repr(strange.pop()),
            allowed="the prompt ids of the plan",
            fix="pass the plan these rollouts were generated for, and prompt ids as group ids",
        )
