"""The books of a planner: which plans are open, and which rewards have come back for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from allotment.errors import InvalidInputError, RewardMismatchError, StateError, UnknownPromptError
from allotment.planning.columns import answer_column, appended, finite_column, length_column, score_columns
from allotment.prompts.ids import canonical_ids
from allotment.state import State, array_from_state, decode_json, encode_json, rows_from_state
from allotment.types import FloatArray, IntArray, Plan, PromptId, PromptIds


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came back for one plan: N rewards, each with the row of its prompt in the plan."""

    prompt_ids: tuple[PromptId, ...]
    """[Q] the plan's prompts."""
    planned: IntArray
    """[Q] rollouts asked for."""
    rewards_N: FloatArray
    """[N] rewards, in the order told."""
    rows_N: IntArray
    """[N] position of each reward's prompt in ``prompt_ids``."""
    scores_NK: FloatArray | None = None
    """[N, K] sketch of each rollout's score; None if not told."""
    lengths_N: FloatArray | None = None
    """[N] completion tokens of each rollout; None if not told."""
    answers_N: tuple[str | None, ...] | None = None
    """[N] extracted answer of each rollout, None where there is none; None if not told."""

    def __post_init__(self) -> None:
        for array in (self.planned, self.rewards_N, self.rows_N, self.scores_NK, self.lengths_N):
            if array is not None:
                array.setflags(write=False)  # the ledger and its states keep the same arrays

    @property
    def received(self) -> IntArray:
        """[Q] rewards told."""
        return np.bincount(self.rows_N, minlength=len(self.prompt_ids))

    @property
    def missing(self) -> IntArray:
        """[Q] rollouts asked for whose reward was not told."""
        return self.planned - self.received

    def successes(self, threshold: float) -> IntArray:
        """[Q] rewards of at least ``threshold``."""
        return np.bincount(self.rows_N[self.rewards_N >= threshold], minlength=len(self.prompt_ids))

    def reward_variance(self) -> FloatArray:
        """[Q] unbiased sample variance of the rewards, whatever their order; NaN where fewer than two were told."""
        count = self.received
        order = np.lexsort((self.rewards_N, self.rows_N))  # the last bits of a sum depend on its order
        rows_N, rewards_N = self.rows_N[order], self.rewards_N[order]
        mean = np.bincount(rows_N, rewards_N, minlength=len(count)) / np.maximum(count, 1)
        squares = np.bincount(rows_N, (rewards_N - mean[rows_N]) ** 2, minlength=len(count))
        return np.where(count >= 2, squares / np.maximum(count - 1, 1), np.nan)


class Ledger:
    """Open plans by step and round; checks every reward against the plan it answers."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, int], Outcome] = {}

    def __len__(self) -> int:
        return len(self._open)

    def plans(self) -> tuple[Plan, ...]:
        """The open plans in order of step and round, without the belief they were made from."""
        return tuple(Plan(o.prompt_ids, o.planned, *key) for key, o in sorted(self._open.items(), key=lambda i: i[0]))

    def open(self, plan: Plan) -> None:
        """Expect rewards for ``plan``."""
        nothing = np.zeros(0)
        self._open[plan.step, plan.round] = Outcome(plan.prompt_ids, plan.counts, nothing, nothing.astype(np.int64))

    def close(self, plan: Plan) -> Outcome:
        """Forget ``plan`` and return what came back for it.

        Raises:
            RewardMismatchError: the plan is not open.
        """
        self._entry(plan)
        return self._open.pop((plan.step, plan.round))

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

        Args:
            plan: an open plan.
            rewards: [n] finite numbers.
            group_ids: [n] the prompt id of each reward, in any order.
            scores: [n, K] or [n] finite numbers, the score sketch of each rollout; in all parts of a plan or in none.
            lengths: [n] completion tokens of each rollout; in all parts of a plan or in none.
            answers: [n] extracted answer of each rollout, or None; in all parts of a plan or in none.

        Raises:
            RewardMismatchError: the plan is not open, or a prompt has more rewards than planned.
            InvalidInputError: a reward, score or length is not allowed, or their numbers differ.
            UnknownPromptError: a reward belongs to a prompt that was not asked.
        """
        entry = self._entry(plan)
        groups = canonical_ids(group_ids, unique=False)
        rewards_n = finite_column("rewards", rewards, groups)
        scores_nk = None if scores is None else score_columns(scores, groups)
        lengths_n = None if lengths is None else length_column(lengths, groups)
        answers_n = None if answers is None else answer_column(answers, groups)
        rows = {prompt: row for row, prompt in enumerate(entry.prompt_ids)}
        strange = next((g for g in groups if g not in rows), None)
        if strange is not None:
            raise UnknownPromptError(
                "a reward belongs to a prompt that was not asked",
                got=repr(strange),
                allowed=f"the {len(rows)} prompt ids of step {plan.step}, such as {plan.prompt_ids[0]!r}",
                fix="pass the plan these rollouts were generated for, and prompt ids as group ids",
            )
        rows_n = np.array([rows[g] for g in groups], dtype=np.int64)
        earlier, further = len(entry.rows_N), len(groups)
        outcome = Outcome(
            entry.prompt_ids,
            entry.planned,
            np.concatenate([entry.rewards_N, rewards_n]),
            np.concatenate([entry.rows_N, rows_n]),
            appended("scores", entry.scores_NK, scores_nk, earlier, further),
            appended("lengths", entry.lengths_N, lengths_n, earlier, further),
            _appended_answers(entry.answers_N, answers_n, earlier, further),
        )
        if (outcome.missing < 0).any():
            q = int(outcome.missing.argmin())
            raise RewardMismatchError(
                f"more rewards than planned rollouts for prompt {entry.prompt_ids[q]!r}",
                got=int(outcome.received[q]),
                allowed=f"at most {entry.planned[q]}",
                fix="tell each reward once; padding rows must not be told",
            )
        return outcome

    def record(self, plan: Plan, outcome: Outcome) -> None:
        """Keep ``outcome`` as what has come back so far for ``plan``."""
        self._open[plan.step, plan.round] = outcome

    def state_dict(self) -> State:
        """All open plans with what was told of them so far."""
        return {f"{step}.{round_}": outcome_state(o) for (step, round_), o in self._open.items()}

    @classmethod
    def from_state(cls, state: State) -> Ledger:
        """The books that :meth:`state_dict` gave.

        Raises:
            StateError: keys are missing, or values do not fit together.
        """
        ledger = cls()
        try:
            for name, entry in state.items():
                step, round_ = map(int, name.split("."))
                ledger._open[step, round_] = outcome_from_state(entry)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StateError(
                "the open plans of a state cannot be used",
                got=f"{type(error).__name__}: {error}",
                allowed="what state_dict() gave under 'ledger'",
                fix="load a whole state_dict(), or start anew",
            ) from error
        return ledger

    def _entry(self, plan: Plan) -> Outcome:
        entry = self._open.get((plan.step, plan.round))
        is_own = entry is not None and entry.prompt_ids == plan.prompt_ids
        if entry is None or not is_own or not np.array_equal(entry.planned, plan.counts):
            raise RewardMismatchError(
                "the plan is not open",
                got=f"a plan of step {plan.step}, round {plan.round}",
                allowed=f"a plan this planner made and was not yet told: {sorted(self._open) or 'none'}",
                fix="tell each plan once, to the planner that made it",
            )
        return entry


