"""Steps of several rounds: which are not complete, what their rounds brought, which is due; outcomes as a state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from allotment.errors import InvalidInputError, RewardMismatchError, StateError
from allotment.planning.ledger import Ledger, answer_column, length_column, score_columns
from allotment.planning.outcome import Outcome
from allotment.prompts.ids import canonical_ids
from allotment.state import State, array_from_state, check_state, decode_json, encode_json, rows_from_state
from allotment.types import IntArray, Plan, PromptId


@dataclass(frozen=True, eq=False)
class Step:
    """A step that is not complete."""

    number: int
    budget: int
    """With which it was opened."""
    round: int = 0
    """Of the plan last asked."""
    is_open: bool = True
    """Whether that plan waits for its rewards."""
    outcome: Outcome | None = None
    """What the rounds told have brought, together; None before the first is told."""
    expected_later: IntArray | None = None
    """[Q] what the plan of round 0 says of later rounds."""

    @property
    def needed_outcome(self) -> Outcome:
        """What the rounds told have brought; at least one was."""
        assert self.outcome is not None
        return self.outcome

    def next_plan(self, counts_Q: IntArray) -> Plan | None:
        """A further round with these counts, in the order of the outcome; None where all are 0."""
        return Plan(self.needed_outcome.prompt_ids, counts_Q, self.number, self.round + 1) if counts_Q.any() else None

    def told(self, outcome: Outcome) -> Step:
        """After the open plan brought ``outcome``."""
        if self.outcome is None:
            return replace(self, is_open=False, outcome=outcome)
        later = outcome.ordered(self.outcome.prompt_ids)
        together = self.outcome.followed_by(later)
        return replace(self, is_open=False, outcome=replace(together, planned=self.outcome.planned + later.planned))

    def ordered(self, ids: tuple[PromptId, ...]) -> Step:
        """The same with its prompts in the order of ``ids``."""
        if self.outcome is None:
            return self
        row = {prompt: q for q, prompt in enumerate(self.outcome.prompt_ids)}
        expected_Q = self.expected_later
        if expected_Q is not None:
            expected_Q = expected_Q[[row[prompt] for prompt in ids]]
        return replace(self, outcome=self.outcome.ordered(ids), expected_later=expected_Q)


class Rounds:
    """The steps of a planner that are not complete.

    Args:
        concurrent: whether a step may be opened while another waits for the rewards of a round.
    """

    KIND = "Rounds"

    def __init__(self, *, concurrent: bool) -> None:
        self._concurrent = concurrent
        self._steps: dict[int, Step] = {}
        self.done = True
        """Whether the step last told is complete."""

    def __getitem__(self, number: int) -> Step:
        return self._steps[number]

    def open(self, plan: Plan, budget: int) -> None:
        """A step begins with the plan of its round 0."""
        self._steps[plan.step] = Step(plan.step, budget, expected_later=plan.expected_later)

    def asked(self, plan: Plan) -> None:
        """A further round of a step begins with this plan; the order of its prompts stays that of round 0."""
        self._steps[plan.step] = replace(self._steps[plan.step], round=plan.round, is_open=True)

    def told(self, step: Step) -> None:
        """A round of a step was told, and it goes on."""
        self._steps[step.number] = step
        self.done = False

    def forget(self, number: int) -> None:
        """A step is complete."""
        del self._steps[number]
        self.done = True

    def due(self, ids: tuple[PromptId, ...], budget: int | None) -> Step | None:
        """The step whose next round is due for these prompts, in their order; None if they start a step.

        RewardMismatchError where the next round of other prompts is due, or must be told first; InvalidInputError
        where a budget is named for a later round.
        """
        waiting = [step for step in self._steps.values() if not step.is_open and step.outcome is not None]
        for step in waiting:
            if step.outcome is not None and set(step.outcome.prompt_ids) == set(ids):
                if budget is not None:
                    raise InvalidInputError(
                        "a budget for a later round of a step",
                        got=budget,
                        allowed="none: what came back decides",
                        fix="pass the budget when the step is first asked",
                    )
                return step.ordered(ids)
        if waiting:
            raise _busy(f"round {waiting[0].round + 1} of step {waiting[0].number} is due", ids)
        if self._steps and not self._concurrent:
            step = next(iter(self._steps.values()))
            raise _busy(f"round {step.round} of step {step.number} is open", ids)
        return None

    def state_dict(self) -> State:
        """The steps that are not complete."""
        steps: State = {}
        for number, step in self._steps.items():
            steps[str(number)] = {"budget": step.budget, "round": step.round, "is_open": step.is_open}
            if step.outcome is not None:
                steps[str(number)]["outcome"] = outcome_state(step.outcome)
            if step.expected_later is not None:
                steps[str(number)]["expected_later"] = step.expected_later
        return {"kind": self.KIND, "done": self.done, "steps": steps}

    def load_state_dict(self, state: State) -> None:
        """See :class:`~allotment.state.Stateful`."""
        check_state(state, self.KIND, ("done", "steps"))
        with _usable("steps"):
            steps = {_whole(number): _step_from_state(int(number), entry) for number, entry in state["steps"].items()}
            if type(state["done"]) is not bool:
                raise ValueError(f"done {state['done']!r}")
        self._steps, self.done = steps, state["done"]


def _step_from_state(number: int, entry: Mapping[str, object]) -> Step:
    values: State = dict(entry)
    outcome = outcome_from_state(values["outcome"]) if "outcome" in values else None
    later_Q = None
    if "expected_later" in values:
        later_Q = rows_from_state(values, "expected_later", np.iinfo(np.int64).max)
    budget, round_, is_open = values["budget"], values["round"], values["is_open"]
    fits = type(budget) is type(round_) is int and type(is_open) is bool and (outcome is not None or is_open)
    if not fits or (outcome is not None and later_Q is not None and len(later_Q) != len(outcome.prompt_ids)):
        raise ValueError(f"round {round_!r}, budget {budget!r}, open {is_open!r}")
    return Step(number, budget, round_, is_open, outcome, later_Q)


def _busy(got: str, ids: tuple[PromptId, ...]) -> RewardMismatchError:
    return RewardMismatchError(
        "a planner is in the middle of a step",
        got=f"{got}; {len(ids)} other prompts are asked, such as {ids[0]!r}",
        allowed="one step at a time",
        fix="tell or cancel the open plan, and ask the same prompts again until planner.done",
    )


def outcome_state(outcome: Outcome) -> State:
    """Everything; scores, lengths and answers only where they were told."""
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


def ledger_state(ledger: Ledger) -> State:
    """All open plans with what was told of them so far."""
    return {f"{step}.{round_}": outcome_state(told) for (step, round_), told in ledger.entries.items()}


def ledger_from_state(state: State) -> Ledger:
    """The books that :func:`ledger_state` gave. Raises :class:`StateError` where they do not fit together."""
    ledger = Ledger()
    with _usable("open plans"):
        for name, entry in state.items():
            step, round_ = map(_whole, name.split("."))
            ledger.entries[step, round_] = outcome_from_state(entry)
    return ledger


def _whole(text: str) -> int:
    """A number as :func:`str` writes it, >= 0; ValueError where ``text`` is another spelling, such as " 6 "."""
    if not (text.isdecimal() and str(int(text)) == text):
        raise ValueError(f"{text!r} for a number")
    return int(text)


@contextmanager
def _usable(what: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StateError(
            f"the {what} of a state cannot be used",
            got=f"{type(error).__name__}: {error}",
            allowed="what state_dict() gave",
            fix="load a whole state_dict(), or start anew",
        ) from error
