"""The recursion behind the hierarchical predictor: a linear-Gaussian model of one latent value per prompt.

    f_q(t) = c + d(t) + w(t) . phi(x_q) + u_q(t)

c a constant level and d its drift, a random walk from 0; w the weights of a low-rank Gaussian process on the prompts'
embeddings (:class:`~allotment.prediction.landmarks.Landmarks`), forgotten slowly; u_q the prompt's own effect, a random
walk around nothing. Outcomes reach the model as Gaussian likelihoods ("sites") of f_q, one per visited prompt and step.

What is stored does not grow with the number of visits: for (c, d, w) the information matrix of all sites, the u_q
integrated out; for each visited prompt its own record (:class:`~allotment.prediction.records.Records`), the product of
its sites, which loses precision with time. Given (c, d, w), a prompt with record (t, tau) has

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

from allotment.checks import check_setting
from allotment.prediction.evidence import Candidates, around
from allotment.prediction.records import Own, Records
from allotment.state import State, array_from_state, from_state
from allotment.types import FloatArray, PromptId

EVIDENCE_FORGETTING = 0.995
"""What is left of a candidate's evidence after a step: hyper-parameters follow the last few hundred steps."""
STARTING_PRECISION = 1e8
"""Of the drift d at step 0, where it is 0 by definition."""
BANDWIDTHS = np.array([0.5, 1.0, 2.0])
"""Candidate bandwidths, in units of the setting."""
Belief = tuple[FloatArray, FloatArray]
"""Mean and variance of f, both [B]."""
LogLikelihood = Callable[[FloatArray, FloatArray], FloatArray]
"""From means and variances of f, both [C, B], to the log predictive likelihoods of what was observed, [C, B]."""
SCORED_AT_ONCE = 512
"""Values of f whose likelihoods are computed at once."""


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters: where they start (``learn``) or what they are. Variances in squared units of f."""

    rank: int = 128
    """Landmarks of the low-rank Gaussian process, M."""
    memory: float = 3000.0
    """Steps after which evidence about level and weights has faded to 1/e; inf never forgets."""
    prior_mean: float = 0.0
    """Mean of the level c."""
    prior_variance: float = 1.0
    """Variance of the level c."""
    level_drift: float = 1e-5
    """Variance per step of the drift d."""
    scale: float = 2.0
    """Standard deviation of the Gaussian process on embeddings."""
    bandwidth: float = 1.0
    """Its kernel bandwidth, in median distances between landmarks."""
    unseen_variance: float = 4.0
    """Variance s of the own effect of a prompt without a record: how far the common opinion is off."""
    prompt_variance: float = 8.0
    """Variance s for prompts with a record: how weakly a record is pulled to the common opinion. In a normal world the
    two are one; real difficulties have heavier tails, and a broader prior predicts second visits better."""
    prompt_drift: float = 1e-3
    """Variance per step of the random walk of a prompt's own effect."""
    learn: bool = True
    """Whether all but the first four are learnt online, by the likelihood that each step's outcomes had before."""


@dataclass(frozen=True)
class Member:
    """One candidate Gaussian process: index of the bandwidth (-1: no features, scale 0) and scale."""

    bandwidth: int
    scale: float


