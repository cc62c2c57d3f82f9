"""What trainers leave on disk. Each format says how it is recognised and which column holds what."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from allotment.audit.formats.base import (
    IDS,
    LENGTHS,
    Adapter,
    Columns,
    FirstRows,
    LogFormat,
    Row,
    Source,
    completed,
    inside,
    number,
    prompt_id,
    text_key,
)
from allotment.audit.formats.rewards import found_reward
from allotment.audit.formats.rollouts import UID, read_rollouts
from allotment.audit.formats.steps import step_of
from allotment.audit.log import Log
from allotment.errors import InvalidInputError

Adapt = Callable[[Row], Row | str]


def preset(
    summary: str,
    has: Sequence[str],
    columns: Columns,
    adapt: Adapt | None = None,
    *,
    adapter: Adapter | None = None,
    one_visit: bool = False,
    part: Callable[[Path], str] = lambda path: "",
    again: Callable[[Path], str | None] = lambda path: None,
) -> LogFormat:
    """A format that is known by the keys of its rows.

    Args:
        summary: what its rows hold, in a few words.
        has: the keys that every row has.
        columns: which column holds what, after ``adapt``.
        adapt: see :data:`~allotment.audit.formats.base.Adapter`; the same for every file.
        adapter: in place of ``adapt``, where it depends on the file.
        one_visit: see :func:`~allotment.audit.formats.rollouts.read_rollouts`.
        part: see :class:`~allotment.audit.formats.base.LogFormat`.
        again: likewise.
    """
    makes = adapter if adapt is None else lambda path: adapt

    def used(first: FirstRows) -> Columns:
        rows = (
            first.rows
            if makes is None
            else [made for r in first.rows if not isinstance(made := makes(first.path)(r), str)]
        )
        return completed(first.columns.over(columns), rows[0] if rows else first.rows[0])

    return LogFormat(
        summary,
        recognises=lambda first: first.has(*has),
        columns=used,
        read=partial(read_rollouts, adapter=makes, one_visit=one_visit),
        part=part,
        again=again,
    )


TABLE_NAME = re.compile(r"(.+)_([0-9]{1,15})_[0-9a-zA-Z]{8,}")
"""The name of a file with a table of wandb's, without its ending: key, step, and some of a hash."""


def table_key(path: Path) -> str:
    """The key under which a table was logged to wandb; nothing for other files."""
    found = TABLE_NAME.fullmatch(path.name.partition(".")[0]) if ".table" in path.suffixes else None
    return found[1] if found else ""


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


def _episode(row: Row) -> Row | str:
    """An episode of verifiers: each trace of an agent that is trained is a rollout of the task."""
    if row.get("ok") is False:
        return "episode that failed"
    found = row.get("traces")
    traces = [t for t in found if isinstance(t, Mapping)] if isinstance(found, list) else []
    traces = [t for t in traces if inside(t, "agent.trainable") is not False]
    task = row.get("task") if isinstance(row.get("task"), Mapping) else {}
    env = inside(row, "env.name") or inside(row, "env.id") or ""
    key = inside(task, "key") or inside(task, "hash") or json.dumps(inside(task, "data"), sort_keys=True, default=str)
    return {
        **row,
        "task_key": text_key(f"{env}/{key}"),
        "reward": [_weighted(t.get("rewards")) for t in traces],
        "output_tokens": [_generated(t.get("calls")) for t in traces],
    }


def _weighted(rewards: Any) -> float | None:
    """The sum of the rewards of a trace; None where it was not scored."""
    parts = [r for r in rewards.values() if isinstance(r, Mapping)] if isinstance(rewards, Mapping) else []
    values = [number(r.get("score")) for r in parts]
    weights = [number(r.get("weight", 1.0)) for r in parts]
    if not values or None in values or None in weights:
        return None
    return sum(v * w for v, w in zip(values, weights, strict=True) if v is not None and w is not None)


def _generated(calls: Any) -> float | None:
    counts = [number(inside(call, "usage.completion_tokens")) for call in calls] if isinstance(calls, list) else []
    return None if not counts or None in counts else sum(c for c in counts if c is not None)


def _effective(path: Path) -> str | None:
    return "prime-rl" if "effective" in path.parts[-3:] else None


PRIME_RL = preset(
    "traces of an episode, its task and group",
    ("traces", "task", "env"),
    Columns(id="task_key", prompt="task.data.prompt", reward="reward", tokens="output_tokens", group="group.id"),
    _episode,
    one_visit=True,
    again=_effective,
)


