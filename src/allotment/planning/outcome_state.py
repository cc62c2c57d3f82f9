"""Outcomes and open plans as a state, and back."""

from __future__ import annotations

import numpy as np

from allotment.errors import StateError
from allotment.planning.ledger import Ledger, answer_column, length_column, score_columns
from allotment.planning.outcome import Outcome
from allotment.prompts.ids import canonical_ids
from allotment.state import State, array_from_state, decode_json, encode_json, rows_from_state


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
    """The books that :func:`ledger_state` gave.

    Raises:
        StateError: keys are missing, or values do not fit together.
    """
    ledger = Ledger()
    try:
        for name, entry in state.items():
            step, round_ = map(int, name.split("."))
            ledger.entries[step, round_] = outcome_from_state(entry)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StateError(
            "the open plans of a state cannot be used",
            got=f"{type(error).__name__}: {error}",
            allowed="what state_dict() gave under 'ledger'",
            fix="load a whole state_dict(), or start anew",
        ) from error
    return ledger
