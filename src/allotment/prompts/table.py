"""What is kept of each prompt."""

from __future__ import annotations

import numpy as np

from allotment.types import FloatArray


def grown(array: FloatArray, rows: int, fill: float = 0.0) -> FloatArray:
    """``array`` with room for at least ``rows`` rows, new ones set to ``fill``.

    The room is doubled whenever it runs out, so that adding M rows one by one costs O(M).
    """
    if rows <= len(array):
        return array
    bigger = np.full((max(rows, 2 * len(array)), *array.shape[1:]), fill)
    bigger[: len(array)] = array
    return bigger
