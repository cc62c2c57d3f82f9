"""What is predicted beside success: any real value of a prompt, the length of its rollouts, the size of their scores.

**Lengths.** What is predicted is the *mean* length of a prompt, on a log scale, since a budget of tokens adds lengths
up. A visit with n rollouts shows its logarithm with a noise of about ``cv^2 / n``, cv the spread of lengths within a
prompt relative to their mean.

**Scores.** The variance of a prompt's policy gradient depends on the success probability p and on three moments of the
score s (a derivative of the rollout's log-probability, averaged over K random directions): its variance among successes
V1, its variance among failures V0, and the squared gap D2 between the two means. VIP (arXiv 2602.01601, assumption 4.1)
takes V1 = V0, equal for all prompts, and D2 = 0. All three are seen apart from p: successes tell V1 and failures V0,
however many there are, so that p can be left to the predictor, and prompts whose rewards are all equal still teach
something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from allotment.checks import check_setting
from allotment.errors import InvalidInputError
from allotment.prediction.hierarchical import HierarchicalModel
from allotment.prediction.posteriors import ScoreMoments
from allotment.prediction.settings import Settings
from allotment.prompts.ids import PromptTable, canonical_ids
from allotment.state import State, array_from_state, check_state, from_state
from allotment.types import FloatArray, IntArray, PromptId, PromptIds

OUTCOMES = 2
"""Failure 0, success 1."""


class HierarchicalRegression(HierarchicalModel):
    """The same model with normal noise: a real value of each prompt, such as its log length, seen or not.

    ``value = c + d(t) + g_t(x_q) + u_q(t) + noise``, the variance of the noise given with each observation.
    """

    KIND = "HierarchicalRegression"
    DEFAULTS = Settings(scale=1.0, unseen_variance=0.25, prompt_variance=0.25, prompt_drift=1e-4, prior_variance=25.0)

    def predict(self, ids: PromptIds) -> tuple[FloatArray, FloatArray]:
        """Mean and variance of each prompt's value, both [Q]; errors as :meth:`Predictor.predict`."""
        return self._belief(ids)

    def observe(self, ids: PromptIds, values_B: FloatArray, noise_variance_B: FloatArray) -> None:
        """Learn one value of each prompt [B], all of one step, each measured with its noise variance, > 0.

        Errors as :meth:`Predictor.observe`; InvalidInputError: a value is not finite, a variance not positive, finite.
        """
        plain = canonical_ids(ids)
        value_B, noise_B = np.asarray(values_B, dtype=np.float64), np.asarray(noise_variance_B, dtype=np.float64)
        good = value_B.shape == noise_B.shape == (len(plain),) and np.isfinite(value_B).all()
        if not (good and (noise_B > 0).all() and np.isfinite(noise_B).all()):
            raise InvalidInputError(
                "an observation is not a value with a noise variance",
                got=f"{len(plain)} ids, values {value_B.shape}, noise variances {noise_B.shape}",
                allowed="one finite value and one positive, finite variance per id",
                fix="leave out prompts of which nothing was measured",
            )
        if not plain:
            return
        self._settle()
        batch = self._batch(plain)
        self._model.learn(batch, _log_normal, value_B, noise_B)
        self._model.absorb(batch, lambda _: (value_B, 1 / noise_B))


def _log_normal(mean: FloatArray, variance: FloatArray, value: FloatArray, noise: FloatArray) -> FloatArray:
    """Log density of values measured with noise of this variance, up to a constant."""
    total = variance + noise
    return np.asarray(-0.5 * (np.log(total) + (value - mean) ** 2 / total), dtype=np.float64)


