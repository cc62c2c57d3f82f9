"""Variance of a real-valued reward from each prompt's own record and the level of all; no embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from allotment.checks import check_setting
from allotment.errors import InvalidInputError
from allotment.prompts.ids import PromptTable, canonical_ids
from allotment.state import State, array_from_state, check_state, from_state
from allotment.types import FloatArray, PromptIds

STRENGTHS: FloatArray = np.exp2(np.arange(-2, 9, dtype=np.float64))
"""[K] weights of the level that are tried, in degrees of freedom."""
_USUAL = 8.0
"""The weight before anything was learnt."""


class RecordedRewardVariance:
    """The variance of one reward: ``(S + k v) / (D + k)``, the linear Bayes estimate, in any unit of the reward.

    D are the discounted degrees of freedom of a prompt (rollouts - 1 of each visit), S its discounted squared
    deviations, v the discounted mean over prompts of their sample variances, each visit alike. A prompt never seen has
    v. The weight k is the one of :data:`STRENGTHS` whose predictions of earlier visits were best by the likelihood of a
    sample variance, ``D (log predicted + observed / predicted) / 2``: small where prompts differ, large where they do
    not.

    Args:
        forgetting: what is left of a prompt's record at its next visit, in (0, 1]; 0.9 as that of
            :class:`~allotment.prediction.DiscountedCounts`.
        global_forgetting: what is left of the level, and of what was learnt about k, after each step; in (0, 1].

    Raises:
        InvalidInputError: a setting is out of its range.
    """

    KIND = "RecordedRewardVariance"
    SETTINGS = ("forgetting", "global_forgetting")

    def __init__(self, *, forgetting: float = 0.9, global_forgetting: float = 0.99) -> None:
        for name, value in (("forgetting", forgetting), ("global_forgetting", global_forgetting)):
            check_setting(name, value, 0 < value <= 1, f"0 < {name} <= 1")
        self.forgetting, self.global_forgetting = float(forgetting), float(global_forgetting)
        self._table = PromptTable(2)
        self._level = np.zeros(2)
        """Discounted sum of sample variances, and their number."""
        self._losses_K = np.zeros(len(STRENGTHS))

    @property
    def level(self) -> float:
        """The variance of a prompt that was never seen; 1 while no reward varied: all prompts are alike then."""
        total, weight = self._level
        return float(total / weight) if total > 0 else 1.0

    @property
    def strength(self) -> float:
        """The weight k of the level, in degrees of freedom."""
        usual_K = (np.log2(STRENGTHS / _USUAL) / 2) ** 2 / 2  # a log-normal prior of two octaves
        return float(STRENGTHS[np.argmin(self._losses_K + usual_K)])

    def predict_variance(self, ids: PromptIds) -> FloatArray:
        """[Q] predicted variance of one reward of each prompt, > 0; unit: reward squared."""
        return self._predicted(self._table.gather(canonical_ids(ids, unique=False)), self.strength)

    def _predicted(self, record_B2: FloatArray, strength: float | FloatArray) -> FloatArray:
        squares_B, degrees_B = record_B2[..., 0], record_B2[..., 1]
        return np.asarray((squares_B + strength * self.level) / (degrees_B + strength))

    def observe_variance(self, ids: PromptIds, variances: npt.ArrayLike, rollouts: npt.ArrayLike) -> None:
        """Learn the unbiased sample variances [B] of the rewards of prompts ``ids`` [B], over ``rollouts`` [B] >= 2.

        Raises:
            DuplicatePromptError: an id stands twice.
            InvalidInputError: an id, a variance or a number of rollouts is not allowed.
        """
        plain = canonical_ids(ids)
        variances_B, degrees_B = _checked(variances, rollouts, len(plain))
        if not plain:
            return
        before_B2 = self._table.gather(plain)
        if (seen := before_B2[:, 1] > 0).any():
            new_K = self._losses(before_B2[seen], variances_B[seen], degrees_B[seen])
            self._losses_K = self.global_forgetting * self._losses_K + new_K
        new_B2 = np.stack([variances_B * degrees_B, degrees_B], axis=1)
        self._table.set(plain, self.forgetting * before_B2 + new_B2)
        total = float(np.sort(variances_B).sum())  # sorted: no trace of the order
        self._level = self.global_forgetting * self._level + np.array([total, len(plain)])

    def _losses(self, record_B2: FloatArray, variances_B: FloatArray, degrees_B: FloatArray) -> FloatArray:
        """[K] how badly each strength predicted these visits."""
        predicted_BK = self._predicted(record_B2[:, None, :], STRENGTHS)
        losses_BK = degrees_B[:, None] * (np.log(predicted_BK) + variances_B[:, None] / predicted_BK) / 2
        return np.asarray(np.sort(losses_BK, axis=0).sum(axis=0))

    def state_dict(self) -> State:
        """Settings, records, level and what was learnt about k."""
        settings = {name: getattr(self, name) for name in self.SETTINGS}
        learnt = {"level": self._level.copy(), "losses": self._losses_K.copy()}
        return {"kind": self.KIND, **settings, **self._table.state("record"), **learnt}

    def load_state_dict(self, state: State) -> None:
        """See :class:`~allotment.state.Stateful`."""
        check_state(state, self.KIND, (*self.SETTINGS, "ids", "record", "level", "losses"))
        loaded = from_state(lambda: RecordedRewardVariance(**{name: state[name] for name in self.SETTINGS}))
        loaded._table = PromptTable.from_state(state, "record", 2)
        loaded._level = array_from_state(state, "level", (2,))
        loaded._losses_K = array_from_state(state, "losses", STRENGTHS.shape)
        sound = bool((loaded._table.rows >= 0).all() and (loaded._level >= 0).all())
        from_state(lambda: check_setting("record", "a negative number", sound, "numbers >= 0"))
        vars(self).update(vars(loaded))


def _checked(variances: Any, rollouts: Any, count: int) -> tuple[FloatArray, FloatArray]:
    """Variances and degrees of freedom, both [B]."""
    try:
        variances_B, rollouts_B = np.asarray(variances, dtype=np.float64), np.asarray(rollouts, dtype=np.float64)
    except (TypeError, ValueError):
        variances_B = rollouts_B = np.full(0 if count else 1, np.nan)
    fits = variances_B.shape == rollouts_B.shape == (count,)
    if not fits or not ((variances_B >= 0) & (variances_B < np.inf) & (rollouts_B >= 2) & (rollouts_B < np.inf)).all():
        raise InvalidInputError(
            "reward variances cannot be used",
            got=f"{count} ids, variances {variances}, rollouts {rollouts}",
            allowed="for each id a finite variance >= 0, of 2 rollouts or more",
            fix="leave out prompts with fewer than two rollouts",
        )
    return variances_B, rollouts_B - 1
