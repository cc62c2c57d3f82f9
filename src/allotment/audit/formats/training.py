"""What trainers leave on disk: TRL, verl, NeMo-RL, slime."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from allotment.audit.formats.base import (
    IDS,
    LENGTHS,
    Columns,
    FirstRows,
    LogFormat,
    Row,
    Source,
    completed,
    number,
    prompt_id,
    text_key,
)
from allotment.audit.formats.presets import preset, table_key
from allotment.audit.formats.rewards import found_reward
from allotment.audit.formats.rollouts import UID, read_rollouts
from allotment.audit.formats.steps import step_of
from allotment.audit.log import Log
from allotment.errors import InvalidInputError

TRL_COLUMNS = Columns(prompt="prompt", step="step", completion="completion")
TRL_OWN = ("rollouts_of_prompt", "answer", "ground_truth", "solution", "target")
"""Columns beside the rewards that may hold numbers."""


def _trl_columns(first: FirstRows) -> Columns:
    """Raises InvalidInputError if no reward is named and not exactly one column may be one."""
    used = first.columns.over(TRL_COLUMNS)
    known = {*used.named().values(), "advantage", *LENGTHS, *IDS, *TRL_OWN}
    empty = [name for name in _rewards(first.rows[0], known) if all(name in _rewards(r, known) for r in first.rows)]
    names = [name for name in empty if any(row.get(name) is not None for row in first.rows)]
    if used.reward is None and not names:
        by_name = found_reward(first.path, first.rows)
        names = empty if by_name is None else [by_name]
    if used.reward is None and len(names) != 1:
        raise InvalidInputError(
            f"{first.path}: which column is the reward?",
            got=", ".join(names) or "no column of numbers",
            allowed="one column; TRL does not log the weights of its reward functions",
            fix="name the one that says whether a rollout succeeded: --reward NAME",
        )
    return completed(used if used.reward is not None else replace(used, reward=names[0]), first.rows[0])


def _rewards(row: Row, known: set[str]) -> list[str]:
    """The columns that may be a reward: numbers, or nothing yet."""
    return [name for name, value in row.items() if name not in known and (value is None or _is_number(value))]


def _is_number(value: Any) -> bool:
    return number(value) is not None or (isinstance(value, float) and value != value)


TRL = LogFormat(
    "step, prompt, completion and a reward",
    recognises=lambda first: first.has(*first.columns.over(TRL_COLUMNS).named().values()),
    columns=_trl_columns,
    read=partial(read_rollouts, drop_repeats=True),
    part=table_key,
)

VERL_COLUMNS = Columns(prompt="input", step="step", reward="score", completion="output")
SESSION = re.compile(r"(.+)_[0-9]+_[0-9]+")
"""What verl's trainer of version 1 writes as ``uid``: of the prompt in its step, number of the rollout, of its turn."""


def _recognises_verl(first: FirstRows) -> bool:
    used = first.columns.over(VERL_COLUMNS)
    has_step = first.has(used.step) or step_of(first.path) is not None
    return has_step and first.has(used.prompt, used.reward, used.completion)


def _verl_columns(first: FirstRows) -> Columns:
    """``uid`` tells prompts of equal text apart, and ``acc`` says whether a rollout succeeded, where they are there."""
    used = first.columns.over(VERL_COLUMNS)
    if used.id is None and used.prompt == VERL_COLUMNS.prompt:
        used = replace(used, id=UID if all(prompt_id(row.get(UID)) is not None for row in first.rows) else None)
        used = replace(used, rollout="session") if used.id and _has_sessions(first.rows) else used
    if first.columns.reward is None and all(number(row.get("acc")) is not None for row in first.rows):
        used = replace(used, reward="acc")
    return completed(used, first.rows[0])


def _has_sessions(rows: Sequence[Row]) -> bool:
    """Whether ``uid`` names the turn of a rollout, not the prompt: ever another, and one prompt for each beginning."""
    prompts: dict[str, set[Any]] = {}
    firsts = 0
    for row in rows:
        if not isinstance(row.get(UID), str) or not (found := SESSION.fullmatch(row[UID])):
            return False
        if row[UID].endswith("_0"):
            firsts += 1
            prompts.setdefault(found[1], set()).add(str(row.get("input")))
    names = [row[UID] for row in rows]
    return len(set(names)) == len(names) and all(len(p) == 1 for p in prompts.values()) and len(prompts) < firsts


