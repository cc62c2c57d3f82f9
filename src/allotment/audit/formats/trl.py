"""TRL's completions: ``log_completions=True`` writes a ``completions/completions_STEP.parquet`` a step.

A row a rollout, with ``step``, ``prompt``, ``completion``, a column a reward function, ``advantage`` and what the user
adds; prompts may be conversations.
"""

from __future__ import annotations

from dataclasses import replace

from allotment.audit.formats.base import FirstRows, LogFormat, Source
from allotment.audit.formats.columns import LENGTHS, Columns, Row, completed, number
from allotment.audit.formats.rollouts import read_rollouts
from allotment.audit.log import Log
from allotment.errors import InvalidInputError

USUAL = Columns(prompt="prompt", step="step", completion="completion")


def _columns(first: FirstRows) -> Columns:
    used = first.columns.over(USUAL)
    if used.reward is None:
        used = replace(used, reward=_reward(first))
    return completed(used, first.rows[0])


def _reward(first: FirstRows) -> str:
    """The only column that may be a reward.

    Raises:
        InvalidInputError: there is none, or there are several.
    """
    names = [name for name in _rewards(first.rows[0]) if all(name in _rewards(row) for row in first.rows)]
    if len(names) != 1:
        raise InvalidInputError(
            f"{first.path}: which column is the reward?",
            got=", ".join(names) or "no column of numbers",
            allowed="one column; TRL does not log the weights of its reward functions",
            fix="name the one that says whether a rollout succeeded: --reward NAME",
        )
    return names[0]


def _rewards(row: Row) -> list[str]:
    """The columns that may be a reward: numbers, or nothing yet."""
    known = {"step", "prompt", "completion", "advantage", *LENGTHS}
    return [name for name, value in row.items() if name not in known and (value is None or number(value) is not None)]


def _read(source: Source, success_above: float | None) -> Log:
    return read_rollouts(source, success_above, drop_repeats=len(source.files) > 1)


FORMAT = LogFormat(
    "step, prompt, completion and a reward",
    recognises=lambda first: first.has(*first.columns.over(USUAL).named().values()),
    columns=_columns,
    read=_read,
)
