"""A past that planners learn from: visits of every prompt of a pool by the lab's policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from allotment.lab.generation import Lab, Rollouts, seeded_generator
from allotment.lab.scores import Sketch
from allotment.planning.success import SuccessPlanner
from allotment.tasks.mixture import Problem
from allotment.types import FloatArray

VISIT = 8
"""Rollouts of a prompt in one past visit."""
OBSERVED_TOGETHER = 16
"""Prompts of a past step."""


@dataclass(frozen=True, eq=False)
class PastStep:
    """One visit of some prompts."""

    ids: tuple[str, ...]
    """[Q] the prompts."""
    rollouts: Rollouts
    """N rollouts of them."""
    scores_NK: FloatArray | None
    """[N, K] sketches of their scores; None if nobody asked."""

    def teach(self, planner: SuccessPlanner) -> None:
        """Let a planner's beliefs observe the step."""
        groups_N, is_success_N = self.rollouts.group_N.numpy(), self.rollouts.rewards_N > 0
        trials_Q = np.bincount(groups_N, minlength=len(self.ids))
        if self.scores_NK is not None:
            planner.learn_scores(self.ids, groups_N, is_success_N, self.scores_NK)
        planner.predictor.observe(self.ids, np.bincount(groups_N[is_success_N], minlength=len(self.ids)), trials_Q)


def past_steps(
    lab: Lab, pool: Sequence[Problem], rollouts: int, seed: int, sketch: Sketch | None = None
) -> Iterator[PastStep]:
    """Visits of 8 rollouts (the last may be shorter), 16 prompts a step, the pool in a new order for each visit."""
    for visit, start in enumerate(range(0, rollouts, VISIT)):
        n = min(VISIT, rollouts - start)
        order = np.random.default_rng([seed, 3, visit]).permutation(len(pool))
        for first in range(0, len(pool), OBSERVED_TOGETHER):
            part = [pool[i] for i in order[first : first + OBSERVED_TOGETHER]]
            made = lab.rollouts(part, np.full(len(part), n), seeded_generator(seed, 4, visit, first))
            yield PastStep(tuple(p.id for p in part), made, None if sketch is None else sketch(part, made))
