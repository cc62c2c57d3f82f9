"""Flags that earlier versions had, as the present ones; each with a ``DeprecationWarning``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from allotment.errors import ConfigError

BOUNDS = {"--lower": 0, "--min": 0, "--upper": 1, "--max": 1}
"""What ``--bounds L U`` replaces."""


def present_words(command: str, words: Sequence[str]) -> list[str]:
    """The words of ``allotment COMMAND`` with ``--trainer NAME`` as the sub-command it is now, and old bounds as
    ``--bounds L U``; 3 or 32 for one that is not there.

    Raises:
        ConfigError: one bound stands in a file, the other among the words; or ``--candidates``, a multiple, is there.
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
        elif word == "--candidates":
            raise ConfigError(
                "--candidates is now --candidate-prompts, a number of prompts",
                got=" ".join([word, *split[:1]]),
                allowed="--candidate-prompts N",
                fix="multiply by --prompts-per-step",
            )
        else:
            rest.append(word)
    if None in bounds and any(bounds) and {"--config", "--resume"} & {*rest}:
        given = " and ".join(word for word in BOUNDS if word in words)
        fix = "name both bounds: --bounds L U"
        raise ConfigError("the other bound stands in a file", got=given, allowed="--bounds L U", fix=fix)
    if any(bounds):
        rest += ["--bounds", bounds[0] or "3", bounds[1] or "32"]
    return trainer + rest


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=3)
