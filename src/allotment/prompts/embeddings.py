"""Embeddings of many prompts, float32, kept in the blocks in which they came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from allotment.checks import check_setting
from allotment.errors import InvalidInputError
from allotment.prompts.ids import PromptIndex, canonical_ids, index_from_state
from allotment.prompts.table import grown
from allotment.state import State, array_from_state, from_state
from allotment.types import FloatArray, IntArray, PromptId, PromptIds

Float32Array = npt.NDArray[np.float32]
CHECKED_ROWS = 65_536
"""Rows that are looked at together, to bound temporary memory."""
Embeddings = npt.ArrayLike | Mapping[PromptId, npt.ArrayLike]
MERGED_ROWS = 65_536
"""Blocks are merged up to this size, so that prompts registered one by one do not stay single."""


class Vectors:
    """Prompts that each have one vector [D]. 4 D bytes a prompt; a large float32 array is kept, not copied."""

    def __init__(self, dimension: int = 0) -> None:
        """Nothing registered; D is ``dimension``, or that of the first vectors if 0."""
        self.index = PromptIndex()
        self._dimension = dimension
        self._blocks: list[Float32Array] = []

    def __len__(self) -> int:
        return len(self.index)

    @property
    def dimension(self) -> int:
        """D; 0 before it is known."""
        return self._blocks[0].shape[1] if self._blocks else self._dimension

    def register(self, ids: PromptIds, embeddings: npt.ArrayLike) -> None:
        """Add prompts ``ids`` [Q] with ``embeddings`` [Q, D]. A known id with the same vector is passed over.

        Raises:
            InvalidInputError: wrong shape or dimension, a value is not finite, or a known id has another vector.
            DuplicatePromptError: an id stands twice.
        """
        plain, vectors_QD = canonical_ids(ids), as_float32(embeddings)
        if not plain and vectors_QD.size == 0:
            return
        check_vectors(plain, vectors_QD, self.dimension)
        known_Q = self.index.known_rows(plain)
        old_Q = known_Q >= 0
        if old_Q.any():
            check_unchanged(plain, old_Q, self.rows(known_Q[old_Q]), vectors_QD)
            plain = tuple(prompt for prompt, is_old in zip(plain, old_Q, strict=True) if not is_old)
            vectors_QD = vectors_QD[~old_Q]
        if plain:
            self.index.add(plain)
            self._blocks.append(vectors_QD if len(plain) > MERGED_ROWS else vectors_QD.copy())
            while len(self._blocks) > 1 and len(self._blocks[-2]) <= len(self._blocks[-1]) <= MERGED_ROWS:
                self._blocks[-2:] = [np.concatenate(self._blocks[-2:])]

    def rows(self, rows_Q: IntArray) -> FloatArray:
        """[Q, D] the vectors at ``rows_Q`` in order of registration, as float64."""
        ends = np.cumsum([len(block) for block in self._blocks])
        block_Q = np.searchsorted(ends, rows_Q, side="right")
        out_QD = np.empty((len(rows_Q), self.dimension))
        for b in np.unique(block_Q):
            here = block_Q == b
            out_QD[here] = self._blocks[b][rows_Q[here] - (ends[b] - len(self._blocks[b]))]
        return out_QD


def as_float32(values: object) -> Float32Array:
    """``values`` as an array of float32, not copied if it is one; :class:`InvalidInputError` if they are no numbers."""
    try:
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is refused as such
            return np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            "embeddings are not numbers", got=error, allowed="an array [Q, D]", fix="pass one vector per id"
        ) from None


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
        check_setting("ids", "ids", ids is None or is_array, "ids only together with an array of embeddings")
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


def _as_floats(values: Any) -> FloatArray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            "embeddings are not numbers", got=error, allowed="an array [Q, D]", fix="pass one vector per id"
        ) from None
