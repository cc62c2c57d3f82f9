"""What predictors keep per prompt: growing rows, embeddings with ids, and the way from a state back to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from allotment.errors import AllotmentError, InvalidInputError, StateError
from allotment.prediction.base import PromptIndex, canonical_ids
from allotment.state import State, decode_json
from allotment.types import FloatArray, IntArray, PromptId, PromptIds

CHECKED_ROWS = 65_536
"""Rows that are looked at together, to bound temporary memory."""
Embeddings = npt.ArrayLike | Mapping[PromptId, npt.ArrayLike]
Result = TypeVar("Result")


def grown(array: FloatArray, rows: int, fill: float = 0.0) -> FloatArray:
    """``array`` with room for at least ``rows`` rows, new ones set to ``fill``.

    The room is doubled whenever it runs out, so that adding M rows one by one costs O(M).
    """
    if rows <= len(array):
        return array
    bigger = np.full((max(rows, 2 * len(array)), *array.shape[1:]), fill)
    bigger[: len(array)] = array
    return bigger


def check_hyper(name: str, value: object, is_allowed: bool, allowed: str) -> None:
    """Raise :class:`InvalidInputError` naming the hyper-parameter unless ``is_allowed``."""
    if not is_allowed:
        raise InvalidInputError(
            f"{name} is outside its range", got=value, allowed=allowed, fix=f"choose another {name}"
        )


class EmbeddedPrompts:
    """Prompts that each have an id and one embedding vector, in the order they were registered.

    Memory is 8 M D bytes for M prompts of dimension D (up to twice that right after the room was doubled).
    """

    def __init__(self, embeddings: Embeddings | None = None, ids: PromptIds | None = None) -> None:
        """Register ``embeddings``: a mapping from id to vector [D], or an array [M, D] with ``ids`` (default 0..M-1).

        Raises:
            InvalidInputError: see :meth:`register`; or ids without an array of embeddings.
        """
        self.index = PromptIndex()
        self._room = np.empty((0, 0))
        is_array = embeddings is not None and not isinstance(embeddings, Mapping)
        check_hyper("ids", "ids", ids is None or is_array, "ids only together with an array of embeddings")
        if isinstance(embeddings, Mapping):
            self.register(list(embeddings), [_as_floats(vector) for vector in embeddings.values()])
        elif embeddings is not None:
            self.register(range(len(np.atleast_1d(_as_floats(embeddings)))) if ids is None else ids, embeddings)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def vectors(self) -> FloatArray:
        """[M, D] the embedding of every registered prompt, a view."""
        return self._room[: len(self)]

    def register(self, ids: PromptIds, embeddings: npt.ArrayLike | list[FloatArray]) -> None:
        """Add prompts ``ids`` [Q] with ``embeddings`` [Q, D]. A known id with the same vector is passed over.

        Raises:
            InvalidInputError: wrong shape or dimension, a value is not finite, or a known id has another vector.
            DuplicatePromptError: an id stands twice.
        """
        plain, vectors_QD = canonical_ids(ids), _as_floats(embeddings)
        if not plain and vectors_QD.size == 0:
            return
        check_vectors(plain, vectors_QD, self._room.shape[1])
        if not self._room.shape[1]:
            self._room = np.empty((0, vectors_QD.shape[1]))
        known_Q = self.index.known_rows(plain)
        old_Q = known_Q >= 0
        check_unchanged(plain, old_Q, self.vectors[known_Q[old_Q]], vectors_QD)
        rows_Q = self.index.add(plain)
        self._room = grown(self._room, len(self))
        self._room[rows_Q] = vectors_QD

    def state(self) -> State:
        """The entries ``ids`` and ``embeddings`` of a state."""
        return {"ids": self.index.encoded(), "embeddings": self.vectors.copy()}

    @classmethod
    def from_state(cls, state: State) -> EmbeddedPrompts:
        """Inverse of :meth:`state`. Raises :class:`StateError` where the entries do not fit together."""
        ids = index_from_state(state).ids
        vectors = array_from_state(state, "embeddings", (len(ids), *np.shape(state["embeddings"])[1:]))
        return from_state(lambda: cls(vectors, ids) if ids else cls())


def check_vectors(ids: tuple[PromptId, ...], vectors_QD: npt.NDArray[np.floating], dimension: int) -> None:
    """Raise :class:`InvalidInputError` unless there is one finite vector per id, of this dimension (0: of any)."""
    shape = vectors_QD.shape
    if len(shape) != 2 or shape[0] != len(ids) or not shape[1] or (dimension and shape[1] != dimension):
        raise InvalidInputError(
            "embeddings have the wrong shape",
            got=f"{shape} for {len(ids)} ids",
            allowed=f"({len(ids)}, {dimension or 'D'}): one row per id",
            fix="embed all prompts with the same model, one row each",
        )
    for start in range(0, len(ids), CHECKED_ROWS):
        finite_q = np.isfinite(vectors_QD[start : start + CHECKED_ROWS]).all(axis=1)
        if not finite_q.all():
            raise InvalidInputError(
                "an embedding is not finite",
                got=f"NaN or infinity in the embedding of prompt {ids[start + int(finite_q.argmin())]!r}",
                allowed="finite numbers",
                fix="embed that prompt again, or leave it out",
            )


def check_unchanged(
    ids: tuple[PromptId, ...],
    old_Q: npt.NDArray[np.bool_],
    before: npt.NDArray[np.floating],
    vectors_QD: npt.NDArray[np.floating],
) -> None:
    """Raise :class:`InvalidInputError` unless the ids marked ``old`` bring the vectors that they had ``before``."""
    changed_Q = old_Q.copy()
    changed_Q[old_Q] = (before != vectors_QD[old_Q]).any(axis=1)
    if changed_Q.any():
        raise InvalidInputError(
            "a registered prompt was registered again with another embedding",
            got=f"prompt {ids[int(changed_Q.argmax())]!r}",
            allowed="the embedding it has",
            fix="give the changed prompt a new id, or use the embedding it was registered with",
        )


def index_from_state(state: State) -> PromptIndex:
    """The prompt index stored under ``ids``. Raises :class:`StateError` where that is not a list of distinct ids."""
    return from_state(lambda: PromptIndex(canonical_ids(decode_json(state["ids"]))))


def array_from_state(state: State, key: str, shape: tuple[int, ...]) -> FloatArray:
    """A copy of the array under ``key``. Raises :class:`StateError` unless it is finite and of this shape."""
    array = np.array(state[key])
    if array.shape != shape or array.dtype != np.float64 or not np.isfinite(array).all():
        raise StateError(
            f"{key!r} of a state does not fit",
            got=f"{array.dtype} {array.shape}",
            allowed=f"finite float64 {shape}",
            fix="load the state_dict() of one and the same predictor",
        )
    return array


def rows_from_state(state: State, key: str, limit: int) -> IntArray:
    """A copy of the row numbers under ``key``. Raises :class:`StateError` unless they lie in ``[0, limit)``."""
    rows = np.array(state[key])
    if rows.ndim != 1 or rows.dtype != np.int64 or ((rows < 0) | (rows >= limit)).any():
        raise StateError(
            f"{key!r} of a state does not fit",
            got=f"{rows.dtype} {rows.shape}",
            allowed=f"1-d int64 in [0, {limit})",
            fix="load the state_dict() of one and the same predictor",
        )
    return rows


def from_state(make: Callable[[], Result]) -> Result:
    """``make()``, with what it complains about turned into a :class:`StateError`."""
    try:
        return make()
    except (AllotmentError, TypeError, ValueError) as error:
        raise StateError(
            "a state holds values that cannot be used", got=error, allowed="a state_dict()", fix="start anew"
        ) from error


def _as_floats(values: Any) -> FloatArray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            "embeddings are not numbers", got=error, allowed="an array [Q, D]", fix="pass one vector per id"
        ) from None
