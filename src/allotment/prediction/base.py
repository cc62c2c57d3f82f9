"""What every predictor can do, and the registry of prompt ids that they share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from allotment.errors import DuplicatePromptError, InvalidInputError, UnknownPromptError
from allotment.state import Stateful, decode_json, encode_json
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


def canonical_ids(ids: PromptIds, *, unique: bool = True) -> tuple[PromptId, ...]:
    """``ids`` as plain ints and strings.

    Raises:
        InvalidInputError: an id is neither an integer nor a string, or ``ids`` is no sequence of ids.
        DuplicatePromptError: an id stands twice and ``unique`` is set.
    """
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable) or getattr(ids, "ndim", 1) == 0:  # a lone id
        raise InvalidInputError(
            "the prompt ids are not a sequence", got=repr(ids), allowed="a list or array of ids", fix="pass [id]"
        )
    plain = tuple(_canonical_id(prompt) for prompt in ids)
    if unique and len(set(plain)) != len(plain):
        seen: set[PromptId] = set()
        twice = next(prompt for prompt in plain if prompt in seen or seen.add(prompt))  # type: ignore[func-returns-value]
        raise DuplicatePromptError(
            "a prompt id stands twice in the batch",
            got=f"{twice!r} at least twice among {len(plain)} ids",
            allowed="each prompt once in a batch",
            fix="merge the duplicates, or give copies ids of their own",
        )
    return plain


def _canonical_id(prompt: object) -> PromptId:
    if isinstance(prompt, str):
        return str(prompt)
    if isinstance(prompt, int | np.integer) and not isinstance(prompt, bool | np.bool_):
        return int(prompt)
    raise InvalidInputError(
        "a prompt id has the wrong type",
        got=f"{prompt!r} of type {type(prompt).__name__}",
        allowed="int or str",
        fix="use the data set's row index or a stable string key",
    )


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


class PromptIndex:
    """Numbers prompts 0, 1, 2, ... in the order in which they are first registered."""

    def __init__(self, ids: Iterable[PromptId] = ()) -> None:
        self._rows: dict[PromptId, int] = {}
        self.add(ids)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, prompt: object) -> bool:
        return prompt in self._rows

    @property
    def ids(self) -> list[PromptId]:
        """[M] every registered id, in order of its number."""
        return list(self._rows)

    def add(self, ids: Iterable[PromptId]) -> IntArray:
        """[Q] the numbers of ``ids``, new ids registered on the way."""
        rows = self._rows
        return np.array([rows.setdefault(prompt, len(rows)) for prompt in ids], dtype=np.int64)

    def rows(self, ids: Iterable[PromptId]) -> IntArray:
        """[Q] the numbers of registered ``ids``.

        Raises:
            UnknownPromptError: an id was never registered.
        """
        try:
            return np.array([self._rows[prompt] for prompt in ids], dtype=np.int64)
        except KeyError as error:
            raise UnknownPromptError(
                "a prompt is not registered with this predictor",
                got=repr(error.args[0]),
                allowed=f"one of the {len(self)} registered ids",
                fix="call register(ids, embeddings) for new prompts before asking for them",
            ) from None

    def known_rows(self, ids: Iterable[PromptId]) -> IntArray:
        """[Q] the numbers of ``ids``, -1 for those never registered."""
        return np.array([self._rows.get(prompt, -1) for prompt in ids], dtype=np.int64)

    def encoded(self) -> Any:
        """The ids as a byte array for a state file."""
        return encode_json(self.ids)

    @classmethod
    def decoded(cls, data: Any) -> PromptIndex:
        """Inverse of :meth:`encoded`."""
        return cls(decode_json(data))
