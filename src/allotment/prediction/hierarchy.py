"""The recursion behind the hierarchical predictor: a linear-Gaussian model of one latent value per prompt.

    f_q(t) = c + d(t) + w(t) . phi(x_q) + u_q(t)

c a constant level and d its drift, a random walk from 0; w the weights of a low-rank Gaussian process on the prompts'
embeddings (:class:`~allotment.prediction.landmarks.Landmarks`), forgotten slowly; u_q the prompt's own effect, a random
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

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from allotment.prediction.binomial import BatchPrior, cholesky, drift_evidence, solved, squared_norms, whitened
from allotment.prediction.landmarks import LEVEL_ONLY, Features
from allotment.prediction.settings import Settings, log_normal_grid, members
from allotment.prompts.ids import PromptTable
from allotment.types import FloatArray, IntArray, PromptId

EVIDENCE_FORGETTING = 0.995
"""What is left of a candidate's evidence after a step: hyper-parameters follow the last few hundred steps."""
TIE = 1e-6
"""Log likelihood ratio below which two candidates are equal."""
STARTING_PRECISION = 1e8
"""Of the drift d at step 0, where it is 0 by definition."""
SCORED = 128
"""Most prompts of a step by which hyper-parameters are learnt; more would say little, and cost most of a step."""
ALL_UNTIL, IN_TURN = 16, 5
"""For so many steps all candidate Gaussian processes are scored; then each at every fifth step, where what it gains on
the best counts five times. All of them would take half of a step."""
GOLDEN_RATIO = 0.6180339887498949
VALUE, PRECISION, LEVEL, STEP = range(4)
"""Columns of a prompt's record: its likelihood, the level and the step at the last visit."""
Belief = tuple[FloatArray, FloatArray]
"""Mean and variance of f, both [B]."""
Posterior = tuple[FloatArray, FloatArray, FloatArray]
"""Of (c, d, w): Cholesky factor of the precision [F, F], mean [F], and factor^-1 times the unit vector of d [F]."""
Sites = Callable[[BatchPrior], tuple[FloatArray, FloatArray]]
"""From the model of a batch to Gaussian likelihoods ``N(value; f, 1 / precision)``: value and precision, both [B]."""
LogLikelihood = Callable[..., FloatArray]
"""From means and variances of f and what was observed, all [N], to the log predictive likelihoods, [N]."""


class Candidates:
    """Values of one hyper-parameter, each with a log-normal prior and the predictive log likelihood it has earned.

    What was earned fades by ``forgetting`` at every step, so that a hyper-parameter can change during training; the
    prior does not.
    """

    def __init__(self, values_J: FloatArray, log_prior_J: FloatArray, forgetting: float = EVIDENCE_FORGETTING) -> None:
        self.values = values_J
        self.log_prior = log_prior_J - log_prior_J.max()
        self.forgetting = forgetting
        self.settle(self.log_prior)

    def observe(self, log_likelihood_J: FloatArray) -> None:
        """Add the log likelihood of a step's outcomes under each candidate; all [J]."""
        evidence_J = self.log_prior + self.forgetting * (self.evidence - self.log_prior) + log_likelihood_J
        self.settle(evidence_J - evidence_J.max())

    def settle(self, evidence_J: FloatArray) -> None:
        """Take over the evidence for each candidate; the largest is 0."""
        weights_J = np.exp(evidence_J)
        self.evidence = evidence_J
        self.mean = float(weights_J @ self.values / weights_J.sum())
        """Mean of the values under their posterior weights."""

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

    def absorb(self, rows_FB: FloatArray, target_B: FloatArray, variance_B: FloatArray) -> None:
        """Learn that ``rows . (c, d, w) = target + noise`` of this variance."""
        scaled_FB = rows_FB / np.sqrt(variance_B)
        self.precision = self.precision + scaled_FB @ scaled_FB.T
        self.shift = self.shift + rows_FB @ (target_B / variance_B)

    def pass_time(self, keep: float, level_drift: float) -> None:
        """One step: forget all but ``keep``, then add ``level_drift`` to the variance of d."""
        precision_FF, shift_F = keep * self.precision, keep * self.shift
        column_F = precision_FF[:, 1].copy()
        gain = level_drift / (1 + level_drift * column_F[1])
        self.precision = precision_FF - (gain * column_F)[:, None] * column_F
        self.shift = shift_F - gain * column_F * shift_F[1]


