"""A step in two rounds: a first share of the budget, a look at what came back, the rest (docs/second_look.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from allotment.allocation import allocate_exact
from allotment.errors import InvalidInputError, RewardMismatchError, StateError
from allotment.planning.ledger import Outcome, joined, outcome_from_state, outcome_state
from allotment.pricing import SecondLookPrice
from allotment.state import State, check_state, rows_from_state
from allotment.types import Allocation, IntArray, Plan, Posterior, PromptId

LEAST_FIRST = 2
"""Fewest rollouts of a prompt in round 0: fewer have no leave-one-out baseline of their own."""
LEAST_SECOND = 2
"""Fewest in round 1 where more than one is expected: the baseline then draws on the round's other rollouts."""


@dataclass(frozen=True, eq=False)
class Step:
    """A step that is not complete."""

    expected: IntArray
    """[Q] rollouts of round 1 that the weights of the loss are made for; fixed before round 0."""
    left: int
    """Rollouts of round 1 in all."""
    first: Outcome | None = None
    """What came back in round 0; None while that is open."""
    is_asked: bool = False
    """Whether the plan of round 1 was handed out."""

    @property
    def is_due(self) -> bool:
        """Whether round 1 is the next thing to ask."""
        return self.first is not None and not self.is_asked


class SecondLook:
    """The steps of a planner that are under way, and how round 0 and round 1 are made.

    Args:
        first_share: part of each prompt's expected rollouts that is generated in round 0, in (0, 1).

    Raises:
        InvalidInputError: the share is outside (0, 1).
    """

    KIND = "SecondLook"

    def __init__(self, first_share: float) -> None:
        self.first_share = float(first_share)
        if not 0.0 < self.first_share < 1.0:
            raise InvalidInputError("bad share of the first round", got=first_share, allowed="in (0, 1)", fix="use 0.5")
        self.done = True
        self._steps: dict[int, Step] = {}

    def first_round(self, plan: Plan) -> Plan:
        """Round 0 of the step that ``plan`` would do in one round; registers the step."""
        share_Q = np.round(self.first_share * plan.counts).astype(np.int64)
        first_Q = np.minimum(np.maximum(share_Q, LEAST_FIRST), plan.counts)
        later_Q = plan.counts - first_Q
        self._steps[plan.step] = Step(later_Q, int(later_Q.sum()))
        return replace(plan, counts=first_Q, expected_later=later_Q)

    def due(self, ids: tuple[PromptId, ...]) -> int | None:
        """The step whose second round these prompts (in any order) are due for; None if they start a new step.

        Raises:
            RewardMismatchError: the second round of other prompts is due.
        """
        for number, step in self._steps.items():
            if step.is_due and step.first and set(step.first.prompt_ids) == set(ids):
                return number
        due = next((number for number, step in self._steps.items() if step.is_due), None)
        if due is not None:
            raise RewardMismatchError(
                "other prompts are asked while the second look of a step is due",
                got=f"{len(ids)} prompts, such as {ids[0]!r}",
                allowed=f"the {len(self._steps[due].expected)} prompts of step {due}",
                fix="ask the same prompts again until planner.done (cancel that plan to go without a second look)",
            )
        return None

    def second_round(
        self,
        number: int,
        ids: tuple[PromptId, ...],
        prior: Posterior,
        threshold: float,
        bounds: tuple[int, int],
        tie_keys: npt.NDArray[np.uint64],
    ) -> Plan:
        """Round 1 of step ``number`` for its prompts in the order of ``ids``; ``prior`` [Q] is without round 0."""
        step = self._steps[number]
        assert step.first is not None
        rows_Q = _rows(step.first, ids)
        expected_Q, planned_Q = step.expected[rows_Q], step.first.planned[rows_Q]
        successes_Q, trials_Q = step.first.successes(threshold)[rows_Q], step.first.received[rows_Q]
        posterior = prior.updated(successes_Q, trials_Q)
        price = SecondLookPrice.of(posterior, successes_Q, trials_Q, expected_Q)
        live_Q = expected_Q > 0
        lower_Q = np.maximum(bounds[0] - planned_Q, np.minimum(expected_Q, LEAST_SECOND))
        allocation = allocate_exact(
            SecondLookPrice(price.first[live_Q], price.second[live_Q]),
            step.left,
            lower=lower_Q[live_Q],
            upper=(bounds[1] - planned_Q)[live_Q],
            tie_keys=tie_keys[live_Q],
        )
        counts_Q = np.zeros_like(expected_Q)
        counts_Q[live_Q] = allocation.counts
        self._steps[number] = replace(step, is_asked=True)
        whole: Allocation = replace(allocation, counts=counts_Q)
        return Plan(ids, counts_Q, number, 1, posterior, whole, expected_Q)

    def finish(self, plan: Plan, outcome: Outcome, observe: Callable[[Outcome], None]) -> None:
        """Take in the outcome of a round; the predictor sees both rounds of a step as one visit."""
        step = self._steps[plan.step]
        if step.first is None and step.left:
            self._steps[plan.step] = replace(step, first=outcome)
            self.done = False
            return
        observe(outcome if step.first is None else joined(step.first, outcome))
        self._forget(plan.step)

    def cancelled(self, plan: Plan, observe: Callable[[Outcome], None]) -> None:
        """A round will not come: of round 1, the step ends with what round 0 brought."""
        first = self._steps[plan.step].first
        if first is not None:
            observe(first)
        self._forget(plan.step)

    def with_expected(self, plan: Plan) -> Plan:
        """A plan that lost it, with what is expected of round 1."""
        step = self._steps[plan.step]
        rows_Q = slice(None) if step.first is None else _rows(step.first, plan.prompt_ids)
        return replace(plan, expected_later=step.expected[rows_Q])

    def _forget(self, number: int) -> None:
        del self._steps[number]
        self.done = True

    def state_dict(self) -> State:
        """The steps under way."""
        steps = {
            str(number): {
                "expected": step.expected,
                "left": step.left,
                "is_asked": step.is_asked,
                **({} if step.first is None else {"first": outcome_state(step.first)}),
            }
            for number, step in self._steps.items()
        }
        return {"kind": self.KIND, "done": self.done, "steps": steps}

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave, all or nothing.

        Raises:
            StateError: keys are missing, or values do not fit together.
        """
        check_state(state, self.KIND, ("done", "steps"))
        try:
            steps = {int(number): _step_from_state(entry) for number, entry in state["steps"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StateError(
                "the steps under way of a state cannot be used",
                got=f"{type(error).__name__}: {error}",
                allowed="what state_dict() gave under 'second_look'",
                fix="load a whole state_dict(), or start anew",
            ) from error
        self._steps, self.done = steps, bool(state["done"])


def _step_from_state(entry: State) -> Step:
    first = outcome_from_state(entry["first"]) if "first" in entry else None
    expected_Q = rows_from_state(entry, "expected", np.iinfo(np.int64).max)
    left, is_asked = entry["left"], entry["is_asked"]
    fits = first is None or len(first.prompt_ids) == len(expected_Q)
    if not (fits and type(left) is int and left == expected_Q.sum() and type(is_asked) is bool):
        raise ValueError(f"{left!r} rollouts left for {len(expected_Q)} prompts")
    return Step(expected_Q, left, first, is_asked)


def _rows(first: Outcome, ids: tuple[PromptId, ...]) -> IntArray:
    """[Q] the rows in ``first`` of the same prompts in another order."""
    row = {prompt: i for i, prompt in enumerate(first.prompt_ids)}
    return np.array([row[prompt] for prompt in ids], dtype=np.int64)
