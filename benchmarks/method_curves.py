"""Effective weights in closed form, for the figure of ``methods.py`` and for ``tests/planning``.

Each takes a measurement and returns, for its success probabilities [P], the weight of a prompt relative to the gradient
of its success probability; 1 for uniform RLOO. Rewards are 0 and 1, prompts are weighted alike; the estimator is RLOO,
or the advantages that a selector brings.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
from scipy.stats import binom

from allotment.methods.objectives.krpo import KRPO
from allotment.methods.planners.reinforce_ada import Baseline, balanced_advantages, balanced_counts
from allotment.types import FloatArray
from theory.toy import MeasuredWeights

Curve = Callable[[MeasuredWeights], FloatArray]


def kept(measured: MeasuredWeights) -> FloatArray:
    """The objective is kept: 1."""
    return np.ones_like(measured.probabilities_P)


def as_often_as_drawn(measured: MeasuredWeights) -> FloatArray:
    """A prompt counts by how often it is drawn, with equal rollouts each time: in proportion to its rollouts.

    The factor is fitted: what is trained on of them is averaged over the groups that are kept, few or many.
    """
    return measured.generated_P * (measured.weights_P.sum() / measured.generated_P.sum())


def subset(share_kept: Callable[[FloatArray, int, int], FloatArray], n: int, m: int) -> Curve:
    """RLOO on m of n rollouts: ``E[f (1 - f)] m / (m - 1) / (p (1 - p))``, f the successes' share of the m.

    ``share_kept``: f from the successes among n, [n + 1].
    """

    def curve(measured: MeasuredWeights) -> FloatArray:
        p_P = measured.probabilities_P
        f_K = share_kept(np.arange(n + 1.0), n, m)
        chances_PK = binom.pmf(np.arange(n + 1), n, p_P[:, None])
        return np.asarray(chances_PK @ (f_K * (1 - f_K)) * m / (m - 1) / (p_P * (1 - p_P)))

    return curve


def max_variance_share(successes_K: FloatArray, n: int, m: int) -> FloatArray:
    """PODS: half of the m, as far as there are enough of both."""
    return np.clip(np.floor(m / 2), m - (n - successes_K), successes_K) / m


def max_reward_share(successes_K: FloatArray, n: int, m: int) -> FloatArray:
    """All successes that fit."""
    return np.minimum(successes_K, m) / m


def pool_law(p: float, per_round: int, rounds: int, positives: int, negatives: int) -> dict[tuple[int, int], float]:
    """Chance of each (wrong, correct) pool when a prompt is left alone once it has enough of both."""
    active, finished = {(0, 0): 1.0}, {}
    chances_K = binom.pmf(np.arange(per_round + 1), per_round, p)
    for _ in range(rounds):
        pools: dict[tuple[int, int], float] = {}
        for ((wrong, right), chance), (k, step) in product(active.items(), enumerate(chances_K)):
            pool = (wrong + per_round - k, right + k)
            pools[pool] = pools.get(pool, 0.0) + chance * float(step)
        is_done = {pool: pool[0] >= negatives and pool[1] >= positives for pool in pools}
        finished.update({pool: finished.get(pool, 0.0) + c for pool, c in pools.items() if is_done[pool]})
        active = {pool: chance for pool, chance in pools.items() if not is_done[pool]}
    return {pool: finished.get(pool, 0.0) + active.get(pool, 0.0) for pool in finished | active}


def reinforce_ada(baseline: Baseline = "pool", n: int = 4, per_round: int = 8, rounds: int = 4) -> Curve:
    """Balance exit, exactly: the expectation over every pool in which sampling can end."""

    def curve(measured: MeasuredWeights) -> FloatArray:
        weights = []
        for p in measured.probabilities_P:
            law = pool_law(float(p), per_round, rounds, n // 2, n - n // 2)
            counts_Q2, chances_Q = np.array(list(law)), np.array(list(law.values()))
            kept_Q2 = balanced_counts(counts_Q2, n)
            step_Q2 = kept_Q2 / kept_Q2.sum(1, keepdims=True) * balanced_advantages(counts_Q2, kept_Q2, baseline)
            weights.append(chances_Q @ (step_Q2 @ [-1 / (1 - p), 1 / p]))
        return np.array(weights)

    return curve


def pilot_commit(pilot: int, n: int, band: tuple[float, float] = (0.25, 0.75)) -> Curve:
    """``E[1{k/m in band} K (n - K)] / (n (n - 1) p (1 - p))``, k successes of m in the pilot, K of n in all.

    The factor is fitted: the loss averages over those that are kept.
    """

    def curve(measured: MeasuredWeights) -> FloatArray:
        k_K, rest_R = np.arange(pilot + 1)[:, None], np.arange(n - pilot + 1)
        is_kept_K1 = (k_K >= band[0] * pilot) & (k_K <= band[1] * pilot)
        products_KR = is_kept_K1 * (k_K + rest_R) * (n - k_K - rest_R) / (n * (n - 1))
        laws = [(binom.pmf(k_K[:, 0], pilot, p), binom.pmf(rest_R, n - pilot, p)) for p in measured.probabilities_P]
        p_P = measured.probabilities_P
        weights_P = np.array([early @ products_KR @ late for early, late in laws]) / (p_P * (1 - p_P))
        return np.asarray(weights_P * (measured.weights_P.sum() / weights_P.sum()))

    return curve


def kalman(measured: MeasuredWeights) -> FloatArray:
    """KRPO: what a prompt with its mean number of rollouts weighs, 1 for eight; between whole n, interpolated."""
    rule = KRPO()
    counts_K = np.arange(1, int(measured.generated_P.max()) + 2)
    weights_K = [rule.weight(int(n)) / rule.weight(8) for n in counts_K]
    return np.asarray(np.interp(measured.generated_P, counts_K, weights_K), dtype=np.float64)


def root_weighting(epsilon: float = 0.01) -> Curve:
    """Reinforce-Ada by estimate: ``E[k (n - k) / (n^2 sqrt(k/n + epsilon))] / (p (1 - p))`` times n over the mean n.

    Between whole n, interpolated: n is the mean over a run.
    """

    def factor(p: float, n: int) -> float:
        k = np.arange(n + 1)
        return float(binom.pmf(k, n, p) @ (k * (n - k) / n**2 / np.sqrt(k / n + epsilon)) / (p * (1 - p)))

    def curve(measured: MeasuredWeights) -> FloatArray:
        p_P, n_P = measured.probabilities_P, measured.generated_P
        low_P, part_P = np.floor(n_P).astype(int), n_P % 1
        cells = zip(p_P, low_P, part_P, strict=True)
        mean_P = np.array([(1 - part) * factor(p, n) + part * factor(p, n + 1) for p, n, part in cells])
        return n_P / n_P.mean() * mean_P

    return curve
