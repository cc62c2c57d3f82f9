"""Embeddings of many prompts, kept in the blocks in which they came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from allotment.checks import check_real, check_setting
from allotment.errors import InvalidInputError
from allotment.prompts.ids import PromptIndex, canonical_ids, index_from_state
from allotment.state import State, array_from_state, from_state
from allotment.types import FloatArray, IntArray, PromptId, PromptIds

Embeddings = npt.ArrayLike | Mapping[PromptId, npt.ArrayLike]
VectorArray = npt.NDArray[np.floating]
"""Embeddings [Q, D] of any precision."""
CHECKED_ROWS = 65_536
"""Rows that are looked at together, to bound temporary memory."""
MERGED_ROWS = 65_536
"""Blocks are merged up to this size, so that prompts registered one by one do not stay single."""


class EmbeddedPrompts:
    """Prompts that each have one vector [D]: 4 D bytes a prompt as float32, 8 D as float64.

    A large float32 array is kept, not copied. What is kept as float64 is all copied, and can be saved.
    """

    def __init__(self, dtype: npt.DTypeLike = np.float32, dimension: int = 0) -> None:
        """Nothing registered; D is ``dimension``, or that of the first vectors if 0."""
        self.index = PromptIndex()
        self.dtype = np.dtype(dtype)
        self._dimension = dimension
        self._blocks: list[VectorArray] = []

    def __len__(self) -> int:
        return len(self.index)

    @property
    def dimension(self) -> int:
        """D; 0 before it is known."""
        return self._blocks[0].shape[1] if self._blocks else self._dimension

    @property
    def vectors(self) -> VectorArray:
        """[M, D] the embedding of every registered prompt, in one block from now on; a view."""
        if len(self._blocks) != 1:
            self._blocks = [np.concatenate([np.empty((0, self.dimension), self.dtype), *self._blocks])]
        return self._blocks[0]

    def register(self, ids: PromptIds, embeddings: npt.ArrayLike) -> None:
        """Add prompts ``ids`` [Q] with ``embeddings`` [Q, D]. A known id with the same vector is ignored.

        Raises:
            InvalidInputError: wrong shape or dimension, a value is not finite, or a known id has another vector.
            DuplicatePromptError: an id stands twice.
        """
        plain, vectors_QD = canonical_ids(ids), as_numbers(embeddings, self.dtype)
        if not plain and vectors_QD.size == 0:
            return
        check_vectors(plain, vectors_QD, self.dimension)
        known_Q = self.index.known_rows(plain)
        old_Q = known_Q >= 0
        if old_Q.any():
            changed = np.flatnonzero(old_Q)[(self.rows(known_Q[old_Q]) != vectors_QD[old_Q]).any(axis=1)]
            if len(changed):
                raise InvalidInputError(
                    "a registered prompt was registered again with another embedding",
                    got=f"prompt {plain[changed[0]]!r}",
                    allowed="the embedding it has",
                    fix="give the changed prompt a new id, or use the embedding it was registered with",
                )
            plain = tuple(prompt for prompt, is_old in zip(plain, old_Q, strict=True) if not is_old)
            vectors_QD = vectors_QD[~old_Q]
        if plain:
            self.index.add(plain)
            is_kept = len(plain) > MERGED_ROWS and self.dtype == np.float32
            self._blocks.append(vectors_QD if is_kept else vectors_QD.copy())
            while len(self._blocks) > 1 and len(self._blocks[-2]) <= len(self._blocks[-1]) <= MERGED_ROWS:
                self._blocks[-2:] = [np.concatenate(self._blocks[-2:])]

    def rows(self, rows_Q: IntArray) -> VectorArray:
        """[Q, D] a copy of the vectors at ``rows_Q`` in order of registration."""
        if len(self._blocks) == 1:
            return self._blocks[0][rows_Q]
        ends = np.cumsum([len(block) for block in self._blocks])
        block_Q = np.searchsorted(ends, rows_Q, side="right")
        out_QD = np.empty((len(rows_Q), self.dimension), self.dtype)
        for b in np.unique(block_Q):
            here = block_Q == b
            out_QD[here] = self._blocks[b][rows_Q[here] - (ends[b] - len(self._blocks[b]))]
        return out_QD

    def state(self) -> State:
        """The entries ``ids`` and ``embeddings`` of a state."""
        return {"ids": self.index.encoded(), "embeddings": self.vectors.copy()}

    @classmethod
    def from_state(cls, state: State) -> EmbeddedPrompts:
        """Inverse of :meth:`state`, as float64. Raises :class:`StateError` where the entries do not fit together."""
        ids, prompts = index_from_state(state).ids, cls(np.float64)
        vectors = array_from_state(state, "embeddings", (len(ids), *np.shape(state["embeddings"])[1:]))
        from_state(lambda: prompts.register(ids, vectors))
        return prompts


def ids_and_vectors(
    embeddings: Embeddings | None, ids: PromptIds | None, dtype: npt.DTypeLike
) -> tuple[PromptIds, npt.ArrayLike]:
    """``(ids, vectors)`` of a mapping from id to vector [D], or of an array [M, D] with ``ids`` (default 0..M-1).

    InvalidInputError: ``ids`` without an array, or the embeddings are not numbers.
    """
    is_array = embeddings is not None and not isinstance(embeddings, Mapping)
    check_setting("ids", "ids", ids is None or is_array, "ids only together with an array of embeddings")
    if embeddings is None:
        return [], []
    if isinstance(embeddings, Mapping):
        return list(embeddings), [as_numbers(vector, dtype) for vector in embeddings.values()]
    vectors = as_numbers(embeddings, dtype)
    return range(len(np.atleast_1d(vectors))) if ids is None else ids, vectors


def as_numbers(values: object, dtype: npt.DTypeLike) -> VectorArray:
    """``values`` as an array, not copied if it is one; :class:`InvalidInputError` if they are no numbers."""
    try:
        array: npt.NDArray[Any] = np.asarray(values)
        if array.dtype.kind not in "biuf" or isinstance(values, np.ma.MaskedArray):
            check_real(values, array)
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is refused as such
            return array.astype(dtype, copy=False)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidInputError(
            "embeddings are not numbers",
            got=f"{type(error).__name__}: {error}",
            allowed="an array of real numbers [Q, D]",
            fix="pass one vector per id",
        ) from None


def check_vectors(ids: tuple[PromptId, ...], vectors_QD: VectorArray, dimension: int) -> None:
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


def squared_distances(a_AD: VectorArray, b_BD: VectorArray) -> FloatArray:
    """[A, B] squared Euclidean distances by one matrix product; origin moved to the mean of ``b`` for accuracy."""
    origin_D = b_BD.mean(axis=0)
    a_AD, b_BD = a_AD - origin_D, b_BD - origin_D
    squares = np.einsum("ad,ad->a", a_AD, a_AD)[:, None] + np.einsum("bd,bd->b", b_BD, b_BD) - 2 * (a_AD @ b_BD.T)
    return np.asarray(np.maximum(squares, 0.0), dtype=np.float64)
