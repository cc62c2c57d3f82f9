"""Countdown: make a target of a few numbers. A task with many right answers, all of which can be enumerated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations, islice

import reasoning_gym

from allotment.tasks.generated import load_generated
from allotment.tasks.levels import Level
from allotment.tasks.mixture import Mixture, Problem, load_mixture
from allotment.tasks.pronunciation import DATASET, load_words

SEED = 20260202
POOL_PER_LEVEL, HELD_OUT_PER_LEVEL = 120, 60
WARM_START_PER_LEVEL = 4000
"""Entries that are generated for the warm start, of which many have the same numbers and target."""

_NUMBERS = {"min_value": 1, "max_value": 9, "min_target": 1, "max_target": 30}
LEVELS: tuple[Level, ...] = tuple(
    Level(f"countdown-{n}", "countdown", {"min_numbers": n, "max_numbers": n, **_NUMBERS}) for n in (3, 4)
)
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
_TURNED = str.maketrans("+-*/", "-+/*")


@dataclass(frozen=True)
class Expression:
    """An expression in which every bracket is needed."""

    text: str
    precedence: int
    """1 for a sum or a difference, 2 for a product or a quotient, 3 for a number."""
    parts: tuple[str, ...]
    """Its terms or factors with their signs, sorted: the same for all that differ by order and brackets alone."""

    @property
    def form(self) -> str:
        """What does not change when terms or factors change places: ``3-(1-2)`` and ``2+3-1`` have one form."""
        return self.text if self.precedence == 3 else f"[{' '.join(self.parts)}]"


def joined(left: Expression, operator: str, right: Expression) -> Expression | None:
    """``left operator right``; None where the brackets it would take can be left out, as in ``1+(2-3)``."""
    level = _PRECEDENCE[operator]
    if right.precedence == level and operator in "+*":
        return None
    text = f"{_bracketed(left, level)}{operator}{_bracketed(right, level + 1)}"
    first, other = ("+", "-") if level == 1 else ("*", "/")
    parts = [*_parts(left, level, first)]
    parts += [
        part[0].translate(_TURNED) + part[1:] if operator == other else part for part in _parts(right, level, first)
    ]
    return Expression(text, level, tuple(sorted(parts)))


def _bracketed(expression: Expression, least: int) -> str:
    return expression.text if expression.precedence >= least else f"({expression.text})"


def _parts(expression: Expression, level: int, sign: str) -> tuple[str, ...]:
    return expression.parts if expression.precedence == level else (sign + expression.form,)


@cache
def reachable(numbers: tuple[int, ...]) -> Mapping[Fraction, tuple[Expression, ...]]:
    """Every value that all of the sorted ``numbers`` make together, with the expressions that have it."""
    if len(numbers) == 1:
        return {Fraction(numbers[0]): (Expression(str(numbers[0]), 3, ()),)}
    found: dict[Fraction, list[Expression]] = {}
    for left, right in _splits(numbers):
        for a, of_a in reachable(left).items():
            for b, of_b in reachable(right).items():
                for operator, value in (("+", a + b), ("-", a - b), ("*", a * b), ("/", a / b if b else None)):
                    if value is not None:
                        found.setdefault(value, []).extend(_pairs(of_a, operator, of_b))
    return {value: tuple(expressions) for value, expressions in found.items()}


@cache
def solutions(numbers: tuple[int, ...], target: int) -> Mapping[str, str]:
    """Every right answer with its form, in alphabetic order.

    An answer uses each of the sorted ``numbers`` (at least two, positive) once, has no spaces, no sign in front and no
    bracket that can be left out, and is worth exactly ``target`` > 0; values on the way may be fractions or negative.
    Answers of one form differ only by the order of terms and factors and by the brackets that go with it.
    """
    found: dict[str, str] = {}
    for left, right in _splits(numbers):
        others = reachable(right)
        for a, of_a in reachable(left).items():
            wanted = {"+": target - a, "-": a - target, "*": target / a if a else None, "/": a / target}
            for operator, b in wanted.items():
                if b is not None and (b or operator != "/"):
                    found |= {e.text: e.form for e in _pairs(of_a, operator, others.get(b, ()))}
    return dict(sorted(found.items()))


def _splits(numbers: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """All ways to deal sorted numbers into a left and a right part, each once."""
    places = range(len(numbers))
    chosen = [left for size in range(1, len(numbers)) for left in combinations(places, size)]
    dealt = {(tuple(numbers[i] for i in c), tuple(numbers[i] for i in places if i not in c)) for c in chosen}
    yield from sorted(dealt)


def _pairs(lefts: tuple[Expression, ...], operator: str, rights: tuple[Expression, ...]) -> list[Expression]:
    found = (joined(left, operator, right) for left in lefts for right in rights)
    return [expression for expression in found if expression is not None]


def solutions_of(problem: Problem) -> Mapping[str, str]:
    """The right answers of a problem with their forms, see :func:`solutions`."""
    metadata = problem.entry["metadata"]
    return solutions(tuple(sorted(metadata["numbers"])), metadata["target"])


@cache
def load_countdown() -> Mixture:
    """The task's pool and held-out prompts, without those of the warm start; the same in every process.

    Of each level's problems the first 120 are the pool and the next 60 are held out. No two have the same numbers and
    target, in whatever order the numbers stand.
    """
    pool: list[Problem] = []
    held_out: list[Problem] = []
    for level in LEVELS:
        problems = list(islice(_problems(level), POOL_PER_LEVEL + HELD_OUT_PER_LEVEL))
        pool += problems[:POOL_PER_LEVEL]
        held_out += problems[POOL_PER_LEVEL:]
    return Mixture(tuple(pool), tuple(held_out), ())


def mixture_of(regime: str, pool: str = "mixture") -> Mixture:
    """The prompts that a regime of the lab is about; with ``pool`` "generated" a large number of fresh ones."""
    if regime == DATASET:
        return load_words(pool)
    if pool == "generated":
        return load_generated()
    return load_countdown() if regime == "countdown" else load_mixture()


def questions_of(regime: str, pool: str = "mixture") -> dict[str, str]:
    """The texts of the pool's prompts by id; making them takes seconds."""
    return {problem.id: problem.question for problem in mixture_of(regime, pool).pool}


def warm_start_problems() -> list[Problem]:
    """Problems of which none has numbers and target of the pool or the held-out set; takes half a minute."""
    return [p for level in LEVELS for p in islice(_problems(level), POOL_PER_LEVEL + HELD_OUT_PER_LEVEL, None)]


def _problems(level: Level) -> Iterator[Problem]:
    """Problems of a level as reasoning-gym makes and words them, with distinct numbers and targets."""
    seen: set[tuple[tuple[int, ...], int]] = set()
    size = POOL_PER_LEVEL + HELD_OUT_PER_LEVEL + WARM_START_PER_LEVEL
    dataset = reasoning_gym.create_dataset(level.dataset, size=size, seed=SEED, **dict(level.options))
    for entry in dataset:
        numbers, target = tuple(sorted(entry["metadata"]["numbers"])), entry["metadata"]["target"]
        if (numbers, target) in seen:
            continue
        seen.add((numbers, target))
        first = next(iter(solutions(numbers, target)))
        name = f"{level.name}/{len(seen) - 1}"
        yield Problem(name, level.name, level.dataset, entry["question"], first, entry)
