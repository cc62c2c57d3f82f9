"""What every predictor can do, and the registry of prompt ids that they share."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from allotment.errors import InvalidInputError
from allotment.prompts.ids import canonical_ids
from allotment.state import Stateful
from allotment.types import IntArray, Posterior, PromptId, PromptIds


@runtime_checkable
class Predictor(Stateful, Protocol):
    """A belief about the success probability of every prompt, updated from counts.

    All methods raise :class:`~allotment.errors.AllotmentError` subclasses on bad input and change nothing then.
    """

    def predict(self, ids: PromptIds) -> Posterior:
        """The belief about each of the Q prompts named; [Q]."""
        ...

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """Learn that prompt ``ids[i]`` had ``successes[i]`` successes in ``trials[i]`` rollouts; all [Q]."""
        ...


def check_counts(ids: PromptIds, successes: Any, trials: Any) -> tuple[tuple[PromptId, ...], IntArray, IntArray]:
    """Validated ``(ids, successes, trials)`` of an observation; all [Q].

    Raises:
        InvalidInputError: lengths differ, a count is negative, not finite or not whole, or successes exceed trials.
        DuplicatePromptError: an id stands twice.
    """
    plain = canonical_ids(ids)
    try:
        successes_Q, trials_Q = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            "counts are not numbers", got=error, allowed="whole numbers", fix="pass one count per prompt"
        ) from None
    shape = (len(plain),)
    if successes_Q.shape != shape or trials_Q.shape != shape:
        raise InvalidInputError(
            "counts and ids differ in length",
            got=f"{len(plain)} ids, successes {successes_Q.shape}, trials {trials_Q.shape}",
            allowed="one success count and one trial count per id",
            fix="pass aggregated counts: one entry per prompt",
        )
    whole = (np.floor(successes_Q) == successes_Q) & (np.floor(trials_Q) == trials_Q)
    good = whole & (successes_Q >= 0) & (successes_Q <= trials_Q) & (trials_Q < np.inf)
    if not good.all():
        i = int(np.flatnonzero(~good)[0])
        raise InvalidInputError(
            "an observation is not a success count",
            got=f"{successes_Q[i]:g} successes in {trials_Q[i]:g} trials for prompt {plain[i]!r}",
            allowed="whole numbers with 0 <= successes <= trials",
            fix="count rollouts whose reward passes the success rule",
        )
    return plain, successes_Q.astype(np.int64), trials_Q.astype(np.int64)


def visits(ids: PromptIds, successes: Any, trials: Any) -> tuple[list[PromptId], IntArray, IntArray]:
    """The checked counts of the prompts that were visited: those with at least one trial; all [B]."""
    plain, successes_B, trials_B = check_counts(ids, successes, trials)
    seen = trials_B > 0
    visited = [prompt for prompt, was_seen in zip(plain, seen, strict=True) if was_seen]
    return visited, successes_B[seen], trials_B[seen]
