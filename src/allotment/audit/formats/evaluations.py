"""What programs that evaluate, and loggers, leave on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from allotment.audit.formats.base import Columns, FirstRows, LogFormat, Row, inside, number, text_key
from allotment.audit.formats.finding import found_columns
from allotment.audit.formats.presets import TABLE_NAME, preset, table_key
from allotment.audit.formats.rollouts import read_rollouts
from allotment.errors import InvalidInputError


def _verified(row: Row) -> Row | str:
    if row.get("error"):
        return "rollout that failed"
    names = [str(row[name]) for name in ("env_name", "task", "example_id") if row.get(name) is not None]
    return {**row, "example": "/".join(names), "output_tokens": inside(row, "token_usage.output_tokens")}


def _verified_columns(first: FirstRows) -> Columns:
    rows = [made for row in first.rows if not isinstance(made := _verified(row), str)]
    used = Columns(id="example", prompt="prompt", reward="reward", completion="completion")
    if rows and all(row["output_tokens"] is not None for row in rows):
        used = replace(used, tokens="output_tokens")
    return first.columns.over(used)


VERIFIERS = LogFormat(
    "example_id, prompt, completion, reward",
    recognises=lambda first: first.has("example_id", "prompt", "completion", "reward"),
    columns=_verified_columns,
    read=partial(read_rollouts, adapter=lambda path: _verified, one_visit=True),
)


def _sample(path: Path) -> Callable[[Row], Row | str]:
    """A file has a row for each filter of the answers: those of the first filter count, by the row's first metric."""
    first: list[Any] = []

    def adapt(row: Row) -> Row | str:
        first[:] = first or [row.get("filter")]
        if row.get("filter") != first[0]:
            return "row of another filter than the file's first"
        names = row.get("metrics")
        value = row.get(names[0]) if isinstance(names, list) and names and isinstance(names[0], str) else None
        document = row.get("doc_hash")
        return {
            **row,
            "document": document if isinstance(document, str) else row.get("doc_id"),
            "prompt": inside(row, "arguments.gen_args_0.arg_0"),
            "first metric": float(found) if (found := number(value)) is not None else value,
            "repeats": _repeats(row),
        }

    return adapt


def _repeats(row: Row) -> int:
    """How many answers of a document its metric is the mean of."""
    answers = row.get("filtered_resps")
    is_generated = isinstance(inside(row, "arguments.gen_args_0.arg_1"), Mapping)
    if is_generated and isinstance(answers, list) and len(answers) == 1 and isinstance(answers[0], list):
        return max(1, len(answers[0]))
    return 1


def _sample_columns(first: FirstRows) -> Columns:
    used = Columns(id="document", prompt="prompt", reward="first metric", trials="repeats")
    if not isinstance(first.rows[0].get("metrics"), list):
        found = found_columns(first)
        used = replace(used, reward=found.reward if found else None)
    return first.columns.over(used)


LM_EVAL = LogFormat(
    "doc_id, doc, resps, filtered_resps and a metric",
    recognises=lambda first: first.has("doc_id", "doc", "resps", "filtered_resps"),
    columns=_sample_columns,
    read=partial(read_rollouts, adapter=_sample, one_visit=True),
)


def _tested(row: Row) -> Row | str:
    if row.get("error"):
        return "example that failed"
    turns = row["turns"] if isinstance(row.get("turns"), list) else []
    answer = [turn for turn in turns if isinstance(turn, Mapping) and turn.get("role") == "assistant"]
    return {**row, "example": f"{row.get('benchmark')}/{row.get('example_id') or row.get('idx')}", "answer": answer}


UNCERTAIN = {"P": 0.5, "N": 0.0}
"""Values of inspect-ai for part of the credit and for no answer."""


def _inspected(row: Row) -> Row | str:
    if row.get("error"):
        return "sample that failed"
    scores = row.get("scores")
    values = {name: _value(score) for name, score in scores.items()} if isinstance(scores, Mapping) else {}
    return {
        **row,
        "sample": text_key(f"{row.get('id')}/{row.get('input')}"),
        "score": next(iter(values.values())) if len(values) == 1 else None,
        "scores": values,
        "output_tokens": _output_tokens(row.get("model_usage")),
        "completion": inside(row, "output.completion"),
    }


def _value(score: Any) -> Any:
    value = score.get("value") if isinstance(score, Mapping) else score
    return UNCERTAIN.get(value, value) if isinstance(value, str) else value


def _output_tokens(usage: Any) -> float | None:
    counts = [number(inside(u, "output_tokens")) for u in usage.values()] if isinstance(usage, Mapping) else []
    return None if not counts or None in counts else sum(c for c in counts if c is not None)


def _inspected_columns(first: FirstRows) -> Columns:
    """Raises InvalidInputError: several scorers, and none is named."""
    rows = [made for row in first.rows if not isinstance(made := _inspected(row), str)]
    names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    used = Columns(id="sample", prompt="input", reward="score", completion="completion")
    if rows and all(row["output_tokens"] is not None for row in rows):
        used = replace(used, tokens="output_tokens")
    used = first.columns.over(used)
    if len(names) > 1 and first.columns.reward is None:
        raise InvalidInputError(
            f"{first.path}: which scorer says whether a rollout succeeded?",
            got=", ".join(names),
            allowed="one scorer",
            fix=" or ".join(f"--reward scores.{name}" for name in names[:3]),
        )
    return used


INSPECT = LogFormat(
    "id, epoch, input, scores of samples",
    recognises=lambda first: first.has("id", "epoch", "input", "scores") or first.has("id", "epoch", "input", "error"),
    columns=_inspected_columns,
    read=partial(read_rollouts, adapter=lambda path: _inspected, one_visit=True),
)

TINKER_EVAL = preset(
    "benchmark, example_id, turns, reward",
    ("benchmark", "example_id", "turns", "reward"),
    Columns(id="example", reward="reward", completion="answer"),
    _tested,
    one_visit=True,
)


def _wandb(path: Path) -> Callable[[Row], Row]:
    found = TABLE_NAME.fullmatch(path.name.partition(".")[0])
    return lambda row: {**row, "logged at": int(found[2])} if found else row


def _wandb_columns(first: FirstRows) -> Columns:
    used = found_columns(first) or first.columns
    named = TABLE_NAME.fullmatch(first.path.name.partition(".")[0])
    return replace(used, step="logged at") if used.step is None and named else used


WANDB = LogFormat(
    "a wandb table, KEY_STEP_HASH.table.json, with a prompt and a reward",
    recognises=lambda first: (
        ".table" in first.path.suffixes and not first.all_named and found_columns(first) is not None
    ),
    columns=_wandb_columns,
    read=partial(read_rollouts, adapter=_wandb, drop_repeats=True),
    part=table_key,
)