@dataclass(eq=False)
class Information:
    """What sites said about (c, d, w): a Gaussian likelihood in information form.

    The priors of c and w are left out: they are never forgotten.
    """

    precision: FloatArray
    """[F, F], F = 2 + M."""
    shift: FloatArray
    """[F] precision times mean."""

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

    def with_own(self, own: Own, precision_Q: FloatArray, variance_Q: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and variance of f, both [Q], given the records with their present precision, and Var(u)."""
        odds_Q = variance_Q * precision_Q
        k_Q, rest_Q = odds_Q / (1 + odds_Q), 1 / (1 + odds_Q)
        mean_Q = rest_Q * self.mean + self.level + k_Q * own.value
        common_Q = rest_Q**2 * self.variance + 2 * rest_Q * self.covariance + self.level_variance
        return mean_Q, common_Q + variance_Q * rest_Q


@dataclass(frozen=True, eq=False)
class BatchPrior:
    """The model of a batch before its outcomes: ``f = rows . z + offset + u``, z ~ N(mean, precision^-1)."""

    rows: FloatArray
    """[B, F]."""
    offset: FloatArray
    """[B]."""
    variance: FloatArray
    """[B] of the independent u, > 0."""
    mean: FloatArray
    """[F] of z = (c, d, w)."""
    precision: FloatArray
    """[F, F] of z."""


class Hierarchy:
    """Beliefs about the latent values of prompts. ``features`` [H, Q, M] come from the landmarks, None without."""

    def __init__(self, settings: Settings, rank: int) -> None:
        """A model without observations; ``rank`` is the number of landmarks, 0 without embeddings."""
        self.settings = settings
        self.step = 0
        self.records = Records()
        self.members = _members(settings, rank)
        self._information = {b: _start(rank if b >= 0 else 0) for b in sorted({m.bandwidth for m in self.members})}
        s, forgetting = settings, EVIDENCE_FORGETTING
        below, above = (4, 3) if s.learn else (0, 0)
        self.prompt_variance = Candidates(*around(s.prompt_variance, 2.0, below, above, 0.7), forgetting)
        self.unseen_variance = Candidates(*around(s.unseen_variance, 2.0, below, above, 0.7), forgetting)
        self.prompt_drift = Candidates(*around(s.prompt_drift, 4.0, below, below, 1.5), forgetting)
        self.level_drift = Candidates(*around(s.level_drift, 10.0, below and 1, above, 2.5), forgetting)
        scales_J = np.array([max(m.scale, s.scale) for m in self.members])
        self.member = Candidates(np.arange(float(len(scales_J))), -0.5 * np.log(scales_J / s.scale) ** 2, forgetting)
        self._posteriors: dict[int, tuple[FloatArray, FloatArray]] = {}

    def belief(self, ids: tuple[PromptId, ...], features: FloatArray | None) -> tuple[FloatArray, FloatArray]:
        """Mean and variance of f for each of ``ids``, both [Q]."""
        own = self.records.of(ids, self.step)
        common = self._common(self.member.best, len(ids), features)
        return common.with_own(own, own.now(self.prompt_drift.mean), self._variance(own))

    def learn(self, ids: tuple[PromptId, ...], features: FloatArray | None, score: LogLikelihood) -> None:
        """Give every candidate hyper-parameter the log likelihood of a step's outcomes; before :meth:`absorb`."""
        if not self.settings.learn:
            return
        own = self.records.of(ids, self.step)
        seen_B = own.precision > 0
        now_B, variance_B = own.now(self.prompt_drift.mean), self._variance(own)
        commons = [self._common(j, len(ids), features) for j in range(len(self.members))]
        common = commons[self.member.best]

        def with_variance(chosen_B: npt.NDArray[np.bool_], value: float) -> Belief:
            return common.with_own(own, now_B, np.where(chosen_B, value, variance_B))

        unseen = [with_variance(~seen_B, v) for v in self.unseen_variance.values]
        seen = [with_variance(seen_B, v) for v in self.prompt_variance.values]
        drifts = [common.with_own(own, own.now(d), variance_B) for d in self.prompt_drift.values]
        members = [each.with_own(own, now_B, variance_B) for each in commons]
        totals = _total_scores([*unseen, *seen, *drifts, *members], score)
        learnt = (self.unseen_variance, self.prompt_variance, self.prompt_drift, self.member)
        for candidates, part in zip(learnt, _split(totals, [len(c.values) for c in learnt]), strict=True):
            candidates.observe(part)

    def prior(self, ids: tuple[PromptId, ...], features: FloatArray | None) -> BatchPrior:
        """The model of a batch, for whoever turns outcomes into sites."""
        best = self.member.best
        own = self.records.of(ids, self.step)
        variance_B = self._variance(own)
        odds_B = variance_B * own.now(self.prompt_drift.mean)
        rest_B = 1 / (1 + odds_B)
        return BatchPrior(
            _rows_beside_records(rest_B, features, self.members[best].bandwidth),
            odds_B * rest_B * own.value,
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
            self.level_drift.observe(_drift_evidence(prior, value_B, variance_B, further_J))
        rest_B = prior.rows[:, 0]  # the same for every bandwidth
        for bandwidth, information in self._information.items():
            rows_BF = _rows_beside_records(rest_B, features, bandwidth)
            information.absorb(rows_BF, value_B - prior.offset, variance_B)
        self._posteriors.clear()
        self._record(ids, value_B, precision_B)
        keep, level_drift = float(np.exp(-1 / self.settings.memory)), self.level_drift.mean
        for information in self._information.values():
            information.pass_time(keep, level_drift)
        self._posteriors.clear()
        self.step += 1

    KEYS = ("step", "ids", "records", "evidence", "precision", "shift")

    def state(self) -> State:
        """Entries of a state. Information about all bandwidths and evidence for all candidates, each as one vector."""
        return {
            "step": self.step,
            **self.records.state(),
            "evidence": np.concatenate([c.evidence for c in self._candidates()]),
            "precision": np.concatenate([i.precision.ravel() for i in self._information.values()]),
            "shift": np.concatenate([i.shift for i in self._information.values()]),
        }

    def restore(self, state: State) -> None:
        """Take over the entries of a :meth:`state` of the same settings and rank.

        Raises:
            StateError: values that do not fit.
        """
        own = self.state()
        step = state["step"]
        from_state(lambda: check_setting("step", step, type(step) is int and step >= 0, "a whole number >= 0"))
        records = Records.from_state(state, step)
        vectors = {key: array_from_state(state, key, own[key].shape) for key in ("evidence", "precision", "shift")}
        self.step, self.records = step, records
        sizes = [len(c.evidence) for c in self._candidates()]
        for candidates, part in zip(self._candidates(), _split(vectors["evidence"], sizes), strict=True):
            candidates.evidence = part
        sizes = [len(i.shift) for i in self._information.values()]
        squares = _split(vectors["precision"], [size**2 for size in sizes])
        for information, shift, square in zip(
            self._information.values(), _split(vectors["shift"], sizes), squares, strict=True
        ):
            information.shift, information.precision = shift, square.reshape(len(shift), -1)
        self._posteriors.clear()
        from_state(lambda: [self._posterior(j) for j in range(len(self.members))])  # fails if one has no inverse

    def _candidates(self) -> tuple[Candidates, ...]:
        return self.prompt_variance, self.unseen_variance, self.prompt_drift, self.level_drift, self.member

    def _variance(self, own: Own) -> FloatArray:
        """[Q] variance of the prompts' own effects."""
        return np.where(own.precision > 0, self.prompt_variance.mean, self.unseen_variance.mean)

    def _record(self, ids: tuple[PromptId, ...], value_B: FloatArray, precision_B: FloatArray) -> None:
        level = float(self._posterior(self.member.best)[1][1])
        own = self.records.of(ids, self.step)
        now_B = own.now(self.prompt_drift.mean)
        total_B = now_B + precision_B
        merged_B = (now_B * (own.value + level) + precision_B * value_B) / total_B
        self.records.write(ids, merged_B, total_B, level, self.step)

    def _common(self, j: int, count: int, features: FloatArray | None) -> Common:
        factor_FF, mean_F = self._posterior(j)
        rows_QF = _rows(count, features, self.members[j].bandwidth)
        level_F1 = np.eye(len(mean_F))[:, 1:2]
        both = solve_triangular(factor_FF, np.hstack([rows_QF.T, level_F1]), lower=True, check_finite=False)
        whitened_FQ, level_F = both[:, :-1], both[:, -1]
        return Common(
            rows_QF @ mean_F,
            (whitened_FQ**2).sum(axis=0),
            level_F @ whitened_FQ,
            float(mean_F[1]),
            float(level_F @ level_F),
        )

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


def _total_scores(beliefs: Sequence[Belief], score: LogLikelihood) -> FloatArray:
    """[C] the batch's log likelihood under each of C beliefs; several at once, as few as fit into the cache."""
    size = max(1, SCORED_AT_ONCE // len(beliefs[0][0]))
    parts = [beliefs[first : first + size] for first in range(0, len(beliefs), size)]
    return np.concatenate([score(*map(np.stack, zip(*part, strict=True))).sum(axis=1) for part in parts])


def _split(vector: FloatArray, sizes: list[int]) -> list[FloatArray]:
    return [part.copy() for part in np.split(vector, np.cumsum(sizes)[:-1])]


def _members(settings: Settings, rank: int) -> list[Member]:
    if not rank:
        return [Member(-1, 0.0)]
    if not settings.learn:
        return [Member(0, settings.scale)]
    scales = settings.scale * np.array([0.5, 1.0, 2.0])
    return [Member(-1, 0.0), *(Member(b, float(s)) for b in range(len(BANDWIDTHS)) for s in scales)]


def bandwidth_factors(settings: Settings) -> FloatArray:
    """[H] candidate bandwidths in median distances."""
    return settings.bandwidth * (BANDWIDTHS if settings.learn else np.ones(1))


def _start(rank: int) -> Information:
    precision_FF = np.zeros((2 + rank, 2 + rank))
    precision_FF[1, 1] = STARTING_PRECISION
    return Information(precision_FF, np.zeros(2 + rank))


def _rows(count: int, features: FloatArray | None, bandwidth: int) -> FloatArray:
    """[Q, F] coefficients of c, d (0 here) and w."""
    level_Q2 = np.tile([1.0, 0.0], (count, 1))
    return level_Q2 if bandwidth < 0 or features is None else np.hstack([level_Q2, features[bandwidth]])


def _rows_beside_records(rest_B: FloatArray, features: FloatArray | None, bandwidth: int) -> FloatArray:
    """[B, F] coefficients of c, d and w where records leave ``rest`` = 1 - k of the common opinion."""
    rows_BF = _rows(len(rest_B), features, bandwidth) * rest_B[:, None]
    rows_BF[:, 1] = 1.0
    return rows_BF


def _drift_evidence(prior: BatchPrior, value_B: FloatArray, variance_B: FloatArray, drifts_J: FloatArray) -> FloatArray:
    """[J] log likelihood ratio of the batch if the variance of d were greater by ``drift``, against what it is.

    A move of d shifts all prompts alike, so it shows in the batch as a whole: matrix determinant and inversion lemmas.
    """
    rows_BF, ones_B = prior.rows / variance_B[:, None], 1 / variance_B
    factor = cholesky(prior.precision + prior.rows.T @ rows_BF, lower=True), True
    residual_B = value_B - prior.offset - prior.rows @ prior.mean
    explained_F = cho_solve(factor, rows_BF.T @ np.ones(len(value_B)))
    alpha = float(ones_B.sum() - explained_F @ (prior.rows.T @ ones_B))
    beta = float(residual_B @ ones_B - explained_F @ (rows_BF.T @ residual_B))
    ratio_J = np.maximum(1 + drifts_J * alpha, 1e-12)  # of the batch's covariance determinants
    return np.asarray(0.5 * (drifts_J * beta**2 / ratio_J - np.log(ratio_J)))
