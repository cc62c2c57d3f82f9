"""The lab's task mixture: 14 difficulty levels of reasoning-gym, split into disjoint sets by a fixed rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import reasoning_gym

GENERATED_PER_LEVEL = 3000
MIXTURE_SEED = 20260201
POOL_PER_LEVEL, HELD_OUT_PER_LEVEL = 60, 30


@dataclass(frozen=True)
class Level:
    """One task of reasoning-gym at one difficulty."""

    name: str
    dataset: str
    options: Mapping[str, int]


LEVELS: tuple[Level, ...] = (
    Level("chain_sum-2x1", "chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}),
    Level("chain_sum-2x2", "chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}),
    Level("chain_sum-3x1", "chain_sum", {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}),
    Level("products-1", "products", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}),
    Level("products-2", "products", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}),
    Level("gcd-20", "gcd", {"max_value": 20}),
    Level("gcd-100", "gcd", {"max_value": 100}),
    Level("count_bits-63", "count_bits", {"max_n": 63}),
    Level("count_bits-1023", "count_bits", {"max_n": 1023}),
    Level("spell_backward-4", "spell_backward", {"min_word_len": 3, "max_word_len": 4}),
    Level("spell_backward-6", "spell_backward", {"min_word_len": 5, "max_word_len": 6}),
    Level("spell_backward-8", "spell_backward", {"min_word_len": 7, "max_word_len": 8}),
    Level("simple_equations-9", "simple_equations", {"min_terms": 2, "max_terms": 2, "max_value": 9}),
    Level("simple_equations-20", "simple_equations", {"min_terms": 2, "max_terms": 2, "max_value": 20}),
)


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
    own = {"size": GENERATED_PER_LEVEL, "seed": MIXTURE_SEED, **level.options}
    problems: list[Problem] = []
    for entry in reasoning_gym.create_dataset(level.dataset, **own):
        if (question := entry["question"]) not in seen:
            seen.add(question)
            name = f"{level.name}/{len(problems)}"
            problems.append(Problem(name, level.name, level.dataset, question, str(entry["answer"]), entry))
    return problems
