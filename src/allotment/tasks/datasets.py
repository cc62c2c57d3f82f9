"""Prompts with answers for a trainer: from reasoning-gym or from a file, as rows of ``datasets.Dataset.from_list``.

A row is a dict with ``prompt`` (a string, or a list of messages), ``answer`` and ``prompt_id`` (strings); a row of
reasoning-gym also has ``entry``, what its verifier reads (:mod:`allotment.tasks.entries`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from allotment.errors import ConfigError, DuplicatePromptError, InvalidInputError, needs_extra
from allotment.tasks.entries import encode_entry
from allotment.tasks.records import read_records

Row = dict[str, Any]

PREFIX = "reasoning-gym:"


def load_rows(
    source: str | Path,
    *,
    size: int = 500,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    prompt_column: str = "prompt",
    answer_column: str = "answer",
    id_column: str | None = None,
    further_columns: Sequence[str] = (),
    needs_answer: bool = True,
) -> list[Row]:
    """The rows of ``source``.

    Args:
        source: ``reasoning-gym:NAME``, or a .jsonl, .json, .csv or .parquet file.
        size: rows to generate; reasoning-gym only, as are ``seed`` and ``options``.
        seed: of the generation.
        options: further settings of the task, such as ``{"max_terms": 3}``.
        prompt_column: column of the file; a dotted name reaches into objects (``reward_model.ground_truth``).
        answer_column: likewise. Numbers become text as JSON writes them.
        id_column: column with prompt ids; without one, the row's place in the file. Ids of reasoning-gym are
            ``NAME/place``.
        further_columns: of the file, kept under their names.
        needs_answer: False takes a file whose first row has no column of answers; then no row has one.

    Raises:
        ConfigError: an unknown task or suffix, a missing column, options the task refuses.
        InvalidInputError: no rows, a damaged file, a prompt, answer or id of the wrong type.
        DuplicatePromptError: an id that stands twice with different prompts or answers.
        MissingExtraError: reasoning-gym, or pyarrow for .parquet, is not installed.
        OSError: the file cannot be read.
    """
    if is_reasoning_gym(source):
        if further_columns:
            got = ", ".join(further_columns)
            raise ConfigError(
                "a task has no further columns",
                got=got,
                allowed="prompt, answer, prompt_id, entry",
                fix="leave them out",
            )
        return _generated(str(source).removeprefix(PREFIX), size, seed, dict(options or {}))
    if options:
        raise ConfigError(
            "a file takes no task options", got=options, allowed=f"{PREFIX}NAME", fix="leave the options out"
        )
    path = Path(source)
    records = read_records(path)
    if not records:
        raise InvalidInputError(f"{path} is empty", got="no rows", allowed="one or more", fix="add rows")
    _check_further(further_columns)
    needs_answer = needs_answer or answer_column in records[0]
    rows: list[Row] = []
    for number, record in enumerate(records):
        where = f"{path}, row {number}"
        prompt = _prompt(_value(record, prompt_column, where), where)
        further = {name: _value(record, name, where) for name in further_columns}
        if needs_answer:
            further["answer"] = _text(_value(record, answer_column, where), f"{where}: the answer", int | float | str)
        prompt_id = number if id_column is None else _value(record, id_column, where)
        rows.append({"prompt": prompt, **further, "prompt_id": _text(prompt_id, f"{where}: the id", int | str)})
    _check_rows(rows, path)
    return rows


def _check_further(names: Sequence[str]) -> None:
    taken = [name for name in names if name in ("prompt", "prompt_id", "completion", "completions", "completion_ids")]
    if taken:
        fix = "give the column another name in the file"
        raise ConfigError("a further column has a name that is taken", got=taken[0], allowed="others", fix=fix)


def is_reasoning_gym(source: str | Path) -> bool:
    """Whether ``source`` names a task of reasoning-gym rather than a file."""
    return str(source).startswith(PREFIX)


def split_held_out(rows: Sequence[Row], held_out: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows held out, both in the given order; no prompt stands in both.

    The first ``held_out`` distinct prompts in the order of a hash are held out, with every row that has them. The same
    rows are split the same way everywhere.

    Args:
        rows: from :func:`load_rows`, before or after :func:`format_rows`.
        held_out: number of distinct prompts, from 0 to one less than there are.

    Raises:
        InvalidInputError: ``held_out`` is negative, or nothing would be left to train on.
    """
    keys = [_hash(row["prompt"]) for row in rows]
    ordered = sorted(set(keys))
    if not 0 <= held_out < max(1, len(ordered)):
        raise InvalidInputError(
            "no prompts are left to train on" if held_out > 0 else "held-out prompts",
            got=f"{held_out} held out of {len(ordered)} distinct prompts",
            allowed=f"0 to {len(ordered) - 1}",
            fix="use more rows or hold out fewer",
        )
    apart = set(ordered[:held_out])
    train = [row for row, key in zip(rows, keys, strict=True) if key not in apart]
    return train, [row for row, key in zip(rows, keys, strict=True) if key in apart]


