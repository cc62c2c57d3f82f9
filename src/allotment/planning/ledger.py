"""The books of a planner: which plans are open, and which rewards have come back for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt

from allotment.checks import check_real, shown
from allotment.planning import refusals
from allotment.planning.outcome import Outcome
from allotment.prompts.ids import PromptIndex, canonical_ids
from allotment.types import FloatArray, Plan, PromptId, PromptIds

MAX_SKETCHES = 16
"""Most numbers that a score sketch of a rollout may have."""


def finite_column(name: str, values: npt.ArrayLike, group_ids: tuple[PromptId, ...]) -> FloatArray:
    """``values`` as finite floats [N], one for each of ``group_ids``, else InvalidInputError; ``name`` in plural."""
    column_N = _floats(name, values)
    if column_N.shape != (len(group_ids),):
        raise refusals.misfit(name, column_N, group_ids, f"one flat array of {name} with one group id each")
    if (bad_N := ~np.isfinite(column_N)).any():
        raise refusals.bad_row(bad_N, name, "not finite", "finite numbers", column_N, group_ids)
    return column_N


def length_column(lengths: npt.ArrayLike, group_ids: tuple[PromptId, ...]) -> FloatArray:
    """Completion tokens of each rollout, [N], positive and finite, else InvalidInputError."""
    lengths_N = finite_column("lengths", lengths, group_ids)
    if (bad_N := lengths_N <= 0).any():
        raise refusals.bad_row(bad_N, "lengths", "not positive", "completion tokens, > 0", lengths_N, group_ids)
    return lengths_N


def score_columns(scores: npt.ArrayLike, group_ids: tuple[PromptId, ...]) -> FloatArray:
    """Score sketches [N, K], finite, K from 1 to 16, else InvalidInputError; [N] is taken as K = 1."""
    scores_NK = _floats("scores", scores)
    if scores_NK.ndim == 1:
        scores_NK = scores_NK[:, None]
    if scores_NK.ndim != 2 or len(scores_NK) != len(group_ids) or not 1 <= scores_NK.shape[1] <= MAX_SKETCHES:
        allowed = f"[N] or [N, K], one row per group id, K from 1 to {MAX_SKETCHES}"
        raise refusals.misfit("scores", scores_NK, group_ids, allowed)
    if (bad_NK := ~np.isfinite(scores_NK)).any():
        raise refusals.bad_row(bad_NK, "scores", "not finite", "finite numbers", scores_NK, group_ids)
    return scores_NK


def answer_column(answers: Sequence[str | None], group_ids: tuple[PromptId, ...]) -> tuple[str | None, ...]:
    """The extracted answer of each rollout, [N], a text or None where there is none; else InvalidInputError."""
    if isinstance(answers, str | bytes | Mapping | Set) or not isinstance(answers, Iterable):
        raise refusals.bad_answers(f"a {type(answers).__name__}")
    column_N = tuple(answers)
    strange = next((a for a in column_N if not (a is None or isinstance(a, str))), None)
    if len(column_N) != len(group_ids) or strange is not None:
        counts = f"{len(column_N)} answers, {len(group_ids)} group ids"
        raise refusals.bad_answers(counts if strange is None else shown(strange))
    return column_N


def _floats(name: str, values: npt.ArrayLike) -> FloatArray:
    """A float copy, so that what was told cannot be changed afterwards."""
    try:
        array: npt.NDArray[Any] = np.asarray(values)
        if array.dtype.kind not in "biuf" or isinstance(values, np.ma.MaskedArray):
            check_real(values, array)
        return array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # RuntimeError: a tensor that requires grad
        raise refusals.no_numbers(name, error) from error


class Ledger:
    """Open plans by step and round; checks every reward against the plan it answers."""

    def __init__(self) -> None:
        self.entries: dict[tuple[int, int], Outcome] = {}
        """What came back so far for each open plan, by step and round."""

    def plans(self) -> tuple[Plan, ...]:
        """The open plans in order of step and round, without the belief they were made from."""
        return tuple(Plan(o.prompt_ids, o.planned, *key) for key, o in sorted(self.entries.items(), key=lambda i: i[0]))

    def open(self, plan: Plan) -> None:
        """Expect rewards for ``plan``."""
        nothing = np.zeros(0)
        self.entries[plan.step, plan.round] = Outcome(plan.prompt_ids, plan.counts, nothing, nothing.astype(np.int64))

    def close(self, plan: Plan) -> Outcome:
        """Forget ``plan`` and return what came back for it; RewardMismatchError where it is not open."""
        self._entry(plan)
        return self.entries.pop((plan.step, plan.round))

    def with_rewards(
        self,
        plan: Plan,
        rewards: npt.ArrayLike,
        group_ids: PromptIds,
        scores: npt.ArrayLike | None = None,
        lengths: npt.ArrayLike | None = None,
        answers: Sequence[str | None] | None = None,
    ) -> Outcome:
        """The plan's outcome with further rewards; recorded only by :meth:`record`.

        Arguments and errors are those of :meth:`~allotment.planning.planner.Planner.tell`.
        """
        entry = self._entry(plan)
        groups = canonical_ids(group_ids, unique=False)
        rewards_n = finite_column("rewards", rewards, groups)
        scores_nk = None if scores is None else score_columns(scores, groups)
        lengths_n = None if lengths is None else length_column(lengths, groups)
        answers_n = None if answers is None else answer_column(answers, groups)
        rows_n = PromptIndex(entry.prompt_ids).known_rows(groups)
        if (rows_n < 0).any():
            raise refusals.stranger(groups[int(rows_n.argmin())], plan)
        told = Outcome(entry.prompt_ids, entry.planned, rewards_n, rows_n, scores_nk, lengths_n, answers_n)
        outcome = entry.followed_by(told)
        if (outcome.missing < 0).any():
            raise refusals.too_many(outcome)
        return outcome

    def record(self, plan: Plan, outcome: Outcome) -> None:
        """Keep ``outcome`` as what has come back so far for ``plan``."""
        self.entries[plan.step, plan.round] = outcome

    def _entry(self, plan: Plan) -> Outcome:
        entry = self.entries.get((plan.step, plan.round)) if isinstance(plan, Plan) else None
        is_own = entry is not None and entry.prompt_ids == plan.prompt_ids
        if entry is None or not is_own or not np.array_equal(entry.planned, plan.counts):
            raise refusals.not_open(plan, self.entries)
        return entry
