"""Entries of reasoning-gym as text, since a data set's columns cannot hold their ragged metadata.

Plain JSON would turn tuples into lists and whole-number keys into strings, after which some verifiers (arc_agi, rearc)
no longer accept the right answer; both are marked here and come back as they were.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from allotment.errors import needs_extra

_TUPLE, _PAIRS = "__tuple__", "__pairs__"


@cache  # making one builds a whole data set object
def scorer(dataset: str) -> Callable[[str, dict[str, Any]], float]:
    """The verifier of a task of reasoning-gym: ``(answer, entry) -> score``. Raises MissingExtraError: reasoning-gym is
    not installed.
    """
    with needs_extra("train"):
        import reasoning_gym
    score: Callable[[str, dict[str, Any]], float] = reasoning_gym.get_score_answer_fn(dataset)
    return score


def encode_entry(entry: Any) -> str:
    """``entry`` as JSON text."""
    return json.dumps(_marked(entry))


def decode_entry(text: str) -> Any:
    """Inverse of :func:`encode_entry`."""
    return json.loads(text, object_hook=_unmarked)


def _marked(value: Any) -> Any:
    if isinstance(value, tuple):
        return {_TUPLE: [_marked(part) for part in value]}
    if isinstance(value, list):
        return [_marked(part) for part in value]
    if not isinstance(value, dict):
        return value
    if all(isinstance(key, str) for key in value):
        return {key: _marked(part) for key, part in value.items()}
    return {_PAIRS: [[_marked(key), _marked(part)] for key, part in value.items()]}


def _unmarked(value: dict[str, Any]) -> Any:
    if value.keys() == {_TUPLE}:
        return tuple(value[_TUPLE])
    if value.keys() == {_PAIRS}:
        return dict(value[_PAIRS])
    return value
