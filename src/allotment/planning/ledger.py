"""The books of a planner: which plans are open, and which rewards have come back for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from allotment.errors import RewardMismatchError, StateError, UnknownPromptError
from allotment.planning.columns import answer_column, finite_column, length_column, score_columns
from allotment.planning.outcome import Outcome
from allotment.prompts.ids import canonical_ids
from allotment.state import State
from allotment.types import Plan, PromptIds


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
        told = Outcome(entry.prompt_ids, entry.planned, rewards_n, rows_n, scores_nk, lengths_n, answers_n)
        outcome = entry.followed_by(told)
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
        return {f"{step}.{round_}": o.state() for (step, round_), o in self._open.items()}

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
                ledger._open[step, round_] = Outcome.from_state(entry)
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
