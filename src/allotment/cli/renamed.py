"""Flags that earlier versions had, as the present ones; each with a ``DeprecationWarning``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

BOUNDS = {"--lower": 0, "--min": 0, "--upper": 1, "--max": 1}
"""What ``--bounds L U`` replaces."""


def present_words(command: str, words: Sequence[str]) -> list[str]:
    """The words of ``allotment COMMAND`` with ``--trainer NAME`` as the sub-command it is now, and old bounds as
    ``--bounds L U``.
    """
    split = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    bounds: list[str | None] = [None, None]
    trainer, rest = [], []
    while split:
        word = split.pop(0)
        if word in BOUNDS and split:
            bounds[BOUNDS[word]] = split.pop(0)
            _warn(word, "--bounds L U")
        elif word == "--trainer" and split and command in ("train", "compare"):
            trainer = [split.pop(0)]
            _warn(f"--trainer {trainer[0]}", f"allotment {command} {trainer[0]}")
        else:
            rest.append(word)
    if any(bounds):
        rest += ["--bounds", bounds[0] or "3", bounds[1] or "32"]
    return trainer + rest


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=3)
