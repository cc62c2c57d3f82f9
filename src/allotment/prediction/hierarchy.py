"""The recursion behind the hierarchical predictor: a linear-Gaussian model of one latent value per prompt.

    f_q(t) = c + d(t) + w(t) . phi(x_q) + u_q(t)

c a constant level and d its drift, a random walk from 0; w the weights of a low-rank Gaussian process on the prompts'
embeddings (:class:`~allotment.prediction.features.Landmarks`), forgotten slowly; u_q the prompt's own effect, a random
walk around nothing. Outcomes reach the model as Gaussian likelihoods ("sites") of f_q, one per visited prompt and step.

What is stored does not grow with the number of visits: for (c, d, w) the information matrix of all sites, the u_q
integrated out; for each visited prompt its own record, the product of its sites, which loses precision with time. Given
(c, d, w), a prompt with record (t, tau) has

    f_q = (1 - k) (c + w . phi_q) + d + k t + noise,   k = s tau / (1 + s tau),   noise variance s / (1 + s tau)

with s the variance of u_q. So a prompt never seen (tau = 0) has the embedding's opinion, one seen often its own record,
and the mixture follows from the variances. Without drift and forgetting this is the exact posterior of all sites,
whatever the order in which they came: a revisit adds to (c, d, w) only what the record did not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.special import softmax

from allotment.checks import check_setting
from allotment.prediction.binomial import BatchPrior, drift_evidence
from allotment.prediction.settings import Settings, log_normal_grid, members
from allotment.prompts.ids import PromptTable
from allotment.state import State, array_from_state, from_state
from allotment.types import FloatArray, PromptId

EVIDENCE_FORGETTING = 0.995
"""What is left of a candidate's evidence after a step: hyper-parameters follow the last few hundred steps."""
TIE = 1e-6
"""Log likelihood ratio below which two candidates are equal."""
STARTING_PRECISION = 1e8
"""Of the drift d at step 0, where it is 0 by definition."""
SCORED_AT_ONCE = 512
"""Values of f whose likelihoods are computed at once."""
VALUE, PRECISION, LEVEL, STEP = range(4)
"""Columns of a prompt's record: its likelihood, the level and the step at the last visit."""
Belief = tuple[FloatArray, FloatArray]
"""Mean and variance of f, both [B]."""
LogLikelihood = Callable[[FloatArray, FloatArray], FloatArray]
"""From means and variances of f, both [C, B], to the log predictive likelihoods of what was observed, [C, B]."""


class Candidates:
    """Values of one hyper-parameter, each with a log-normal prior and the predictive log likelihood it has earned.

    What was earned fades by ``forgetting`` at every step, so that a hyper-parameter can change during training; the
    prior does not.
    """

    def __init__(self, values_J: FloatArray, log_prior_J: FloatArray, forgetting: float = EVIDENCE_FORGETTING) -> None:
        self.values = values_J
        self.log_prior = log_prior_J - log_prior_J.max()
        self.forgetting = forgetting
        self.evidence = self.log_prior

    def observe(self, log_likelihood_J: FloatArray) -> None:
        """Add the log likelihood of a step's outcomes under each candidate; all [J]."""
        evidence_J = self.log_prior + self.forgetting * (self.evidence - self.log_prior) + log_likelihood_J
        self.evidence = evidence_J - evidence_J.max()

    @property
    def mean(self) -> float:
        """Mean of the values under their posterior weights."""
        return float(softmax(self.evidence) @ self.values)

    @property
    def best(self) -> int:
        """Index of the candidate with the most evidence; the first of equals, whatever the last bits of a sum."""
        return int((self.evidence >= self.evidence.max() - TIE).argmax())


@dataclass(eq=False)
class Information:
    """What sites said about (c, d, w): a Gaussian likelihood in information form.

    The priors of c and w are left out: they are never forgotten.
    """

    precision: FloatArray
    """[F, F], F = 2 + M."""
    shift: FloatArray
    """[F] precision times mean."""

    @classmethod
    def start(cls, rank: int) -> Information:
        """Nothing but that d is 0."""
        return cls(np.diag([0.0, STARTING_PRECISION, *np.zeros(rank)]), np.zeros(2 + rank))

    def absorb(self, rows_BF: FloatArray, target_B: FloatArray, variance_B: FloatArray) -> None:
        """Learn that ``rows . (c, d, w) = target + noise`` of this variance."""
        scaled_BF = rows_BF / np.sqrt(variance_B)[:, None]
        self.precision = self.precision + scaled_BF.T @ scaled_BF
        self.shift = self.shift + rows_BF.T @ (target_B / variance_B)

    def pass_time(self, keep: float, level_drift: float) -> None:
        """One step: forget all but ``keep``, then add ``level_drift`` to the variance of d."""
        precision_FF, shift_F = keep * self.precision, keep * self.shift
        column_F = precision_FF[:, 1].copy()
        gain = level_drift / (1 + level_drift * column_F[1])
        self.precision = precision_FF - gain * np.outer(column_F, column_F)
        self.shift = shift_F - gain * column_F * shift_F[1]


