"""The lab's task mixture: 14 difficulty levels of reasoning-gym, split into disjoint sets by a fixed rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import reasoning_gym

from allotment.tasks.levels import LEVELS, Level

GENERATED_PER_LEVEL = 3000
MIXTURE_SEED = 20260201
POOL_PER_LEVEL, HELD_OUT_PER_LEVEL = 60, 30


@dataclass(frozen=True)
class Problem:
    """One prompt with its reference answer."""

    id: str
    """Unique over the mixture: level name, slash, running number."""
    level: str
    dataset: str
    question: str
    """The prompt text as reasoning-gym words it."""
    answer: str
    """The only accepted answer, character by character."""
    entry: Mapping[str, Any] = field(repr=False, compare=False)
    """The generated entry that reasoning-gym's own verifier reads."""


@dataclass(frozen=True)
class Mixture:
    """Three disjoint sets of problems; no question stands in two of them."""

    pool: tuple[Problem, ...]
    """Prompts for reinforcement learning."""
    held_out: tuple[Problem, ...]
    """Prompts for evaluation only."""
    warm_start: tuple[Problem, ...]
    """Prompts with answers for the supervised warm start."""
    measured: tuple[Problem, ...] | None = None
    """Prompts of the pool whose success is measured; all if None."""


@cache  # three seconds of generation; the result is immutable
def load_mixture() -> Mixture:
    """Generate the mixture; the same problems in every process.

    Of each level's distinct questions the first 60 (at most a third) are the pool, the next 30 (at most a sixth) are
    held out, the rest is for the warm start: small levels have few distinct questions.
    """
    pool: list[Problem] = []
    held_out: list[Problem] = []
    warm_start: list[Problem] = []
    seen: set[str] = set()
    for level in LEVELS:
        problems = _distinct_problems(level, seen)
        n_pool = min(POOL_PER_LEVEL, len(problems) // 3)
        n_held_out = min(HELD_OUT_PER_LEVEL, len(problems) // 6)
        pool += problems[:n_pool]
        held_out += problems[n_pool : n_pool + n_held_out]
        warm_start += problems[n_pool + n_held_out :]
    return Mixture(tuple(pool), tuple(held_out), tuple(warm_start))


def _distinct_problems(level: Level, seen: set[str]) -> list[Problem]:
    found = fresh_entries(level, seen, GENERATED_PER_LEVEL, MIXTURE_SEED)
    return [problem_of(level, str(number), entry) for number, (_, entry) in enumerate(found)]


def fresh_entries(level: Level, seen: set[str], size: int, seed: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Entries of a level whose question is not among ``seen``, which grows by them, and their rows of ``size``."""
    own: dict[str, Any] = {"size": size, "seed": seed, **level.options}
    for row, entry in enumerate(reasoning_gym.create_dataset(level.dataset, **own)):
        if entry["question"] not in seen:
            seen.add(entry["question"])
            yield row, entry


def problem_of(level: Level, name: str, entry: Mapping[str, Any]) -> Problem:
    """The problem of an entry; ``name`` is its own within the level."""
    own = f"{level.name}/{name}"
    return Problem(own, level.name, level.dataset, entry["question"], str(entry["answer"]), entry)
