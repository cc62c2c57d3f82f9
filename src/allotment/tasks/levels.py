"""The difficulty levels of the lab's mixture, as reasoning-gym makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