@dataclass(frozen=True, eq=False)
class Common:
    """What level and embeddings say about Q prompts, whatever their own records."""

    mean: FloatArray
    """[Q] of c + w . phi."""
    variance: FloatArray
    """[Q] of c + w . phi."""
    covariance: FloatArray
    """[Q] of c + w . phi with d."""
    level: float
    """Mean of d."""
    level_variance: float
    """Variance of d."""

    def with_records(self, value_Q: FloatArray, precision_Q: FloatArray, variance_Q: FloatArray) -> Belief:
        """Mean and variance of f, both [Q], given the records' values and present precision, and Var(u)."""
        odds_Q = variance_Q * precision_Q
        k_Q, rest_Q = odds_Q / (1 + odds_Q), 1 / (1 + odds_Q)
        mean_Q = rest_Q * self.mean + self.level + k_Q * value_Q
        common_Q = rest_Q**2 * self.variance + 2 * rest_Q * self.covariance + self.level_variance
        return mean_Q, common_Q + variance_Q * rest_Q


class Hierarchy:
    """Beliefs about the latent values of prompts. ``features`` [H, Q, M] come from the landmarks, None without."""

    def __init__(self, settings: Settings, rank: int) -> None:
        """A model without observations; ``rank`` is the number of landmarks, 0 without embeddings."""
        self.settings = s = settings
        self.step = 0
        self.members = members(settings, rank)
        self._records = PromptTable(4)
        bandwidths = sorted({member.bandwidth for member in self.members})
        self._information = {b: Information.start(rank if b >= 0 else 0) for b in bandwidths}
        below, above = (4, 3) if s.learn else (0, 0)
        self.prompt_variance = Candidates(*log_normal_grid(s.prompt_variance, 2.0, below, above, 0.7))
        self.unseen_variance = Candidates(*log_normal_grid(s.unseen_variance, 2.0, below, above, 0.7))
        self.prompt_drift = Candidates(*log_normal_grid(s.prompt_drift, 4.0, below, below, 1.5))
        self.level_drift = Candidates(*log_normal_grid(s.level_drift, 10.0, below and 1, above, 2.5))
        scales_J = np.array([max(m.scale, s.scale) for m in self.members])
        self.member = Candidates(np.arange(float(len(scales_J))), -0.5 * np.log(scales_J / s.scale) ** 2)
        self._posteriors: dict[int, tuple[FloatArray, FloatArray]] = {}

    def belief(self, ids: tuple[PromptId, ...], features: FloatArray | None) -> Belief:
        """Mean and variance of f for each of ``ids``, both [Q]."""
        return self._common(self.member.best, len(ids), features).with_records(*self._recorded(ids))

    def learn(self, ids: tuple[PromptId, ...], features: FloatArray | None, score: LogLikelihood) -> None:
        """Give every candidate hyper-parameter the log likelihood of a step's outcomes; before :meth:`absorb`."""
        if not self.settings.learn:
            return
        value_B, now_B, variance_B = self._recorded(ids)
        record_B4 = self._records.gather(ids)
        seen_B = record_B4[:, PRECISION] > 0
        commons = [self._common(j, len(ids), features) for j in range(len(self.members))]
        common = commons[self.member.best]

        def with_variance(chosen_B: npt.NDArray[np.bool_], value: float) -> Belief:
            return common.with_records(value_B, now_B, np.where(chosen_B, value, variance_B))

        def with_drift(drift: float) -> Belief:
            return common.with_records(value_B, _precision_now(record_B4, self.step, drift), variance_B)

        beliefs = {
            self.unseen_variance: [with_variance(~seen_B, v) for v in self.unseen_variance.values],
            self.prompt_variance: [with_variance(seen_B, v) for v in self.prompt_variance.values],
            self.prompt_drift: [with_drift(d) for d in self.prompt_drift.values],
            self.member: [each.with_records(value_B, now_B, variance_B) for each in commons],
        }
        totals = _total_scores([belief for some in beliefs.values() for belief in some], score)
        for candidates, part in zip(beliefs, _split(totals, [len(some) for some in beliefs.values()]), strict=True):
            candidates.observe(part)

    def prior(self, ids: tuple[PromptId, ...], features: FloatArray | None) -> BatchPrior:
        """The model of a batch, for whoever turns outcomes into sites."""
        best, (recorded_B, now_B, variance_B) = self.member.best, self._recorded(ids)
        odds_B = variance_B * now_B
        rest_B = 1 / (1 + odds_B)
        return BatchPrior(
            _rows_beside_records(rest_B, features, self.members[best].bandwidth),
            odds_B * rest_B * recorded_B,
            variance_B * rest_B,
            self._posterior(best)[1],
            self._total_precision(best),
        )

    def absorb(
        self, ids: tuple[PromptId, ...], features: FloatArray | None, value_B: FloatArray, precision_B: FloatArray
    ) -> None:
        """Learn the step's sites ``N(value; f, 1 / precision)``, one per prompt, then let a step pass."""
        prior = self.prior(ids, features)
        variance_B = prior.variance + 1 / precision_B
        if self.step:  # the prior holds the drift since the last step; at the first, d is 0 by definition
            further_J = self.level_drift.values - self.level_drift.mean
            self.level_drift.observe(drift_evidence(prior, value_B, variance_B, further_J))
        rest_B = prior.rows[:, 0]  # the same for every bandwidth
        for bandwidth, information in self._information.items():
            rows_BF = _rows_beside_records(rest_B, features, bandwidth)
            information.absorb(rows_BF, value_B - prior.offset, variance_B)
        self._posteriors.clear()
        self._record(ids, value_B, precision_B)
        for information in self._information.values():
            information.pass_time(float(np.exp(-1 / self.settings.memory)), self.level_drift.mean)
        self._posteriors.clear()
        self.step += 1

    KEYS = ("step", "ids", "records", "evidence", "precision", "shift")

    def state(self) -> State:
        """Entries of a state. Information about all bandwidths and evidence for all candidates, each as one vector."""
        return {
            "step": self.step,
            **self._records.state("records"),
            "evidence": np.concatenate([c.evidence for c in self._candidates()]),
            "precision": np.concatenate([i.precision.ravel() for i in self._information.values()]),
            "shift": np.concatenate([i.shift for i in self._information.values()]),
        }

    def restore(self, state: State) -> None:
        """Take over the entries of a :meth:`state` of the same settings and rank; StateError where they do not fit."""
        expected, step = self.state(), state["step"]
        from_state(lambda: check_setting("step", step, type(step) is int and step >= 0, "a whole number >= 0"))
        records = PromptTable.from_state(state, "records", 4)
        precision_V, step_V = records.rows[:, PRECISION], records.rows[:, STEP]
        good = (precision_V > 0).all() and (step_V >= 0).all() and (step_V < max(step, 1)).all()
        from_state(lambda: check_setting("records", "records", bool(good), "positive precisions, visits in the past"))
        vectors = {key: array_from_state(state, key, expected[key].shape) for key in ("evidence", "precision", "shift")}
        self.step, self._records = step, records
        candidates, known = self._candidates(), list(self._information.values())
        parts = _split(vectors["evidence"], [len(each.values) for each in candidates])
        for each, part in zip(candidates, parts, strict=True):
            each.evidence = part
        sizes = [len(information.shift) for information in known]
        shifts, squares = _split(vectors["shift"], sizes), _split(vectors["precision"], [size**2 for size in sizes])
        for information, shift_F, square in zip(known, shifts, squares, strict=True):
            information.shift, information.precision = shift_F, square.reshape(len(shift_F), -1)
        self._posteriors.clear()
        from_state(lambda: [self._posterior(j) for j in range(len(self.members))])  # fails if one has no inverse

    def _candidates(self) -> tuple[Candidates, ...]:
        return self.prompt_variance, self.unseen_variance, self.prompt_drift, self.level_drift, self.member

    def _recorded(self, ids: tuple[PromptId, ...]) -> tuple[FloatArray, FloatArray, FloatArray]:
        """What is recorded of Q prompts beside the level, its precision today, and the variance of u; all [Q]."""
        record_Q4 = self._records.gather(ids)
        now_Q = _precision_now(record_Q4, self.step, self.prompt_drift.mean)
        variance_Q = np.where(record_Q4[:, PRECISION] > 0, self.prompt_variance.mean, self.unseen_variance.mean)
        return record_Q4[:, VALUE] - record_Q4[:, LEVEL], now_Q, variance_Q

    def _record(self, ids: tuple[PromptId, ...], value_B: FloatArray, precision_B: FloatArray) -> None:
        level = float(self._posterior(self.member.best)[1][1])
        recorded_B, now_B, _ = self._recorded(ids)
        new_B4 = np.empty((len(ids), 4))
        new_B4[:, PRECISION] = total_B = now_B + precision_B
        new_B4[:, VALUE] = (now_B * (recorded_B + level) + precision_B * value_B) / total_B
        new_B4[:, LEVEL], new_B4[:, STEP] = level, self.step
        self._records.set(ids, new_B4)

    def _common(self, j: int, count: int, features: FloatArray | None) -> Common:
        factor_FF, mean_F = self._posterior(j)
        rows_QF = _rows(count, features, self.members[j].bandwidth)
        level_F1 = np.eye(len(mean_F))[:, 1:2]
        both = solve_triangular(factor_FF, np.hstack([rows_QF.T, level_F1]), lower=True, check_finite=False)
        whitened_FQ, level_F = both[:, :-1], both[:, -1]
        variance_Q, covariance_Q = (whitened_FQ**2).sum(axis=0), level_F @ whitened_FQ
        return Common(rows_QF @ mean_F, variance_Q, covariance_Q, float(mean_F[1]), float(level_F @ level_F))

    def _posterior(self, j: int) -> tuple[FloatArray, FloatArray]:
        """Cholesky factor of the precision, and mean, of (c, d, w) under member j."""
        if j not in self._posteriors:
            factor_FF = cholesky(self._total_precision(j), lower=True, check_finite=False)
            shift_F = self._information[self.members[j].bandwidth].shift.copy()
            shift_F[0] += self.settings.prior_mean / self.settings.prior_variance
            self._posteriors[j] = factor_FF, cho_solve((factor_FF, True), shift_F, check_finite=False)
        return self._posteriors[j]

    def _total_precision(self, j: int) -> FloatArray:
        member = self.members[j]
        total_FF = self._information[member.bandwidth].precision.copy()
        total_FF[0, 0] += 1 / self.settings.prior_variance
        weights = np.arange(2, len(total_FF))
        total_FF[weights, weights] += 1 / member.scale**2 if len(weights) else 0.0
        return total_FF


