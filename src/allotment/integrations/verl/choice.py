"""Which of the groups that are ready are trained on: the oldest, as near to the budget as they come."""

from __future__ import annotations

from collections.abc import Sequence


def near_budget(counts: Sequence[int], prompts: int, budget: int) -> list[int]:
    """Places of ``prompts`` groups, the oldest but for a few that are exchanged so that their counts sum to the budget.

    An exchange takes the youngest chosen group and the oldest other one that bring the sum nearest to the budget. A
    group that had to stand back is the oldest one later, so none waits for long.

    Args:
        counts: rollouts of each group that is ready, oldest first.
        prompts: groups of a batch.
        budget: rollouts of a batch.
    """
    chosen, others = list(range(min(prompts, len(counts)))), list(range(prompts, len(counts)))
    excess = sum(counts[place] for place in chosen) - budget
    while excess and others:
        youngest = {counts[place]: place for place in chosen}
        oldest = {counts[place]: place for place in reversed(others)}
        pairs = {n - m: (out, into) for n, out in youngest.items() for m, into in oldest.items()}
        change = min(pairs, key=lambda difference: abs(excess - difference))
        if abs(excess - change) >= abs(excess):
            break
        out, into = pairs[change]
        chosen[chosen.index(out)], others[others.index(into)] = into, out
        others.sort()
        chosen.sort()
        excess -= change
    return chosen