def _verl_session(row: Row) -> Row:
    uid = row.get(UID)
    found = SESSION.fullmatch(uid) if isinstance(uid, str) else None
    return {**row, UID: found[1], "session": str(uid).rpartition("_")[0]} if found else row


def _read_verl(source: Source, success_above: float | None) -> Log:
    return read_rollouts(
        source, success_above, adapter=(lambda path: _verl_session) if source.columns.rollout else None
    )


VERL = LogFormat("input, output, score, step", recognises=_recognises_verl, columns=_verl_columns, read=_read_verl)


def _nemo(row: Row) -> Row:
    """Each value may stand in a list of its own. The prompt is what comes before the first token that is trained on."""
    made = {key: value[0] if isinstance(value, list) and len(value) == 1 else value for key, value in row.items()}
    content = made.get("content")
    tokens, mask = made.get("token_ids"), made.get("token_loss_mask")
    if not isinstance(content, list) or not content:
        return {**made, "prompt": None}
    own = [isinstance(message, Mapping) and message.get("role") == "assistant" for message in content]
    before = own.index(True) if any(own) else 1
    made |= {"prompt": content[0] if before == 1 else content[:before], "completion": content[before : before + 1]}
    if isinstance(tokens, list) and isinstance(mask, list) and any(mask):
        made |= {
            "prompt_tokens": text_key(str(tokens[: mask.index(1) if 1 in mask else 0])),
            "trained": sum(map(bool, mask)),
        }
    return made


def _recognises_nemo(first: FirstRows) -> bool:
    return first.has("content", "rewards") and isinstance(first.rows[0]["content"], list)


def _nemo_columns(first: FirstRows) -> Columns:
    row = _nemo(first.rows[0])
    used = Columns(prompt="prompt", reward="filtered_rewards" if "filtered_rewards" in row else "rewards")
    if "prompt_tokens" in row:
        used = replace(used, id="prompt_tokens", tokens="trained")
    return completed(first.columns.over(replace(used, completion="completion")), row)


NEMO = LogFormat(
    "content (prompt and completion), rewards",
    recognises=_recognises_nemo,
    columns=_nemo_columns,
    read=partial(read_rollouts, adapter=lambda path: _nemo),
)


def _slime(row: Row) -> Row | str:
    step, group = row.get("file.rollout_id", row.get("rollout_id")), row.get("group_index")
    visit = None if group is None else f"{step}/{group}"
    return "rollout that was aborted" if row.get("status") == "aborted" else {**row, "visit": visit}


def _slime_columns(first: FirstRows) -> Columns:
    """A sample may name its rollout by the word that the file has for its step."""
    row = first.rows[0]
    used = Columns(prompt="prompt", reward="reward", tokens="response_length", group="visit", step="rollout_id")
    if "file.rollout_id" in row:
        used = replace(used, step="file.rollout_id", rollout="rollout_id")
    return completed(first.columns.over(used), row)


SLIME = LogFormat(
    "group_index, prompt, response_length, reward, status",
    recognises=lambda first: first.has("group_index", "prompt", "response_length", "reward", "status"),
    columns=_slime_columns,
    read=partial(read_rollouts, adapter=lambda path: _slime),
)


def _slime_trained(row: Row) -> Row:
    tokens, length, reward = _plain(row.get("tokens")), row.get("response_lengths"), row.get("raw_reward")
    if not isinstance(tokens, list) or not isinstance(length, int):
        return row
    reward = _plain(row.get("rewards") if reward is None else reward)
    return {**row, "prompt_tokens": text_key(str(tokens[: max(0, len(tokens) - length)])), "raw_reward": reward}


def _plain(value: Any) -> Any:
    """What a tensor holds."""
    return value.tolist() if hasattr(value, "tolist") else value


SLIME_TRAIN = preset(
    "tokens, response_lengths, raw_reward of training samples",
    ("tokens", "response_lengths", "data_parallel_rank"),
    Columns(
        id="prompt_tokens", step="rollout_id", reward="raw_reward", tokens="response_lengths", rollout="rollout_ids"
    ),
    _slime_trained,
    again=lambda path: "slime",
)
