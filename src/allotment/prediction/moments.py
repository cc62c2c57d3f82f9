"""How large are the scores of each prompt's rollouts, and how do they go with its rewards?

The variance of a prompt's policy gradient depends on the success probability p and on three moments of the score s (a
derivative of the rollout's log-probability, averaged over K random directions): its variance among successes V1, its
variance among failures V0, and the squared gap D2 between the two means. VIP (arXiv 2602.01601, assumption 4.1) takes
V1 = V0, equal for all prompts, and D2 = 0. All three are seen apart from p: successes tell V1 and failures V0, however
many there are, so that p can be left to the predictor, and prompts whose rewards are all equal still teach something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from allotment.checks import check_setting
from allotment.errors import InvalidInputError
from allotment.prediction.hierarchical_regression import HierarchicalRegression
from allotment.prediction.posteriors import ScoreMoments
from allotment.prompts.ids import PromptTable
from allotment.state import State, array_from_state, check_state, from_state
from allotment.types import FloatArray, IntArray, PromptId

OUTCOMES = 2
"""Failure 0, success 1."""


@dataclass(frozen=True, eq=False)
class ScoreVisit:
    """What one visit of B prompts says of their scores: sums of squares, means over the K sketches.

    Given its n1 successes and n0 failures, ``E[within] = freedom * V`` for each outcome, and with ``pairs = n1 n0 / n``
    ``E[between] = pairs * D2 + n0 / n * V1 + n1 / n * V0``. A number added to all scores of a prompt changes none.
    """

    ids: tuple[PromptId, ...]
    """[B] the prompts with rollouts."""
    trials_B2: IntArray
    """[B, 2] failures and successes."""
    within_B2: FloatArray
    """[B, 2] squared deviations from the mean score of the same outcome."""
    between_B: FloatArray
    """[B] squared difference of the two mean scores times ``pairs``; 0 where all rewards are equal."""
    sketches: int
    """K, over which the squares are averaged."""

    @classmethod
    def of(
        cls, ids: tuple[PromptId, ...], rows_N: IntArray, is_success_N: npt.NDArray[np.bool_], scores_NK: FloatArray
    ) -> Self:
        """Of N rollouts of the prompts ``ids[rows_N]``, in any order; prompts without any are left out.

        Raises:
            InvalidInputError: scores are so large that their squares are not finite.
        """
        group_N = OUTCOMES * rows_N + is_success_N
        order = np.lexsort((*scores_NK.T, group_N))  # the last bits of a sum depend on its order
        group_N, scores_NK = group_N[order], scores_NK[order]
        size, groups = scores_NK.shape[1], OUTCOMES * len(ids)
        trials_G = np.bincount(group_N, minlength=groups)
        with np.errstate(over="ignore", invalid="ignore"):
            mean_KG = _group_sums(scores_NK, group_N, groups) / np.maximum(trials_G, 1)
            squares_KG = _group_sums((scores_NK - mean_KG.T[group_N]) ** 2, group_N, groups)
            gap_Q = (np.diff(mean_KG.reshape(size, -1, OUTCOMES))[:, :, 0] ** 2).mean(axis=0)
        trials_Q2, within_Q2 = trials_G.reshape(-1, OUTCOMES), squares_KG.mean(axis=0).reshape(-1, OUTCOMES)
        between_Q = np.where(trials_Q2.all(axis=1), gap_Q, 0.0) * _pairs(trials_Q2)
        if not (np.isfinite(within_Q2).all() and np.isfinite(between_Q).all()):
            raise InvalidInputError(
                "scores are too large", got=np.abs(scores_NK).max(), allowed="below 1e150", fix="scale them"
            )
        seen = np.flatnonzero(trials_Q2.any(axis=1))
        return cls(tuple(ids[i] for i in seen), trials_Q2[seen], within_Q2[seen], between_Q[seen], size)

    def freedom(self) -> IntArray:
        """[B, 2] degrees of freedom of ``within_B2``."""
        return np.maximum(self.trials_B2 - 1, 0)

    def pairs(self) -> FloatArray:
        """[B] weight of the gap, ``n1 n0 / n``."""
        return _pairs(self.trials_B2)

    def gap(self, within_B2: FloatArray) -> FloatArray:
        """[B] unbiased for ``pairs * D2``, given the variances: ``between`` less its noise."""
        others_B2 = self.trials_B2[:, ::-1] / np.maximum(self.trials_B2.sum(axis=1), 1)[:, None]
        noise_B = (others_B2 * within_B2).sum(axis=1)
        return np.where(self.trials_B2.all(axis=1), self.between_B - noise_B, 0.0)


class GradientMoments:
    """:class:`~allotment.prediction.posteriors.ScoreMoments` of prompts: their records, shrunk to a scaled common one.

    A prompt's record are sums over its visits, each visit first multiplying them by ``forgetting``. V0 and V1 are
    shrunk to ``scale * v0`` and ``scale * v1`` with the weight of ``STRENGTH`` rollouts, D2 to ``scale * d`` with the
    weight of one pair. v0, v1, d come from the sums of all prompts of past steps. The logarithm of the scale is a
    :class:`~allotment.prediction.HierarchicalRegression`, so that it is sensible for prompts never seen, and informed
    by embeddings where the regression has them.

    However long a record is, it knows its prompt's scores along K directions only, and by chance these may show nearly
    none of its gradient. So 1 part of the belief in K + 1 stays what is common to all: no prompt is starved, and with
    one direction of the output matrix, where a belief in the record alone doubles the variance, it does no harm.
    """

    KIND = "GradientMoments"
    COLUMNS = 6
    """Of a record: within and freedom of failures, of successes; gap and pairs."""
    STRENGTH = 8.0
    """Rollouts of an outcome that the prior of its variance counts as; in the lab 4 to 16 do equally well."""
    PAIRS = 0.5
    """``n1 n0 / n`` that the prior of the gap counts as: one success and one failure; 0.25 to 1 do equally well."""
    NOISE = 4.0
    """Variance of the log of a mean of n squared scores, times n: twice that of normal scores along one direction."""
    LEAST = 1e-4
    """Least relative squared deviation that is taken for a measurement and not for rounding."""
    POOL_FORGETTING = 0.99
    """What is left of earlier steps in v0, v1, d after a step."""

    def __init__(self, *, scale: HierarchicalRegression | None = None, forgetting: float = 0.9) -> None:
        """Store the settings.

        Args:
            scale: regression for the logarithm of a prompt's scale; without embeddings if None.
            forgetting: what is left of a prompt's record at its next visit, in (0, 1].

        Raises:
            InvalidInputError: ``forgetting`` is out of its range.
        """
        check_setting("forgetting", forgetting, 0 < forgetting <= 1, "0 < forgetting <= 1")
        self.forgetting = float(forgetting)
        self.scale = HierarchicalRegression() if scale is None else scale
        self._records = PromptTable(self.COLUMNS)
        self._pool = np.zeros(self.COLUMNS)
        self._sketches = 1

    @property
    def is_informed(self) -> bool:
        """Whether scores with any variance have been observed."""
        return bool(self._pool[:2].sum() > 0)

    def predict(self, ids: tuple[PromptId, ...]) -> ScoreMoments:
        """The belief about Q prompts, seen or not; only once :attr:`is_informed`.

        Raises:
            UnknownPromptError: the scale uses embeddings and a prompt was never registered.
        """
        record_QC = self._records.gather(ids)
        scale_Q = np.exp(self.scale.predict(ids)[0])
        within_Q2 = _shrunk_within(record_QC, scale_Q, self._pool)
        gap = max(self._pool[4] / self._pool[5], 0.0) if self._pool[5] else 0.0
        gap_Q = (record_QC[:, 4] + self.PAIRS * scale_Q * gap) / (record_QC[:, 5] + self.PAIRS)
        trust = self._sketches / (self._sketches + 1)
        return ScoreMoments(
            trust * within_Q2 + (1 - trust) * _common_within(self._pool),
            trust * np.maximum(gap_Q, 0.0) + (1 - trust) * gap,
        )

    def observe(self, visit: ScoreVisit) -> None:
        """Learn from one visit of B prompts, all of one step.

        Raises:
            UnknownPromptError: the scale uses embeddings and a prompt was never registered.
        """
        new_BC = np.zeros((len(visit.ids), self.COLUMNS))
        new_BC[:, :2], new_BC[:, 2:4], new_BC[:, 5] = visit.within_B2, visit.freedom(), visit.pairs()
        pool = self.POOL_FORGETTING * self._pool + _sorted_sums(new_BC)
        self._observe_scale(visit, pool)
        if pool[:2].sum() == 0:  # no two rollouts of equal reward differ in their scores: no scale to compare with
            return
        record_BC = self.forgetting * self._records.gather(visit.ids) + new_BC
        within_B2 = _shrunk_within(record_BC, np.exp(self.scale.predict(visit.ids)[0]), pool)
        gap_B = visit.gap(within_B2)
        record_BC[:, 4] += gap_B
        pool[4] += np.sort(gap_B).sum()
        self._records.set(visit.ids, record_BC)
        self._pool, self._sketches = pool, visit.sketches

    def _observe_scale(self, visit: ScoreVisit, pool: FloatArray) -> None:
        """Squared deviations relative to what is common to all prompts, on a log scale, where they say anything."""
        common_2 = _common_within(pool)
        expected_B2 = visit.freedom() * common_2
        expected_B, got_B = expected_B2.sum(axis=1), visit.within_B2.sum(axis=1)
        telling = np.flatnonzero((got_B > 0) & (expected_B > 0.01 * common_2.max() * visit.freedom().sum(axis=1)))
        if len(telling):
            noise_B = self.NOISE * (expected_B2 * common_2).sum(axis=1)[telling] / expected_B[telling] ** 2
            ratio_B = np.maximum(got_B[telling] / expected_B[telling], self.LEAST)
            values_B = np.log(ratio_B) + noise_B / 2  # the logarithm of a mean is low by half its noise
            self.scale.observe([visit.ids[i] for i in telling], values_B, noise_B)

    def state_dict(self) -> State:
        """Settings, records and what is common to all."""
        return {
            "kind": self.KIND,
            "forgetting": self.forgetting,
            **self._records.state("records"),
            "pool": self._pool.copy(),
            "sketches": self._sketches,
            "scale": self.scale.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Take over everything from a :meth:`state_dict`; embeddings that the scale has registered stay.

        Raises:
            StateError: of another kind, keys missing, or values that do not fit.
        """
        check_state(state, self.KIND, ("forgetting", "ids", "records", "pool", "sketches", "scale"))
        loaded = from_state(lambda: GradientMoments(scale=self.scale, forgetting=state["forgetting"]))
        loaded._records = PromptTable.from_state(state, "records", self.COLUMNS)
        loaded._pool = array_from_state(state, "pool", (self.COLUMNS,))
        loaded._sketches = sketches = state["sketches"]
        from_state(lambda: check_setting("sketches", sketches, type(sketches) is int and sketches >= 1, ">= 1"))
        self.scale.load_state_dict(state["scale"])  # the last that can fail; it is all or nothing itself
        vars(self).update(vars(loaded))


