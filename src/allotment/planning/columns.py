"""What is told of the N rollouts of a part, one row each: rewards, and measurements that may stand beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from allotment.errors import InvalidInputError
from allotment.types import FloatArray, PromptId

MAX_SKETCHES = 16
"""Most numbers that a score sketch of a rollout may have."""


def finite_column(name: str, values: npt.ArrayLike, group_ids: tuple[PromptId, ...]) -> FloatArray:
    """``values`` as finite floats [N], one for each of ``group_ids``; ``name`` is their plural.

    Raises:
        InvalidInputError: no array of numbers, another shape, or a number is not finite.
    """
    column_N = _floats(name, values)
    if column_N.shape != (len(group_ids),):
        raise _misfit(name, column_N, group_ids, f"one flat array of {name} with one group id each")
    _refuse(~np.isfinite(column_N), name, "not finite", "finite numbers", column_N, group_ids)
    return column_N


def length_column(lengths: npt.ArrayLike, group_ids: tuple[PromptId, ...]) -> FloatArray:
    """Completion tokens of each rollout, [N], positive and finite.

    Raises:
        InvalidInputError: as :func:`finite_column`, or a length is not positive.
    """
    lengths_N = finite_column("lengths", lengths, group_ids)
    _refuse(lengths_N <= 0, "lengths", "not positive", "completion tokens, > 0", lengths_N, group_ids)
    return lengths_N


def score_columns(scores: npt.ArrayLike, group_ids: tuple[PromptId, ...]) -> FloatArray:
    """Score sketches [N, K], K from 1 to 16; [N] is taken as K = 1.

    Raises:
        InvalidInputError: no array of numbers, another shape, or a number is not finite.
    """
    scores_NK = _floats("scores", scores)
    if scores_NK.ndim == 1:
        scores_NK = scores_NK[:, None]
    if scores_NK.ndim != 2 or len(scores_NK) != len(group_ids) or not 1 <= scores_NK.shape[1] <= MAX_SKETCHES:
        allowed = f"[N] or [N, K], one row per group id, K from 1 to {MAX_SKETCHES}"
        raise _misfit("scores", scores_NK, group_ids, allowed)
    _refuse(~np.isfinite(scores_NK), "scores", "not finite", "finite numbers", scores_NK, group_ids)
    return scores_NK


def answer_column(answers: Sequence[str | None], group_ids: tuple[PromptId, ...]) -> tuple[str | None, ...]:
    """The extracted answer of each rollout, [N]; None where none could be extracted.

    Raises:
        InvalidInputError: another number of them, or one is neither a text nor None.
    """
    column_N = tuple(answers)
    strange = next((a for a in column_N if not (a is None or isinstance(a, str))), None)
    if len(column_N) != len(group_ids) or strange is not None:
        raise InvalidInputError(
            "answers and group ids do not fit together",
            got=f"{len(column_N)} answers, {len(group_ids)} group ids" if strange is None else repr(strange),
            allowed="a text or None for every rollout",
            fix="pass the canonical answer of each completion, None where there is none",
        )
    return column_N


def _floats(name: str, values: npt.ArrayLike) -> FloatArray:
    """A float copy, so that what was told cannot be changed afterwards."""
    try:
        return np.asarray(values, dtype=np.float64).copy()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # RuntimeError: a tensor that requires grad
        raise InvalidInputError(
            f"the {name} are not an array of numbers",
            got=f"{type(error).__name__}: {error}",
            allowed="numbers, one row per rollout",
            fix=f"pass a list or a numpy array; of a torch tensor, {name}.detach().float().cpu().numpy()",
        ) from error


def _misfit(name: str, column: FloatArray, group_ids: tuple[PromptId, ...], allowed: str) -> InvalidInputError:
    return InvalidInputError(
        f"{name} and group ids do not fit together",
        got=f"{name} of shape {column.shape}, {len(group_ids)} group ids",
        allowed=allowed,
        fix="pass one entry per rollout; leave out rollouts that did not finish",
    )


def _refuse(
    bad: npt.NDArray[np.bool_],
    name: str,
    wrong: str,
    allowed: str,
    column: FloatArray,
    group_ids: tuple[PromptId, ...],
) -> None:
    """Raise for the first row of ``bad`` ([N] or [N, K]) that holds a True."""
    if not bad.any():
        return
    bad_N = bad.reshape(len(bad), -1).any(axis=1)
    i = int(bad_N.argmax())
    raise InvalidInputError(
        f"a {name.removesuffix('s')} is {wrong}",
        got=f"{column[i]} at index {i} (prompt {group_ids[i]!r}), {int(bad_N.sum())} of {len(bad)} in all",
        allowed=allowed,
        fix="leave out rollouts whose value is unknown, or measure them; nothing of this call was recorded",
    )
