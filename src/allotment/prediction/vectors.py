"""Embeddings of many prompts, float32, kept in the blocks in which they came."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from allotment.errors import InvalidInputError
from allotment.prediction.base import PromptIndex, canonical_ids
from allotment.prediction.storage import check_unchanged, check_vectors
from allotment.types import FloatArray, IntArray, PromptIds

Float32Array = npt.NDArray[np.float32]
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
