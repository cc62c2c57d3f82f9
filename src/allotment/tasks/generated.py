"""A large pool of fresh questions for one pass: no prompt is trained on twice, none is known from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import islice

from allotment.tasks.levels import LEVELS, Level
from allotment.tasks.mixture import Mixture, Problem, fresh_entries, load_mixture, problem_of

GENERATED_SEED = 20500000
"""Far from the mixture's: reasoning-gym makes question i of seed s from s + i alone."""
TRIED_PER_LEVEL, MOST_PER_LEVEL = 10_000, 5_000
HELD_OUT_EVERY = 50
"""One question in so many is held out, and one in so many of the pool is measured."""
LARGE_LEVELS = (
    "chain_sum-2x2",
    "chain_sum-3x1",
    "products-2",
    "gcd-100",
    "spell_backward-8",
    "simple_equations-9",
    "simple_equations-20",
)
"""Levels with more than a thousand questions that are not in the mixture. Of spelling, all of which the shipped
policies solve, only the longest words."""


@cache  # some seconds of generation; the result is immutable
def load_generated() -> Mixture:
    """About 29,000 questions of the mixture's larger levels as pool, and about 600 held out; the same in every process.

    No question stands twice, and none is in the mixture: neither in its pool nor held out nor in the warm start.
    """
    mixture = load_mixture()
    seen = {problem.question for part in (mixture.pool, mixture.held_out, mixture.warm_start) for problem in part}
    levels = [level for level in LEVELS if level.name in LARGE_LEVELS]
    problems = [problem for level in levels for problem in islice(_fresh(level, seen), MOST_PER_LEVEL)]
    held_out = tuple(problems[::HELD_OUT_EVERY])
    pool = tuple(problem for row, problem in enumerate(problems) if row % HELD_OUT_EVERY)
    return Mixture(pool, held_out, mixture.warm_start, measured=pool[::HELD_OUT_EVERY])


def _fresh(level: Level, seen: set[str]) -> Iterator[Problem]:
    """Questions of a level that are not among ``seen``, which grows by them."""
    for row, entry in fresh_entries(level, seen, TRIED_PER_LEVEL, GENERATED_SEED):
        yield problem_of(level, f"generated-{row}", entry)