def joined(first: Outcome, second: Outcome) -> Outcome:
    """Two rounds of a step over the same prompts as one outcome, in the order of ``first``.

    Raises:
        InvalidInputError: one round has scores, lengths or answers and the other has not, or sketches differ in size.
    """
    row = {prompt: i for i, prompt in enumerate(first.prompt_ids)}
    rows_Q = np.array([row[prompt] for prompt in second.prompt_ids], dtype=np.int64)
    planned_Q = first.planned.copy()
    planned_Q[rows_Q] += second.planned
    earlier, further = len(first.rows_N), len(second.rows_N)
    return Outcome(
        first.prompt_ids,
        planned_Q,
        np.concatenate([first.rewards_N, second.rewards_N]),
        np.concatenate([first.rows_N, rows_Q[second.rows_N]]),
        appended("scores", first.scores_NK, second.scores_NK, earlier, further),
        appended("lengths", first.lengths_N, second.lengths_N, earlier, further),
        _appended_answers(first.answers_N, second.answers_N, earlier, further),
    )


def _appended_answers(
    told: tuple[str | None, ...] | None, new: tuple[str | None, ...] | None, earlier: int, further: int
) -> tuple[str | None, ...] | None:
    if earlier == 0 or further == 0:
        return new if earlier == 0 else told
    if (told is None) != (new is None):
        raise InvalidInputError(
            "the parts of one plan differ in their answers",
            got="answers in one part and none in another",
            allowed="answers in all parts of a plan, or in none",
            fix="tell `answers` in every part; nothing of this call was recorded",
        )
    return None if told is None or new is None else told + new


def outcome_state(outcome: Outcome) -> State:
    """The entry of one plan; scores, lengths and answers only where they were told."""
    answers = None if outcome.answers_N is None else encode_json(list(outcome.answers_N))
    optional = {"scores": outcome.scores_NK, "lengths": outcome.lengths_N, "answers": answers}
    return {
        "ids": encode_json(list(outcome.prompt_ids)),
        "planned": outcome.planned,
        "rewards": outcome.rewards_N,
        "rows": outcome.rows_N,
        **{name: column for name, column in optional.items() if column is not None},
    }


def outcome_from_state(entry: State) -> Outcome:
    """Inverse of :func:`outcome_state`. Raises StateError, KeyError, TypeError or ValueError where it does not fit."""
    ids = canonical_ids(decode_json(entry["ids"]))
    planned_Q = rows_from_state(entry, "planned", np.iinfo(np.int64).max)
    rows_N = rows_from_state(entry, "rows", len(ids))
    groups, rows = tuple(ids[row] for row in rows_N), len(rows_N)
    scores = lengths = None
    if "scores" in entry:
        columns = np.atleast_2d(entry["scores"]).shape[1]
        scores = score_columns(array_from_state(entry, "scores", (rows, columns)), groups)
    if "lengths" in entry:
        lengths = length_column(array_from_state(entry, "lengths", (rows,)), groups)
    answers = answer_column(decode_json(entry["answers"]), groups) if "answers" in entry else None
    outcome = Outcome(ids, planned_Q, array_from_state(entry, "rewards", (rows,)), rows_N, scores, lengths, answers)
    if len(planned_Q) != len(ids) or (outcome.missing < 0).any():
        raise ValueError(f"{len(ids)} ids, {len(planned_Q)} counts, {len(rows_N)} rewards")
    return outcome
