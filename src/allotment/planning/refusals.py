"""The errors of ``tell``: what was told does not fit its plan. The ledger says when each is raised."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from allotment.checks import shown
from allotment.errors import InvalidInputError, RewardMismatchError, UnknownPromptError
from allotment.planning.outcome import Outcome
from allotment.types import FloatArray, Plan, PromptId


def no_numbers(name: str, error: Exception) -> InvalidInputError:
    """A column that is no array of numbers."""
    return InvalidInputError(
        f"the {name} are not an array of numbers",
        got=f"{type(error).__name__}: {error}",
        allowed="real numbers, one row per rollout",
        fix=f"pass a list or a numpy array; of a torch tensor, {name}.detach().float().cpu().numpy()",
    )


def misfit(name: str, column: FloatArray, group_ids: tuple[PromptId, ...], allowed: str) -> InvalidInputError:
    """A column of another length than the group ids."""
    return InvalidInputError(
        f"{name} and group ids do not fit together",
        got=f"{name} of shape {column.shape}, {len(group_ids)} group ids",
        allowed=allowed,
        fix="pass one entry per rollout; leave out rollouts that did not finish",
    )


def bad_row(
    bad: npt.NDArray[np.bool_], name: str, wrong: str, allowed: str, column: FloatArray, group_ids: tuple[PromptId, ...]
) -> InvalidInputError:
    """The first row of ``bad`` ([N] or [N, K]) that holds a True."""
    bad_N = bad.reshape(len(bad), -1).any(axis=1)
    i = int(bad_N.argmax())
    return InvalidInputError(
        f"a {name.removesuffix('s')} is {wrong}",
        got=f"{column[i]} at index {i} (prompt {group_ids[i]!r}), {int(bad_N.sum())} of {len(bad)} in all",
        allowed=allowed,
        fix="leave out rollouts whose value is unknown, or measure them; nothing of this call was recorded",
    )


def bad_answers(got: str) -> InvalidInputError:
    """Answers that are no texts, or not one for each rollout."""
    return InvalidInputError(
        "answers and group ids do not fit together",
        got=got,
        allowed="a list with a text or None for every rollout",
        fix="pass the canonical answer of each completion, None where there is none",
    )


def stranger(prompt: PromptId, plan: Plan) -> UnknownPromptError:
    """A group id that is no prompt of the plan."""
    return UnknownPromptError(
        "a reward belongs to a prompt that was not asked",
        got=shown(prompt),
        allowed=f"the {len(plan.prompt_ids)} prompt ids of step {plan.step}, such as {plan.prompt_ids[0]!r}",
        fix="pass the plan these rollouts were generated for, and prompt ids as group ids",
    )


def too_many(outcome: Outcome) -> RewardMismatchError:
    """More rewards of a prompt than were planned."""
    q = int(outcome.missing.argmin())
    return RewardMismatchError(
        f"more rewards than planned rollouts for prompt {outcome.prompt_ids[q]!r}",
        got=int(outcome.received[q]),
        allowed=f"at most {outcome.planned[q]}",
        fix="tell each reward once; padding rows must not be told",
    )


def missing_groups(absent: list[PromptId], prompts: int) -> RewardMismatchError:
    """Prompts of the plan without any reward."""
    return RewardMismatchError(
        "groups are missing: prompts of the plan got no reward",
        got=f"{len(absent)} of {prompts}, the first {absent[:3]}",
        allowed="at least one reward for every prompt with a planned rollout",
        fix="tell them too (final=False for parts), or pass allow_missing_groups=True",
    )


def not_open(plan: Any, there: Iterable[tuple[int, int]]) -> RewardMismatchError:
    """A plan that is not open, or what is no plan."""
    is_plan = isinstance(plan, Plan)
    return RewardMismatchError(
        "the plan is not open" if is_plan else "what was told is no plan",
        got=f"a plan of step {plan.step}, round {plan.round}" if is_plan else f"a {type(plan).__name__}: {shown(plan)}",
        allowed=f"a plan this planner made and was not yet told: {sorted(there) or 'none'}",
        fix="tell each plan once, to the planner that made it",
    )