class LengthPredictor:
    """The expected completion tokens of a rollout of each prompt: ``exp(mean + variance / 2)`` of the log mean length.

    Times the ratio of tokens used to tokens so predicted in recent visits: heavy tails, and an allocation that prefers
    prompts whose length is underestimated, else make the use exceed the prediction by a few per cent.

    Args:
        typical_length: tokens of a rollout before anything was observed; None if unknown.
        model: regression on the log scale; :class:`~allotment.prediction.HierarchicalRegression` without embeddings if
            None.

    Raises:
        InvalidInputError: the typical length is not positive and finite.
    """

    KIND = "LengthPredictor"
    PRIOR_SPREAD = 0.5
    """Coefficient of variation within a prompt that is assumed at first."""
    PRIOR_ROLLOUTS = 8.0
    """How many rollouts' worth that assumption is, and later the pooled spread against a prompt's own."""

    def __init__(self, *, typical_length: float | None = None, model: HierarchicalRegression | None = None) -> None:
        if typical_length is not None:
            check_setting("typical_length", typical_length, 0 < typical_length < np.inf, "> 0, finite")
        self.typical_length = None if typical_length is None else float(typical_length)
        self.model = HierarchicalRegression(prior_mean=5.0) if model is None else model
        self._pooled = self.PRIOR_ROLLOUTS * np.array([1.0, self.PRIOR_SPREAD**2])  # weight, sum of cv^2
        self._observed = 0
        self._tokens = np.zeros(2)  # predicted, used
        self._recent = np.zeros(2)  # the same, discounted and before calibration

    @property
    def predicted_tokens(self) -> float:
        """Tokens that were expected of all rollouts observed, each predicted before its visit was seen."""
        return float(self._tokens[0])

    @property
    def used_tokens(self) -> float:
        """Tokens of the same rollouts; those observed before anything could be predicted are in neither."""
        return float(self._tokens[1])

    def expected_length(self, ids: PromptIds, *, unknown: float) -> FloatArray:
        """[Q] expected tokens of one rollout of each prompt.

        Args:
            ids: the Q prompts, seen before or not.
            unknown: what to answer for all while no length was observed and none is typical.
        """
        if not self._observed:
            value = unknown if self.typical_length is None else self.typical_length
            return np.full(len(canonical_ids(ids, unique=False)), value)
        used_per_predicted = self._recent[1] / self._recent[0] if self._recent[0] else 1.0
        return self._uncalibrated(ids) * used_per_predicted

    def _uncalibrated(self, ids: PromptIds) -> FloatArray:
        mean_Q, variance_Q = self.model.predict(ids)
        return np.asarray(np.exp(mean_Q + variance_Q / 2), dtype=np.float64)

    def observe(self, ids: PromptIds, rows_N: IntArray, lengths_N: FloatArray) -> None:
        """Learn the lengths of N rollouts, > 0, of the prompts ``ids[rows_N]``; prompts without any are ignored."""
        plain = canonical_ids(ids)
        if not (np.isfinite(lengths_N) & (lengths_N > 0)).all():
            raise InvalidInputError(
                "a length is not positive", got=lengths_N.min(), allowed="> 0", fix="leave empty rollouts out"
            )
        n_Q = np.bincount(rows_N, minlength=len(plain))
        if self._observed or self.typical_length is not None:
            expected_Q = self.expected_length(plain, unknown=np.nan)
            used = float(np.sort(lengths_N).sum())
            self._tokens += np.array([float(n_Q @ expected_Q), used])
            if self._observed:
                self._recent = 0.9 * self._recent + np.array([float(n_Q @ self._uncalibrated(plain)), used])
        order = np.lexsort((lengths_N, rows_N))  # the last bits of a sum depend on its order
        rows_N, lengths_N = rows_N[order], lengths_N[order]
        seen = np.flatnonzero(n_Q > 0)
        mean_Q = np.bincount(rows_N, lengths_N, minlength=len(plain)) / np.maximum(n_Q, 1)
        squares_Q = np.bincount(rows_N, (lengths_N / mean_Q[rows_N] - 1.0) ** 2, minlength=len(plain))
        noise_B = self._noise(n_Q[seen].astype(np.float64), squares_Q[seen].astype(np.float64))
        chosen: list[PromptId] = [plain[i] for i in seen]
        if chosen:  # the logarithm of a mean of n is low by half its noise
            self.model.observe(chosen, np.log(mean_Q[seen]) + noise_B / 2, noise_B)
            self._observed += len(chosen)

    def _noise(self, n_B: FloatArray, squares_B: FloatArray) -> FloatArray:
        """[B] variance of the log of a mean of n lengths; own squared deviations, pooled with others'."""
        self._pooled = 0.9 * self._pooled + [float((n_B - 1).sum()), float(np.sort(squares_B).sum())]
        pooled = self._pooled[1] / self._pooled[0]
        spread_B = (self.PRIOR_ROLLOUTS * pooled + squares_B) / (self.PRIOR_ROLLOUTS + n_B - 1)
        return np.asarray(np.maximum(spread_B, 1e-6) / n_B, dtype=np.float64)

    def state_dict(self) -> State:
        """Everything, the model included."""
        seen = {"pooled": self._pooled.copy(), "observed": self._observed}
        tokens = {"tokens": self._tokens.copy(), "recent": self._recent.copy()}
        settings = {"kind": self.KIND, "typical_length": self.typical_length}
        return {**settings, **seen, **tokens, "model": self.model.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """See :class:`~allotment.state.Stateful`."""
        check_state(state, self.KIND, ("typical_length", "pooled", "observed", "tokens", "recent", "model"))
        loaded = from_state(lambda: LengthPredictor(typical_length=state["typical_length"]))
        pooled, tokens, recent = (array_from_state(state, key, (2,)) for key in ("pooled", "tokens", "recent"))
        observed: Any = state["observed"]
        from_state(lambda: check_setting("observed", observed, type(observed) is int and observed >= 0, ">= 0"))
        self.model.load_state_dict(state["model"])  # the last that can fail; it is all or nothing itself
        self.typical_length, self._observed = loaded.typical_length, observed
        self._pooled, self._tokens, self._recent = pooled, tokens, recent


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

        InvalidInputError where scores are so large that their squares are not finite.
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
        """``scale``: regression for the logarithm of a prompt's scale; without embeddings if None.

        ``forgetting``: what is left of a prompt's record at its next visit, in (0, 1], else InvalidInputError.
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
        """The belief about Q prompts, seen or not; only once :attr:`is_informed`. Errors as those of the scale."""
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
        """Learn from one visit of B prompts, all of one step. Errors as those of the scale."""
        new_BC = np.zeros((len(visit.ids), self.COLUMNS))
        new_BC[:, :2], new_BC[:, 2:4], new_BC[:, 5] = visit.within_B2, visit.freedom(), visit.pairs()
        pool = self.POOL_FORGETTING * self._pool + np.sort(new_BC, axis=0).sum(
            axis=0
        )  # no trace of the order of the rows
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
        common = {"pool": self._pool.copy(), "sketches": self._sketches, "scale": self.scale.state_dict()}
        return {"kind": self.KIND, "forgetting": self.forgetting, **self._records.state("records"), **common}

    def load_state_dict(self, state: State) -> None:
        """See :class:`~allotment.state.Stateful`; embeddings that the scale has registered stay."""
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