def format_rows(
    rows: Sequence[Row], *, system_prompt: str | None = None, suffix: str | None = None, chat: bool = False
) -> list[Row]:
    """The rows with instructions in their prompts.

    Args:
        rows: from :func:`load_rows`; not changed.
        system_prompt: put first as a system message; the name of one of reasoning-gym's (``default``, ``simple``,
            ``direct``, ``chain_of_draft``, ``DeepSeekZero``, all of which ask for ``<answer>`` tags) or a text.
        suffix: put after the prompt, or the last message, on a line of its own.
        chat: make a string prompt a user message, so that the trainer applies the chat template; ``system_prompt``
            does so too.

    Raises:
        ConfigError: a system prompt for rows that have one.
    """
    system = None if system_prompt is None else named_system_prompt(system_prompt)
    return [{**row, "prompt": _formatted(row["prompt"], system, suffix, chat)} for row in rows]


def named_system_prompt(name: str) -> str:
    """The text of reasoning-gym's system prompt ``name``; any other text is returned as it is."""
    if not name.isidentifier():
        return name
    with needs_extra("train"):
        from reasoning_gym.utils import SYSTEM_PROMPTS
    text: str = SYSTEM_PROMPTS.get(name, name)
    return text.strip()


def _formatted(prompt: Any, system: str | None, suffix: str | None, chat: bool) -> Any:
    if isinstance(prompt, str):
        text = prompt if suffix is None else f"{prompt}\n{suffix}"
        if system is None and not chat:
            return text
        prompt, suffix = [{"role": "user", "content": text}], None
    messages = [dict(entry) for entry in prompt]
    if suffix is not None:
        messages[-1]["content"] += f"\n{suffix}"
    if system is None:
        return messages
    if messages[0]["role"] == "system":
        raise ConfigError(
            "the prompts bring their own system message",
            got=messages[0]["content"][:80],
            allowed="one system message",
            fix="leave the system prompt out",
        )
    return [{"role": "system", "content": system}, *messages]


def _generated(name: str, size: int, seed: int, options: dict[str, Any]) -> list[Row]:
    with needs_extra("train"):
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    names = sorted(set(DATASETS) - {"composite"})  # composite wants other tasks' specifications
    if name not in names:
        near = get_close_matches(name, names, n=5, cutoff=0.5) or names[:5]
        raise ConfigError(
            "composite takes no names" if name == "composite" else "reasoning-gym has no such task",
            got=f"{PREFIX}{name}",
            allowed=f"one of {len(names)} names, such as {', '.join(near)}",
            fix="name a single task",
        )
    if size < 1:
        raise InvalidInputError("size of the data set", got=size, allowed=">= 1", fix="generate more rows")
    try:
        dataset = reasoning_gym.create_dataset(name, size=size, seed=seed, **options)
    except (TypeError, AssertionError, ValueError) as error:
        fields = ", ".join(DATASETS[name][1].__dataclass_fields__)
        raise ConfigError(
            f"{name} refuses these options", got=f"{options} ({error})", allowed=fields, fix="change the options"
        ) from error
    return [
        {
            "prompt": entry["question"],
            "answer": entry["answer"],  # None where any of many answers is right
            "prompt_id": f"{name}/{place}",
            "entry": encode_entry(entry),
        }
        for place, entry in enumerate(dataset)
    ]


def _value(record: Mapping[str, Any], column: str, where: str) -> Any:
    if column in record:
        return record[column]
    value: Any = record
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ConfigError(
                f"{where}: no column {column!r}",
                got=", ".join(map(str, record)),
                allowed="a column that every row has",
                fix="name the columns of prompt and answer",
            )
        value = value[part]
    return value


def _prompt(value: Any, where: str) -> Any:
    if isinstance(value, str) and value.strip():
        return value
    messages = list(value) if isinstance(value, list | tuple) else []
    if messages and all(
        isinstance(entry, Mapping) and isinstance(entry.get("role"), str) and isinstance(entry.get("content"), str)
        for entry in messages
    ):
        return [{"role": entry["role"], "content": entry["content"]} for entry in messages]
    raise InvalidInputError(
        f"{where}: not a prompt",
        got=repr(value)[:120],
        allowed="a text, or a list of messages with a role and a content (text)",
        fix="mend the row or name another column",
    )


def _text(value: Any, what: str, types: Any) -> str:
    if isinstance(value, types) and not isinstance(value, bool):
        return value if isinstance(value, str) else json.dumps(value)
    allowed = "a text or a number" if isinstance(0.5, types) else "a text or a whole number"
    raise InvalidInputError(f"{what} has the wrong type", got=repr(value)[:120], allowed=allowed, fix="mend it")


def _check_rows(rows: Sequence[Row], path: Path) -> None:
    """All prompts are of one kind, as a trainer decides by the first row whether they are messages; ids fit."""
    for number, row in enumerate(rows):
        if isinstance(row["prompt"], str) != isinstance(rows[0]["prompt"], str):
            raise InvalidInputError(
                f"{path}, row {number}: prompts of two kinds",
                got="texts and lists of messages",
                allowed="one of the two",
                fix='write a text as [{"role": "user", "content": TEXT}]',
            )
    first: dict[str, Row] = {}
    for number, row in enumerate(rows):
        if first.setdefault(row["prompt_id"], row) != row:
            raise DuplicatePromptError(
                f"{path}, row {number}: an id stands twice with different prompts or answers",
                got=repr(row["prompt_id"]),
                allowed="one prompt and one answer an id",
                fix="make the ids unique or name another column",
            )


def _hash(prompt: Any) -> str:
    return hashlib.blake2b(json.dumps(prompt).encode(), digest_size=16).hexdigest()
