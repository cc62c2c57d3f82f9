"""Which prompt a row of verl's batch is. Its uid is new at every fetch; the planner needs a name that stays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from allotment.errors import InvalidInputError
from allotment.prompts.contents import content_hash, named

COLUMNS = ("raw_prompt", "data_source", "reward_model", "extra_info")
"""What of a row says which prompt it is."""
ENVIRONMENT = ("tools_kwargs", "interaction_kwargs")
"""Entries of extra_info that verl hands to an agent loop: of two rows with one text they may make two tasks."""


def prompt_key(row: Mapping[str, Any], name: str = "index") -> str:
    """``data_source/extra_info[name]``, else ``data_source/`` and a hash of the prompt, its answer and extra_info.

    verl's own column ``index`` is not used: it is 0 for every row without one.

    Raises:
        InvalidInputError: the name is neither a number nor a text; or there is none, and the prompt holds what cannot
            be told from others.
    """
    own = named(_fields(row.get("extra_info")).get(name), f"extra_info.{name}", "allotment.prompt_id")
    return f"{row.get('data_source') or ''}/{_hash(row, name) if own is None else own}"


def _fields(extra_info: object) -> Mapping[str, Any]:
    """``extra_info`` as a table: it may be one, the JSON of one, or nothing that has names."""
    extra_info = _lists(extra_info)
    if isinstance(extra_info, str):
        try:
            extra_info = json.loads(extra_info)
        except ValueError:
            return {}
    return extra_info if isinstance(extra_info, Mapping) else {}


def _hash(row: Mapping[str, Any], name: str) -> str:
    try:
        return content_hash(_lists([row["raw_prompt"], row.get("reward_model"), row.get("extra_info")]))
    except InvalidInputError as error:
        raise InvalidInputError(
            "a prompt cannot be told from others",
            got=f"no {name!r} in extra_info, and {error}",
            allowed="a name for each row, or a prompt of texts, numbers and images",
            fix=f"add extra_info.{name} to the data set, or set allotment.prompt_id to a key it has",
        ) from error


def _lists(value: Any) -> Any:
    """Arrays of texts and tables, as pandas makes them of a parquet file, as lists: their own bytes are addresses."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "OUS":
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _lists(entry) for name, entry in value.items()}
    return [_lists(entry) for entry in value] if isinstance(value, list | tuple) else value


def prompt_texts(row: Mapping[str, Any]) -> list[str]:
    """What a row says in words: the same at each visit, also where images are transformed anew."""
    answer = _fields(row.get("reward_model")).get("ground_truth")
    extra = _fields(row.get("extra_info"))
    environment = {name: extra[name] for name in ENVIRONMENT if extra.get(name)}
    return [*_texts(_lists(row.get("raw_prompt"))), *_texts(answer), *_texts(environment)]


def _texts(value: Any) -> list[str]:
    """Every text and number in nested lists and tables."""
    if isinstance(value, Mapping):
        return [text for name in sorted(value, key=str) for text in _texts(value[name])]
    if isinstance(value, list | tuple):
        return [text for entry in value for text in _texts(entry)]
    return [str(value)] if isinstance(value, str | int | float) else []
