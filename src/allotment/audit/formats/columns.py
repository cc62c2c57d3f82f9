"""Logs with a row a rollout: which columns hold what, and how a row becomes a rollout."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from typing import Any

from allotment.errors import InvalidInputError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a log with a row a rollout; None where there is no such column, or it is not named."""

    id: str | None = None
    """Column with the prompt's id; without one a prompt is known by its text."""
    prompt: str | None = None
    """Column with the prompt's text, or its messages."""
    step: str | None = None
    """Column with the training step."""
    reward: str | None = None
    """Column with the reward."""
    completion: str | None = None
    """Column with the completion; its characters are counted where there is no column with tokens."""
    tokens: str | None = None
    """Column with the completion's number of tokens."""

    def named(self) -> dict[str, str]:
        """What is named: role to column."""
        return {field.name: name for field in fields(self) if (name := getattr(self, field.name)) is not None}

    def over(self, preset: Columns) -> Columns:
        """``preset``, with what is named here in its place."""
        return replace(preset, **self.named())

    def complete(self) -> bool:
        """Whether a log can be read by these: a prompt or id, a step and a reward."""
        return None not in (self.step, self.reward) and (self.prompt or self.id) is not None


LENGTHS = ("completion_tokens", "response_length", "completion_length", "num_tokens", "tokens")
"""Columns that are taken for a completion's tokens where none is named."""


def completed(named: Columns, first: Row) -> Columns:
    """``named``, with the column of ``first`` that counts tokens where none is named.

    Raises:
        InvalidInputError: a column is not named without which a log cannot be read.
    """
    used = named
    if used.tokens is None:
        used = replace(used, tokens=next((name for name in LENGTHS if name in first), None))
    if not used.complete():
        raise InvalidInputError(
            "not all columns are named",
            got=", ".join(f"--{role} {name}" for role, name in used.named().items()) or "none",
            allowed="--prompt or --id, --step and --reward",
            fix="name the missing ones",
        )
    return used


def number(value: Any) -> float | None:
    """``value`` as a finite number; None where it is none. Text is read as JSON numbers and booleans are."""
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower(), value)
    try:
        found = float(value) if isinstance(value, bool | int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def whole(value: Any) -> int | None:
    """``value`` as a whole number below 2^53 in size; None where it is none."""
    found = number(value)
    return int(found) if found is not None and found.is_integer() and abs(found) < 2**53 else None


def prompt_id(value: Any) -> int | str | None:
    """``value`` as an id: a text, or a whole number; None where it is none."""
    if isinstance(value, str):
        return value or None
    return None if isinstance(value, bool) else whole(value)


def prompt_text(value: Any) -> str | None:
    """The text of a prompt: as it is, or its messages as JSON; None where it is none."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode() if value else None  # a lone surrogate is no text
    if not isinstance(value, list) or not value:
        return None
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return None


def text_key(text: str) -> str:
    """Sixteen hexadecimal digits that stand for a prompt without an id."""
    return blake2b(text.encode(), digest_size=8).hexdigest()


def completion_length(value: Any) -> float:
    """Characters of a completion, a text or messages; NaN where it is neither."""
    if isinstance(value, str):
        return float(len(value))
    if isinstance(value, list):
        contents = [message.get("content") for message in value if isinstance(message, dict)]
        return float(sum(len(content) for content in contents if isinstance(content, str)))
    return math.nan
