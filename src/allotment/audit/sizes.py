"""Groups of a size that does not belong into the log: prompts merged into one, or one prompt drawn again and again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from allotment.audit.log import Log

BoolArray = npt.NDArray[np.bool_]

REGULAR = 0.5
"""Share of the groups from which the most common size is the log's."""
TWICE, MANY, LEAST = 2, 8, 32
"""A group is far too large from twice the log's size; in a log of uneven groups from eight times their median, above
32."""
NOTABLE = 0.01
"""Share of the rollouts from which it is said."""
LOPSIDED = (0.1, 5.0)
"""A prompt has very many rollouts if it has this share of them, and so many times its even share."""


def usual_groups(log: Log) -> tuple[BoolArray, float]:
    """[V] which groups are not far larger than the log's, and the log's size."""
    sizes, numbers = np.unique(log.trials, return_counts=True)
    common = int(sizes[numbers.argmax()])
    is_regular = numbers.max() >= REGULAR * len(log.trials) and common > 1
    usual = common if is_regular else float(np.median(log.trials))
    return log.trials <= (TWICE * usual - 1 if is_regular else max(MANY * usual, LEAST)), usual


def unusual_sizes(log: Log) -> tuple[str, ...]:
    """What is unusual of the log's groups, with its share of the rollouts; nothing where nothing is."""
    usual_V, usual = usual_groups(log)
    whole, large_V = float(log.trials.sum()), ~usual_V
    found = []
    if (share := float(log.trials[large_V].sum()) / whole) >= NOTABLE:
        found.append(
            f"{large_V.sum():,} groups are far larger than the usual {usual:g} rollouts, up to {log.trials.max():,}: "
            f"{100 * share:.0f} % of all rollouts. Are prompts taken for one another? Name what tells them apart with "
            "--id, or leave these groups out"
        )
    rollouts_M = np.bincount(log.prompt, log.trials, minlength=len(log.ids))
    largest = int(rollouts_M.argmax())
    share, times = LOPSIDED
    if (own := float(rollouts_M[largest]) / whole) >= max(share, times / len(log.ids)):
        name = str(log.ids[largest]) if log.texts is None else log.texts[largest]
        found.append(
            f"one prompt has {100 * own:.0f} % of all rollouts ({int(rollouts_M[largest]):,}), and the figures are "
            f"mostly its own: {name[:60]!r}"
        )
    return tuple(found)
