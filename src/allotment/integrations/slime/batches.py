"""One batch as several plans, where a prompt stands in it more than once, and their figures as those of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from allotment.types import FloatArray, Plan, PromptId


def layers(keys: Sequence[PromptId], groups: Sequence[int], *, once: bool) -> list[dict[PromptId, int]]:
    """The group of each prompt, in as many tables as the most frequent prompt stands; in one, of first places, with
    ``once``.
    """
    found: list[dict[PromptId, int]] = []
    for key, group in zip(keys, groups, strict=True):
        table = next((table for table in found if key not in table), None)
        if table is None and not (once and found):
            found.append(table := {})
        if table is not None:
            table[key] = group
    return found


def share(budget: int, rows: int, prompts: int, bounds: tuple[int, int]) -> int:
    """Of the rollouts that ``rows`` still get, those of the next ``prompts`` of them: in proportion, and such that the
    rest fits the bounds; all of them for the last.
    """
    rest = rows - prompts
    if rest <= 0:
        return budget
    lower, upper = bounds
    least, most = max(lower * prompts, budget - upper * rest), min(upper * prompts, budget - lower * rest)
    return min(max(round(budget * prompts / rows), least), most)


def of_whole_plans(plans: Sequence[Plan]) -> FloatArray:
    """[Q] by what the weights of Q groups are multiplied where only some groups of their plans are here: how many the
    plan has, over how many of them are here. 1 for whole plans, and without weights.
    """
    here = Counter(map(id, plans))
    return np.array([1.0 if p.weights is None else np.count_nonzero(p.counts) / here[id(p)] for p in plans])


def merged(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """Figures of several plans as those of one step: sums of counts, means otherwise."""
    names = dict.fromkeys(name for own in figures for name in own)
    return {name: float(_REDUCE.get(name, np.mean)([own[name] for own in figures if name in own])) for name in names}


_REDUCE: dict[str, Any] = {
    "budget": np.sum,
    "unscored": np.sum,
    "zero_count": np.sum,
    "min_count": np.min,
    "max_count": np.max,
}