@dataclass(frozen=True, eq=False)
class Batch:
    """Q prompts as the model sees them."""

    ids: tuple[PromptId, ...]
    record: FloatArray
    """[Q, 4] what is recorded of each; 0 where it was never visited."""
    features: Features | None
    """None without embeddings, or before the first outcome."""

    def rows(self, bandwidth: int) -> FloatArray:
        """[F, Q] coefficients of c, d (0 here) and w; only the first two for bandwidth -1."""
        if bandwidth < 0 or self.features is None:
            return LEVEL_ONLY.repeat(len(self.ids), axis=1)
        return self.features.rows(bandwidth)

    def take(self, rows_S: IntArray) -> Batch:
        """Some of the prompts."""
        features = None if self.features is None else self.features.take(rows_S)
        return Batch(tuple(self.ids[row] for row in rows_S), self.record[rows_S], features)

    def spread(self, count: int, step: int, outcomes: tuple[FloatArray, ...]) -> IntArray:
        """[S] rows of ``count`` prompts, evenly from all in order of record, embedding and outcomes; others each step.

        So neither names nor the order of the batch decide.
        """
        embedding = () if self.features is None else (self.features.place,)
        order_B = np.lexsort((*outcomes, *embedding, *self.record.T[[STEP, VALUE, PRECISION]]))
        return order_B[((np.arange(count) + step * GOLDEN_RATIO % 1) * (len(order_B) / count)).astype(np.int64)]

    @property
    def seen(self) -> npt.NDArray[np.bool_]:
        """[Q] whether a prompt has a record."""
        return np.asarray(self.record[:, PRECISION] > 0)

    def precision_at(self, step: int, drift: float | FloatArray) -> FloatArray:
        """[Q] precision of the records where own effects drift by this variance a step; [J, Q] of ``drift`` [J, 1]."""
        precision_Q, age_Q = self.record[:, PRECISION], step - self.record[:, STEP]
        return np.asarray(precision_Q / (1 + precision_Q * drift * age_Q))


class Common(NamedTuple):
    """What level and embeddings say about Q prompts, whatever their own records; or J candidates of them, in rows.

    Mean and variance of c + w . phi and its covariance with d, [Q] or [J, Q]; mean and variance of d, [1] or [J, 1].
    """

    mean: FloatArray
    variance: FloatArray
    covariance: FloatArray
    level: FloatArray
    level_variance: FloatArray

    def with_records(self, value_Q: FloatArray, precision_Q: FloatArray, variance_Q: FloatArray) -> Belief:
        """Mean and variance of f, both [Q], given the records' values and present precision, and Var(u).

        Precision and variance also [J, Q], for J candidates.
        """
        odds_Q = variance_Q * precision_Q
        rest_Q = 1 / (1 + odds_Q)
        mean_Q = rest_Q * (self.mean + odds_Q * value_Q) + self.level
        common_Q = rest_Q * (rest_Q * self.variance + 2 * self.covariance)
        return mean_Q, common_Q + self.level_variance + variance_Q * rest_Q


