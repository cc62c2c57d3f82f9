"""Which prompt a row of verl's batch is. Its uid is new at every fetch; the planner needs a name that stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from allotment.errors import InvalidInputError
from allotment.prompts.ids import prompt_hash


def prompt_key(row: Mapping[str, Any], name: str = "index") -> str:
    """``data_source/extra_info[name]``, else ``data_source/`` and a hash of the prompt.

    verl's own column ``index`` is not used: it is 0 for every row without one.

    Raises:
        InvalidInputError: the prompt has no name, and holds images or other things than text.
    """
    index = (row.get("extra_info") or {}).get(name)
    if index is None:
        index = _hash(row["raw_prompt"], name)
    return f"{row.get('data_source') or ''}/{index}"


def _hash(prompt: object, name: str) -> str:
    """32 hexadecimal digits."""
    try:
        return prompt_hash(prompt, strict=True)
    except TypeError as error:
        raise InvalidInputError(
            "a prompt cannot be told from others",
            got=f"no {name!r} in extra_info, and {error}",
            allowed="a name for each row, or a prompt of text alone",
            fix=f"add extra_info.{name} to the data set, or set allotment.prompt_id to a key it has",
        ) from error