def _group_sums(values_NK: FloatArray, group_N: IntArray, groups: int) -> FloatArray:
    """[K, G] sums of the rows of each group, in the order of the rows."""
    return np.stack([np.bincount(group_N, column_N, minlength=groups) for column_N in values_NK.T])


def _sorted_sums(values_BC: FloatArray) -> FloatArray:
    """[C] sums of columns that bear no trace of the order of the rows."""
    return np.asarray(np.sort(values_BC, axis=0).sum(axis=0), dtype=np.float64)


def _pairs(trials_B2: IntArray) -> FloatArray:
    return np.asarray(trials_B2.prod(axis=1) / np.maximum(trials_B2.sum(axis=1), 1), dtype=np.float64)


def _common_within(pool: FloatArray) -> FloatArray:
    """[2] v0 and v1; that of both outcomes together where one was never seen twice."""
    together = pool[:2].sum() / max(pool[2:4].sum(), 1e-300)
    return np.asarray(np.where(pool[2:4] > 0, pool[:2] / np.maximum(pool[2:4], 1e-300), together), dtype=np.float64)


def _shrunk_within(record_QC: FloatArray, scale_Q: FloatArray, pool: FloatArray) -> FloatArray:
    """[Q, 2] variance of the score among failures and successes."""
    strength = GradientMoments.STRENGTH
    prior_Q2 = scale_Q[:, None] * _common_within(pool)
    return np.asarray((record_QC[:, :2] + strength * prior_Q2) / (record_QC[:, 2:4] + strength), dtype=np.float64)