def _precision_now(record_Q4: FloatArray, step: int, drift: float) -> FloatArray:
    """[Q] precision of records at ``step``, where a prompt's own effect drifts by this variance a step."""
    precision_Q, age_Q = record_Q4[:, PRECISION], step - record_Q4[:, STEP]
    return np.asarray(precision_Q / (1 + precision_Q * drift * age_Q))


def _total_scores(beliefs: Sequence[Belief], score: LogLikelihood) -> FloatArray:
    """[C] the batch's log likelihood under each of C beliefs; several at once, as few as fit into the cache."""
    size = max(1, SCORED_AT_ONCE // len(beliefs[0][0]))
    parts = [beliefs[first : first + size] for first in range(0, len(beliefs), size)]
    return np.concatenate([score(*map(np.stack, zip(*part, strict=True))).sum(axis=1) for part in parts])


def _split(vector: FloatArray, sizes: list[int]) -> list[FloatArray]:
    return [part.copy() for part in np.split(vector, np.cumsum(sizes)[:-1])]


def _rows(count: int, features: FloatArray | None, bandwidth: int) -> FloatArray:
    """[Q, F] coefficients of c, d (0 here) and w."""
    level_Q2 = np.tile([1.0, 0.0], (count, 1))
    return level_Q2 if bandwidth < 0 or features is None else np.hstack([level_Q2, features[bandwidth]])


def _rows_beside_records(rest_B: FloatArray, features: FloatArray | None, bandwidth: int) -> FloatArray:
    """[B, F] coefficients of c, d and w where records leave ``rest`` = 1 - k of the common opinion."""
    rows_BF = _rows(len(rest_B), features, bandwidth) * rest_B[:, None]
    rows_BF[:, 1] = 1.0
    return rows_BF
