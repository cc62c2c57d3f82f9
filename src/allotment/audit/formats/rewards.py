"""Which column of a table is the reward, and which of many rewards are successes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allotment.audit.formats.base import Row, reward
from allotment.errors import InvalidInputError
from allotment.types import FloatArray, IntArray

REWARDS = (
    (
        "acc",
        "correct",
        "is_correct",
        "success",
        "is_success",
        "passed",
        "solved",
        "resolved",
        "n_correct",
        "num_correct",
    ),
    ("verdict", "outcome", "accuracy", "pass_rate", "success_rate", "solve_rate", "exact_match", "successes"),
    ("reward", "rewards", "score", "scores", "total_reward", "return", "rate"),
)
"""Names of rewards, those that say most surely whether a rollout succeeded first."""
TRIALS = ("n", "num_rollouts", "n_rollouts", "n_samples", "num_samples", "k", "total", "attempts", "trials")
COUNTED = ("n_correct", "num_correct", "pass_rate", "success_rate", "solve_rate", "successes", "rate")
"""Names of rewards that count, or average over, the rollouts of ``n``."""
SHOWN_VALUES = 6
"""Reward values that a note names."""
UNCLEAR, MOST_ARE_TWO = 0.05, 0.8
"""More rollouts than this share between the two most common rewards, or fewer that have one of the two, are no rule."""


def found_reward(path: Path, rows: Sequence[Row]) -> str | None:
    """The column that says whether a rollout succeeded, by its name and by what stands in it; None if there is none.

    Raises InvalidInputError: several may be it, and differ.
    """
    for is_in in (_in_all, _in_some):
        for names in REWARDS:
            found = [name for name in names if rows and is_in([row.get(name) for row in rows])]
            if len(found) > 1 and not _agree([[_plain(row.get(name)) for row in rows] for name in found]):
                raise InvalidInputError(
                    f"{path}: which column is the reward?",
                    got=", ".join(found),
                    allowed="one column",
                    fix="name the one that says whether a rollout succeeded: --reward NAME",
                )
            if found:
                return found[0]
    return None


def _in_all(values: Sequence[Any]) -> bool:
    return all(_says_something(value) for value in values)


def _in_some(values: Sequence[Any]) -> bool:
    """Whether some of these are rewards and the others are missing: nothing, or not a number."""
    given = [value for value in values if value is not None and not (isinstance(value, float) and value != value)]
    return bool(given) and _in_all(given)


def _says_something(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(reward(item) is not None for item in value)
    return reward(value) is not None


def _plain(value: Any) -> Any:
    return [reward(item) for item in value] if isinstance(value, list | tuple) else reward(value)


def _agree(columns: list[list[Any]]) -> bool:
    return all(column == columns[0] for column in columns)


def threshold(reward_G: FloatArray, counts_G: IntArray, success_above: float | None) -> tuple[float, list[str]]:
    """Above which reward a rollout succeeded, and what a reader should know about it.

    By default the middle between the two most common rewards.

    Raises InvalidInputError: too many rewards lie between those two, or are others, for that to be a rule.
    """
    values, where_G = np.unique(reward_G, return_inverse=True)
    if not len(values):
        return 0.0, []
    counts = np.bincount(where_G, counts_G)
    low, high = np.sort(values[np.argsort(-counts, kind="stable")[:2]])[[0, -1]]
    middle = 0.5 if len(values) == 1 else float(low / 2 + high / 2)
    above = middle if success_above is None else success_above
    if set(values.tolist()) <= {0.0, 1.0} and 0 <= above < 1:
        return above, []
    shown = ", ".join(f"{value:g}" for value in values[:SHOWN_VALUES]) + (", ..." if len(values) > SHOWN_VALUES else "")
    note = f"rewards are {shown}: a rollout above {above:g} counts as a success"
    if len(values) <= 2:
        return above, [note]
    between = counts[(values > low) & (values < high)].sum() / counts.sum()
    common = counts[(values == low) | (values == high)].sum() / counts.sum()
    if success_above is None and (between > UNCLEAR or common < MOST_ARE_TWO):
        choices = sorted({f"{(values[-2] + values[-1]) / 2:g}", f"{(values[0] + values[-1]) / 2:g}", f"{middle:g}"})
        raise InvalidInputError(
            "the rewards do not say which rollouts succeeded",
            got=f"{len(values)} rewards from {values[0]:g} to {values[-1]:g}: {shown}",
            allowed="two rewards, or a few that are mostly two",
            fix=f"say above which a rollout succeeded, such as --success-above {' or '.join(choices)}; or name another "
            "column with --reward",
        )
    return above, [f"{note}; how much above is not looked at"]