def _skyrl(path: Path) -> Callable[[Row], Row]:
    """Rows of one trajectory follow each other, each with the conversation so far; rewards may be one a token."""
    before, prompt, name = "", None, 0

    def adapt(row: Row) -> Row:
        nonlocal before, prompt, name
        given, score = row.get("input_prompt"), row.get("score")
        if not (isinstance(given, str) and before and given.startswith(before)):
            prompt, name = given, name + 1
        before = f"{given}{row.get('output_response')}" if isinstance(given, str) else ""
        if isinstance(score, list):
            parts = [number(value) for value in score]
            score = None if None in parts else sum(part for part in parts if part is not None)
        return {**row, "prompt": prompt, "trajectory": name, "score": score}

    return adapt


SKYRL = preset(
    "input_prompt, output_response, score, stop_reason, env_class",
    ("input_prompt", "output_response", "score", "env_class"),
    Columns(prompt="prompt", reward="score", completion="output_response", rollout="trajectory"),
    adapter=_skyrl,
    one_visit=True,
)


def _trajectory(path: Path) -> Callable[[Row], Row]:
    def adapt(row: Row) -> Row:
        messages = (
            [m for m in row["messages"] if isinstance(m, Mapping)] if isinstance(row.get("messages"), list) else []
        )
        roles = [m.get("role") for m in messages]
        before = roles.index("assistant") if "assistant" in roles else len(roles)
        return {
            **row,
            "instance": path.name.partition(".json")[0].rpartition("_")[0],
            "prompt": [{"role": m.get("role"), "content": m.get("content")} for m in messages[:before]],
            "completion": [m for m in messages[before:] if m.get("role") == "assistant"],
        }

    return adapt


SKYRL_AGENT = preset(
    "messages, reward, trajectory_format: a file a trajectory, INSTANCE_REPETITION.json",
    ("messages", "reward", "trajectory_format"),
    Columns(id="instance", prompt="prompt", reward="reward", completion="completion"),
    adapter=_trajectory,
    one_visit=True,
)


def _areal(row: Row) -> Row:
    whole, prompt = number(row.get("seqlen")), number(row.get("prompt_len"))
    tokens = None if whole is None or prompt is None else whole - prompt
    return {**row, "visit": f"{row.get('tail_version')}/{row.get('task_id')}", "completion_tokens": tokens}


AREAL = preset(
    "task_id, sample_idx, prompt, completion, reward, tail_version",
    ("task_id", "sample_idx", "tail_version", "reward", "prompt"),
    Columns(prompt="prompt", step="tail_version", reward="reward", tokens="completion_tokens", group="visit"),
    _areal,
)


def _open_instruct(row: Row) -> Row:
    tokens, answer = row.get("prompt_tokens"), row.get("response_tokens")
    return {
        **row,
        "prompt": text_key(str(tokens)) if isinstance(tokens, list) and tokens else None,
        "num_tokens": len(answer) if isinstance(answer, list) else None,
    }


OPEN_INSTRUCT = preset(
    "step, prompt_tokens, response_tokens, reward",
    ("step", "prompt_tokens", "response_tokens", "reward", "finish_reason"),
    Columns(id="prompt", step="step", reward="reward", tokens="num_tokens"),
    _open_instruct,
    part=lambda path: re.sub(r"_rollouts_[0-9]+$", "", path.name.partition(".json")[0]),
)

PROBLEMS = ("problem", "question", "prompt", "input")
"""Keys under which an environment of the Tinker cookbook may log the problem."""


def _tinker(row: Row) -> Row:
    steps = [s for s in row["steps"] if isinstance(s, Mapping)] if isinstance(row.get("steps"), list) else []
    counts = [number(s.get("ac_len")) for s in steps]
    made = {
        **row,
        "visit": f"{row.get('split')}/{row.get('iteration')}/{row.get('group_idx')}",
        "tokens": None if not counts or None in counts else sum(c for c in counts if c is not None),
    }
    logged = [inside(s, f"logs.{name}") for s in steps[:1] for name in PROBLEMS]
    correct = number(inside(steps[-1], "metrics.correct")) if steps else None
    made |= {"problem": next((text for text in logged if isinstance(text, str)), None)}
    return made if correct is None else {**made, "correct": correct}


def _tinker_columns(first: FirstRows) -> Columns:
    rows = [_tinker(row) for row in first.rows]
    used = Columns(group="visit", step="iteration", tokens="tokens")
    if all(row.get("problem") for row in rows):
        used = replace(used, prompt="problem")
    reward = "correct" if all("correct" in row for row in rows) else "total_reward"
    return completed(first.columns.over(replace(used, reward=reward)), rows[0])


TINKER = LogFormat(
    "iteration, group_idx, traj_idx, total_reward, steps",
    recognises=lambda first: first.has("iteration", "group_idx", "traj_idx", "total_reward", "steps"),
    columns=_tinker_columns,
    read=partial(read_rollouts, adapter=lambda path: _tinker),
)
