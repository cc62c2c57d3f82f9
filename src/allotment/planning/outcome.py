"""What came back for a plan, and for all rounds of a step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from allotment.errors import InvalidInputError
from allotment.types import FloatArray, IntArray, PromptId


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came back for one plan: N rewards, each with the row of its prompt in the plan."""

    prompt_ids: tuple[PromptId, ...]
    """[Q] the plan's prompts."""
    planned: IntArray
    """[Q] rollouts asked for."""
    rewards_N: FloatArray
    """[N] rewards, in the order told."""
    rows_N: IntArray
    """[N] position of each reward's prompt in ``prompt_ids``."""
    scores_NK: FloatArray | None = None
    """[N, K] sketch of each rollout's score; None if not told."""
    lengths_N: FloatArray | None = None
    """[N] completion tokens of each rollout; None if not told."""
    answers_N: tuple[str | None, ...] | None = None
    """[N] extracted answer of each rollout, None where there is none; None if not told."""

    def __post_init__(self) -> None:
        for array in (self.planned, self.rewards_N, self.rows_N, self.scores_NK, self.lengths_N):
            if array is not None:
                array.setflags(write=False)  # the ledger and its states keep the same arrays

    @property
    def received(self) -> IntArray:
        """[Q] rewards told."""
        return np.bincount(self.rows_N, minlength=len(self.prompt_ids))

    @property
    def missing(self) -> IntArray:
        """[Q] rollouts asked for whose reward was not told."""
        return self.planned - self.received

    def successes(self, threshold: float) -> IntArray:
        """[Q] rewards of at least ``threshold``."""
        return np.bincount(self.rows_N[self.rewards_N >= threshold], minlength=len(self.prompt_ids))

    def told(self) -> tuple[list[PromptId], IntArray]:
        """The prompts of which a reward was told, and their rows; both [B]."""
        rows_B = np.flatnonzero(self.received > 0)
        return [self.prompt_ids[row] for row in rows_B.tolist()], rows_B

    def reward_variance(self) -> FloatArray:
        """[Q] unbiased sample variance of the rewards, whatever their order; NaN where fewer than two were told."""
        count = self.received
        order = np.lexsort((self.rewards_N, self.rows_N))  # the last bits of a sum depend on its order
        rows_N, rewards_N = self.rows_N[order], self.rewards_N[order]
        mean = np.bincount(rows_N, rewards_N, minlength=len(count)) / np.maximum(count, 1)
        squares = np.bincount(rows_N, (rewards_N - mean[rows_N]) ** 2, minlength=len(count))
        return np.where(count >= 2, squares / np.maximum(count - 1, 1), np.nan)

    def ordered(self, ids: tuple[PromptId, ...]) -> Outcome:
        """The same with its prompts in the order of ``ids``."""
        place = {prompt: q for q, prompt in enumerate(ids)}
        new_Q = np.array([place[prompt] for prompt in self.prompt_ids], dtype=np.int64)
        return replace(self, prompt_ids=ids, planned=self.planned[np.argsort(new_Q)], rows_N=new_Q[self.rows_N])

    def followed_by(self, later: Outcome) -> Outcome:
        """With the rollouts of a later part of the plan, or of a later round over the same prompts.

        InvalidInputError where one part has scores, lengths or answers and the other has not, or sketches differ.
        """
        if not len(self.rows_N) or not len(later.rows_N):
            whole = self if len(self.rows_N) else later
            return whole if whole.planned is self.planned else replace(whole, planned=self.planned)
        columns: dict[str, Any] = {}
        for name in _OPTIONAL:
            own, new = getattr(self, name), getattr(later, name)
            if (own is None) != (new is None) or np.shape(own)[1:] != np.shape(new)[1:]:
                _refuse_parts(name.partition("_")[0], own, new, len(self.rows_N), len(later.rows_N))
            if own is not None:
                columns[name] = own + new if name == "answers_N" else np.concatenate([own, new])
        rewards_N = np.concatenate([self.rewards_N, later.rewards_N])
        return Outcome(self.prompt_ids, self.planned, rewards_N, np.concatenate([self.rows_N, later.rows_N]), **columns)


_OPTIONAL = ("scores_NK", "lengths_N", "answers_N")


def _refuse_parts(name: str, own: Any, new: Any, earlier: int, further: int) -> None:
    shapes = ["none" if part is None else str(np.shape(part)) for part in (own, new)]
    raise InvalidInputError(
        f"the parts of one plan differ in their {name}",
        got=f"{shapes[0]} for the first {earlier} rollouts, {shapes[1]} for the next {further}",
        allowed=f"{name} of one shape in all parts of a plan, or in none",
        fix=f"tell `{name}` in every part; nothing of this call was recorded",
    )