class Hierarchy:
    """Beliefs about the latent values of prompts."""

    def __init__(self, settings: Settings, rank: int) -> None:
        """A model without observations; ``rank`` is the number of landmarks, 0 without embeddings."""
        self.settings = s = settings
        self.step = 0
        self.members = members(settings, rank)
        self.records = PromptTable(4)
        bandwidths = sorted({member.bandwidth for member in self.members})
        self.information = {b: Information.start(rank if b >= 0 else 0) for b in bandwidths}
        below, above = (4, 3) if s.learn else (0, 0)
        self.prompt_variance = Candidates(*log_normal_grid(s.prompt_variance, 2.0, below, above, 0.7))
        self.unseen_variance = Candidates(*log_normal_grid(s.unseen_variance, 2.0, below, above, 0.7))
        self.prompt_drift = Candidates(*log_normal_grid(s.prompt_drift, 4.0, below, below, 1.5))
        self.level_drift = Candidates(*log_normal_grid(s.level_drift, 10.0, below and 1, above, 2.5))
        scales_J = np.array([max(m.scale, s.scale) for m in self.members])
        self.member = Candidates(np.arange(float(len(scales_J))), -0.5 * np.log(scales_J / s.scale) ** 2)
        self.posteriors: dict[int, Posterior] = {}

    def batch(self, ids: tuple[PromptId, ...], features: Features | None) -> Batch:
        """What the model holds of Q prompts."""
        return Batch(ids, self.records.gather(ids), features)

    def belief(self, batch: Batch) -> Belief:
        """Mean and variance of f for each prompt, both [Q]."""
        return self._common(self.member.best, batch)[0].with_records(*self._recorded(batch))

    def learn(self, batch: Batch, score: LogLikelihood, *outcomes: FloatArray) -> None:
        """Give every candidate hyper-parameter the log likelihood of a step's outcomes [B]; before :meth:`absorb`."""
        if not self.settings.learn:
            return
        if len(batch.ids) > SCORED:
            rows_S = batch.spread(SCORED, self.step, outcomes)
            batch, outcomes = batch.take(rows_S), tuple(outcome_B[rows_S] for outcome_B in outcomes)
        value_B, now_B, variance_B = self._recorded(batch)
        weight, heard = self._heard()
        commons = [self._common(j, batch)[0] for j in heard]
        common, is_seen_B = commons[0], batch.seen
        own_JB = np.where(is_seen_B, self.prompt_variance.values[:, None], self.unseen_variance.values[:, None])
        drifted_JB = batch.precision_at(self.step, self.prompt_drift.values[:, None])
        beliefs = [common.with_records(value_B, now_B, own_JB)]
        beliefs.append(common.with_records(value_B, drifted_JB, variance_B))
        if len(commons) > 1:
            each = Common(*(np.array(part).reshape(len(commons), -1) for part in zip(*commons, strict=True)))
            beliefs.append(each.with_records(value_B, now_B, variance_B))
        mean_JB, variance_JB = (np.concatenate(part) for part in zip(*beliefs, strict=True))
        told = (np.tile(outcome_B, len(mean_JB)) for outcome_B in outcomes)
        scores_JB = score(mean_JB.ravel(), variance_JB.ravel(), *told).reshape(mean_JB.shape)
        own, drift = len(own_JB), len(own_JB) + len(drifted_JB)
        self.prompt_variance.observe((scores_JB[:own] * is_seen_B).sum(axis=1))
        self.unseen_variance.observe((scores_JB[:own] * ~is_seen_B).sum(axis=1))
        self.prompt_drift.observe(scores_JB[own:drift].sum(axis=1))
        if len(commons) > 1:
            gain_J = np.zeros(len(self.members))
            gain_J[heard] = weight * (scores_JB[drift:] - scores_JB[drift]).sum(axis=1)
            self.member.observe(gain_J)

    def _heard(self) -> tuple[int, list[int]]:
        """How much their gain counts, and the members that are scored at this step, the best first."""
        best, count = self.member.best, len(self.members)
        turns = 1 if self.step < ALL_UNTIL else IN_TURN
        turn = int(self.step * math.sqrt(2) % 1 * turns)  # in step with no epoch
        return turns, [best, *(j for j in range(turn, count, turns) if j != best)]

    def absorb(self, batch: Batch, sites: Sites) -> None:
        """Learn from a step's outcomes, as the Gaussian likelihoods that ``sites`` makes of them; let a step pass."""
        recorded_B, now_B, own_B = self._recorded(batch)
        rest_B = 1 / (1 + own_B * now_B)
        prior = self._prior(batch, recorded_B, rest_B, own_B)
        value_B, precision_B = sites(prior)
        variance_B = prior.variance + 1 / precision_B
        if self.step:  # the prior holds the drift since the last step; at the first, d is 0 by definition
            further_J = self.level_drift.values - self.level_drift.mean
            self.level_drift.observe(drift_evidence(prior, value_B, variance_B, further_J))
        target_B = value_B - (1 - rest_B) * recorded_B
        for bandwidth, information in self.information.items():
            rows_FB = batch.rows(bandwidth) * rest_B
            rows_FB[1] = 1.0
            information.absorb(rows_FB, target_B, variance_B)
        self.posteriors.clear()
        level = float(self.posterior(self.member.best)[1][1])
        new_B4 = np.empty((len(batch.ids), 4))
        new_B4[:, PRECISION] = total_B = now_B + precision_B
        new_B4[:, VALUE] = (now_B * (recorded_B + level) + precision_B * value_B) / total_B
        new_B4[:, LEVEL], new_B4[:, STEP] = level, self.step
        self.records.set(batch.ids, new_B4)
        for information in self.information.values():
            information.pass_time(math.exp(-1 / self.settings.memory), self.level_drift.mean)
        self.posteriors.clear()
        self.step += 1

    def candidates(self) -> tuple[Candidates, ...]:
        """Of every hyper-parameter."""
        return self.prompt_variance, self.unseen_variance, self.prompt_drift, self.level_drift, self.member

    def _recorded(self, batch: Batch) -> tuple[FloatArray, FloatArray, FloatArray]:
        """What is recorded of Q prompts beside the level, its precision today, and the variance of u; all [Q]."""
        variance_Q = np.where(batch.seen, self.prompt_variance.mean, self.unseen_variance.mean)
        value_Q = batch.record[:, VALUE] - batch.record[:, LEVEL]
        return value_Q, batch.precision_at(self.step, self.prompt_drift.mean), variance_Q

    def _prior(self, batch: Batch, recorded_B: FloatArray, rest_B: FloatArray, own_B: FloatArray) -> BatchPrior:
        """The model of a batch, for whoever turns outcomes into sites; ``rest``: 1 - k, the share of the others."""
        common, whitened_FB = self._common(self.member.best, batch)
        root_FB = whitened_FB * rest_B + self.posterior(self.member.best)[2][:, None]
        if len(root_FB) > len(batch.ids):
            root_FB = np.asarray(np.linalg.qr(root_FB, mode="r"))  # the same inner products
        mean_B = rest_B * common.mean + (1 - rest_B) * recorded_B + common.level
        return BatchPrior(mean_B, root_FB, own_B * rest_B)

    def _common(self, j: int, batch: Batch) -> tuple[Common, FloatArray]:
        """What member j says, and [F, Q] columns whose inner products are covariances of c + w . phi."""
        factor_FF, mean_F, level_F = self.posterior(j)
        rows_FQ = batch.rows(self.members[j].bandwidth)
        columns_FQ, variance_1 = whitened(factor_FF, rows_FQ), np.array([level_F @ level_F])
        moments = mean_F @ rows_FQ, squared_norms(columns_FQ), level_F @ columns_FQ
        return Common(*moments, mean_F[1:2], variance_1), columns_FQ

    def posterior(self, j: int) -> Posterior:
        """Of (c, d, w) under member j."""
        if j not in self.posteriors:
            factor_FF = cholesky(self._total_precision(j))
            shift_F = self.information[self.members[j].bandwidth].shift.copy()
            shift_F[0] += self.settings.prior_mean / self.settings.prior_variance
            level_F1 = np.eye(len(shift_F), 1, k=-1)
            self.posteriors[j] = factor_FF, solved(factor_FF, shift_F), whitened(factor_FF, level_F1)[:, 0]
        return self.posteriors[j]

    def _total_precision(self, j: int) -> FloatArray:
        member = self.members[j]
        total_FF = self.information[member.bandwidth].precision.copy()
        total_FF[0, 0] += 1 / self.settings.prior_variance
        weights = np.arange(2, len(total_FF))
        total_FF[weights, weights] += 1 / member.scale**2 if len(weights) else 0.0
        return total_FF
