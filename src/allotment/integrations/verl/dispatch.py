"""verl hands each agent-loop worker an equal share of the prompts; here, of the rollouts too."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def balanced_order(counts: Sequence[int], workers: int) -> list[int]:
    """[Q] places of the prompts so that contiguous chunks of equal length have nearly equal sums of counts.

    The largest count goes to the chunk with the smallest sum that has room (longest processing time first). Chunks are
    of ``ceil(Q / workers)`` prompts, the last shorter, as ``TensorDict.chunk`` cuts them.
    """
    size = -(-len(counts) // workers)
    rooms = [min(size, len(counts) - first) for first in range(0, len(counts), size)]
    chunks: list[list[int]] = [[] for _ in rooms]
    heap = [(0, chunk) for chunk in range(len(rooms))]
    for place in sorted(range(len(counts)), key=lambda q: -counts[q]):
        total, chunk = heapq.heappop(heap)
        chunks[chunk].append(place)
        if len(chunks[chunk]) < rooms[chunk]:
            heapq.heappush(heap, (total + counts[place], chunk))
    return [place for chunk in chunks for place in chunk]
