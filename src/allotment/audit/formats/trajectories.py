"""What trainers of agents leave on disk: prime-rl, SkyRL, AReaL, open-instruct, the Tinker cookbook."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from allotment.audit.formats.base import Columns, FirstRows, LogFormat, Row, completed, inside, number, text_key
from allotment.audit.formats.presets import preset
from allotment.audit.formats.rollouts import read_rollouts
from allotment.audit.formats.steps import step_of


def _episodes(path: Path) -> Callable[[Row], Row | str]:
    """An episode of verifiers: each trace of an agent that is trained is a rollout of the task. Once a trace alone."""
    has_step = step_of(path) is not None

    def adapt(row: Row) -> Row | str:
        if row.get("ok") is False:
            return "episode that failed"
        found = row.get("traces", [row])
        traces = [t for t in found if isinstance(t, Mapping)] if isinstance(found, list) else []
        traces = [t for t in traces if inside(t, "agent.trainable") is not False]
        env = inside(row, "env.name") or inside(row, "env.id") or row.get("env_name") or ""
        key = inside(row, "task.key") or inside(row, "task.hash")
        key = key or json.dumps(inside(row, "task.data"), sort_keys=True, default=str)
        step = None if has_step else inside(row, "run.work.step")
        return {
            **row,
            **({} if step is None else {"step": step}),
            "task_key": text_key(f"{env}/{key}"),
            "visit": inside(row, "group.id") or row.get("group_id"),
            "reward": [_weighted(t.get("rewards")) for t in traces],
            "output_tokens": [_generated(t.get("calls")) for t in traces],
        }

    return adapt


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
    "task, and traces with rewards, of an episode",
    ("task", "traces"),
    Columns(id="task_key", prompt="task.data.prompt", reward="reward", tokens="output_tokens", group="visit"),
    adapter=_episodes,
    or_has=("task", "nodes", "rewards"),
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
