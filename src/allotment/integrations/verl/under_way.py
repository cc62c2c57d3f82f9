"""Plans whose rollouts are coming back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from allotment.integrations.generic import counts_of
from allotment.types import Plan

OF_THE_LOSS = ("baselines", "baseline_shares")
"""What an open plan says of the advantages of its rollouts. Weights: none, where plans stay open (``checks``)."""


@dataclass(eq=False)
class UnderWay:
    """A plan whose rollouts are coming back."""

    plan: Plan
    asked_at: int
    """Training step of the request."""
    candidates: int
    """Distinct prompts that could have been planned for."""
    waiting: dict[str, str]
    """uid of each group that has not come back, and its prompt."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Response tokens of each prompt so far."""

    def counts(self) -> dict[str, int]:
        """Rollouts of each group that has not come back, by uid."""
        return dict(zip(self.waiting, counts_of(self.plan, self.waiting.values()), strict=True))

    def saved(self) -> dict[str, Any]:
        """For a checkpoint; the planner keeps the plan, but for what the loss needs of it."""
        own = {name: getattr(self, name) for name in ("asked_at", "candidates", "waiting", "tokens")}
        carried = {name: getattr(self.plan, name) for name in OF_THE_LOSS}
        return own | {name: values.tolist() for name, values in carried.items() if values is not None}


def restored(entries: Iterable[dict[str, Any]], plans: Sequence[Plan]) -> dict[int, UnderWay]:
    """By step of the planner, the inverse of :meth:`UnderWay.saved`; without those whose plan is no longer open."""
    plan_of, found = {plan.step: plan for plan in plans}, {}
    for entry in entries:
        if (plan := plan_of.get(number := entry.pop("plan"))) is None:
            continue
        carried: dict[str, Any] = {name: np.array(entry.pop(name)) for name in OF_THE_LOSS if name in entry}
        found[number] = UnderWay(replace(plan, **carried), **entry)
    return found


def take_lost(entries: Iterable[UnderWay], alive: Collection[str]) -> list[int]:
    """Rollouts of each group that nobody will bring back, since verl has given it up; they are waited for no longer."""
    counts: list[int] = []
    for entry in entries:
        for uid, count in entry.counts().items():
            if uid not in alive:
                counts.append(count)
                del entry.waiting[uid]
    return counts
