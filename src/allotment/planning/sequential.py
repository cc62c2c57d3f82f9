"""What planners share that spend a step in several rounds: a look at what came back, then more for some prompts."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from allotment.errors import InvalidInputError, RewardMismatchError, StateError
from allotment.planning.base import OneShotPlanner
from allotment.planning.ledger import Outcome, joined, outcome_from_state, outcome_state
from allotment.state import State, Stateful, Together, check_state, rows_from_state
from allotment.types import Allocation, IntArray, Plan, Posterior, PromptId


@dataclass(frozen=True, eq=False)
class Opening:
    """The first round of a step."""

    counts: IntArray
    """[Q] rollouts of each prompt; zeros are allowed."""
    posterior: Posterior | None = None
    """The belief behind them, [Q]."""


class SequentialPlanner(OneShotPlanner):
    """A planner of several rounds a step, one step at a time; ask the same prompts again until ``done``.

    A subclass says how a step opens, who gets more after each round, and what is learnt at the end, from all rounds as
    one outcome. Rounds are numbered from 0. Args and errors are those of :class:`OneShotPlanner`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._under_way = UnderWay()

    @abstractmethod
    def _open(self, ids: tuple[PromptId, ...], budget: int) -> Opening:
        """Round 0."""

    @abstractmethod
    def _more(self, so_far: Outcome, round_: int) -> IntArray | None:
        """[Q] rollouts of round ``round_``, in the order of ``so_far.prompt_ids``; None, or zeros, end the step."""

    @abstractmethod
    def _learn(self, outcome: Outcome) -> None:
        """Learn from all rounds of a step; raises before anything changes, or not at all."""

    @property
    @abstractmethod
    def _beliefs(self) -> dict[str, Stateful]:
        """What is saved beside the settings and the step under way."""

    @property
    def done(self) -> bool:
        """Whether the step last told is complete."""
        return self._under_way.counts is None

    def _plan(self, ids: tuple[PromptId, ...], budget: int | None) -> Plan:
        now = self._under_way
        if now.number is None:
            total = self.budget if budget is None else budget
            opening = self._open(ids, total)
            now.number, now.round, now.budget = self._step, 0, int(total)
            return Plan(ids, opening.counts, self._step, 0, opening.posterior)
        if now.counts is None or now.so_far is None:
            raise _busy(f"round {now.round} of step {now.number} is open", "tell or cancel that plan first")
        if set(ids) != set(now.so_far.prompt_ids):
            raise _busy(
                f"round {now.round + 1} of step {now.number} is due for {len(now.so_far.prompt_ids)} other prompts",
                "ask the same prompts again until planner.done",
            )
        if budget is not None:
            raise InvalidInputError(
                "a budget for a later round of a step",
                got=budget,
                allowed="none: what came back decides",
                fix="pass the budget when the step is first asked",
            )
        row = {prompt: i for i, prompt in enumerate(now.so_far.prompt_ids)}
        counts_Q = now.counts[[row[prompt] for prompt in ids]]
        now.round, now.counts = now.round + 1, None
        return Plan(ids, counts_Q, now.number, now.round)

    def _finish(self, plan: Plan, outcome: Outcome) -> None:
        now = self._under_way
        so_far = outcome if now.so_far is None else joined(now.so_far, outcome)
        counts_Q = self._more(so_far, now.round + 1)
        if counts_Q is None or not counts_Q.any():
            self._learn(so_far)
            now.clear()
        else:
            now.so_far, now.counts = so_far, counts_Q

    def cancel(self, plan: Plan) -> None:
        """Forget an open plan whose rollouts will never come; the step ends with what its earlier rounds brought.

        Raises:
            RewardMismatchError: the plan is not open.
        """
        super().cancel(plan)
        if self._under_way.so_far is not None:
            self._learn(self._under_way.so_far)
        self._under_way.clear()

    def _observe(self, outcome: Outcome) -> None:
        raise NotImplementedError  # rounds are learnt together, in _learn

    def _decide(self, ids: tuple[PromptId, ...], budget: int) -> tuple[Allocation, Posterior | None]:
        raise NotImplementedError  # steps open in _open

    @property
    def _belief(self) -> Stateful:
        return Together({**self._beliefs, "under_way": self._under_way})


class UnderWay:
    """The step a sequential planner is in the middle of; nothing between steps."""

    KIND = "UnderWay"

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """No step is under way."""
        self.number: int | None = None
        """Of the step."""
        self.round = 0
        """The round last asked."""
        self.budget = 0
        """With which the step was opened."""
        self.so_far: Outcome | None = None
        """What the rounds told have brought."""
        self.counts: IntArray | None = None
        """[Q] rollouts of the next round, once the last is told and before the next is asked."""

    def state_dict(self) -> State:
        """Everything, as it is."""
        optional: State = {} if self.so_far is None else {"so_far": outcome_state(self.so_far)}
        if self.counts is not None:
            optional["counts"] = self.counts
        return {"kind": self.KIND, "number": self.number, "round": self.round, "budget": self.budget, **optional}

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave, all or nothing.

        Raises:
            StateError: keys are missing, or values do not fit together.
        """
        check_state(state, self.KIND, ("number", "round", "budget"))
        try:
            so_far = outcome_from_state(state["so_far"]) if "so_far" in state else None
            counts = rows_from_state(state, "counts", np.iinfo(np.int64).max) if "counts" in state else None
            number, round_, budget = state["number"], state["round"], state["budget"]
            fits = (number is None or type(number) is int) and type(round_) is type(budget) is int
            if not fits or (counts is not None and (so_far is None or len(counts) != len(so_far.prompt_ids))):
                raise ValueError(f"step {number!r}, round {round_!r}, budget {budget!r}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StateError(
                "the step under way of a state cannot be used",
                got=f"{type(error).__name__}: {error}",
                allowed="what state_dict() gave",
                fix="load a whole state_dict(), or start anew",
            ) from error
        self.number, self.round, self.budget, self.so_far, self.counts = number, round_, budget, so_far, counts


def _busy(got: str, fix: str) -> RewardMismatchError:
    return RewardMismatchError(
        "a sequential planner is in the middle of a step", got=got, allowed="one step at a time", fix=fix
    )
