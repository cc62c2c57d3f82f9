"""Preference learning where everything is known: rounds of DPO and of reward distillation on a bandit.

A reconstruction of the coverage paper's algorithms (arXiv 2601.08421), whose full text was not to be had. Labels of a
round are equally many for all learners, and the reference never moves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from allotment.errors import InvalidInputError
from allotment.methods.objectives.optimal_design import coverage_number, preferential_design
from allotment.types import FloatArray, IntArray
from theory.preference_bandit import PreferenceBandit, fit_distillation, fit_dpo


@dataclass(frozen=True, eq=False)
class Rounds:
    """What a learner reached; arrays over its rounds."""

    total_variation_T: FloatArray
    """[T] distance of the policy after each round to the target, in [0, 1]."""
    coverage_T: FloatArray
    """[T] coverage number of what each round sampled, against the target."""
    theta_D: FloatArray
    """[D] after the last round."""


def on_policy_dpo(bandit: PreferenceBandit, *, rounds: int = 6, labels: int = 400, seed: int = 0) -> Rounds:
    """Each round labels fresh pairs of the newest policy and fits DPO to them alone."""
    return _run(bandit, rounds, labels, seed, _on_policy_pairs, cumulative=False)


def offline_dpo(bandit: PreferenceBandit, *, rounds: int = 6, labels: int = 400, seed: int = 0) -> Rounds:
    """Each round labels further pairs of the reference and fits DPO to all labels so far.

    The first round is that of :func:`on_policy_dpo` with the same seed.
    """
    return _run(bandit, rounds, labels, seed, _reference_pairs, cumulative=True)


def hybrid_dpo(bandit: PreferenceBandit, *, rounds: int = 2, labels: int = 400, seed: int = 0) -> Rounds:
    """Half of a round's pairs are of the newest policy, half from a preferential design at its parameter.

    Candidates of the design are all pairs of actions. The mixture within a batch is a reconstruction.
    """
    return _run(bandit, rounds, labels, seed, _mixed_pairs, cumulative=False)


def distil_rewards(bandit: PreferenceBandit, *, rounds: int = 6, labels: int = 400, seed: int = 0) -> Rounds:
    """Each round fits the rewards, free of noise, of fresh pairs of the newest policy.

    Without noise one round is enough as soon as its pairs span the features.
    """
    return _run(bandit, rounds, labels, seed, _on_policy_pairs, cumulative=False, distil=True)


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Pairs to be labelled, and what they are drawn from."""

    pairs_P2: IntArray
    """[P, 2] actions."""
    covariance_DD: FloatArray
    """[D, D] half the mean of ``z z^T`` over the distribution of pairs: the features' covariance, for pairs of one
    policy."""


_Sampler = Callable[[PreferenceBandit, FloatArray, int, np.random.Generator], _Drawn]
"""Bandit, parameter [D], number of pairs, random numbers."""


def _run(
    bandit: PreferenceBandit,
    rounds: int,
    labels: int,
    seed: int,
    sampler: _Sampler,
    *,
    cumulative: bool,
    distil: bool = False,
) -> Rounds:
    if rounds < 1 or labels < 2:
        raise InvalidInputError(
            "nothing can be learnt of this",
            got=f"rounds={rounds}, labels={labels}",
            allowed="rounds >= 1, labels >= 2",
            fix="use the defaults",
        )
    target_A = bandit.target
    theta_D = np.zeros(bandit.features_AD.shape[1])
    differences, answers, distances, coverages = [], [], [], []
    for t in range(rounds):
        rng = np.random.default_rng([seed, t])
        drawn = sampler(bandit, theta_D, labels, rng)
        z_PD = bandit.differences(drawn.pairs_P2)
        coverages.append(coverage_number(drawn.covariance_DD, bandit.covariance(target_A)))
        reward_gaps_P = bandit.beta * z_PD @ bandit.theta_D
        differences.append(z_PD)
        answers.append(reward_gaps_P if distil else bandit.labels(z_PD, rng))
        given = slice(None) if cumulative else slice(-1, None)
        fit = fit_distillation if distil else fit_dpo
        theta_D = fit(np.concatenate(differences[given]), np.concatenate(answers[given]), beta=bandit.beta)
        distances.append(0.5 * np.abs(bandit.policy(theta_D) - target_A).sum())
    return Rounds(np.array(distances), np.array(coverages), theta_D)


def _on_policy_pairs(bandit: PreferenceBandit, theta_D: FloatArray, size: int, rng: np.random.Generator) -> _Drawn:
    policy_A = bandit.policy(theta_D)
    return _Drawn(rng.choice(len(policy_A), size=(size, 2), p=policy_A), bandit.covariance(policy_A))


def _reference_pairs(bandit: PreferenceBandit, theta_D: FloatArray, size: int, rng: np.random.Generator) -> _Drawn:
    return _on_policy_pairs(bandit, np.zeros_like(theta_D), size, rng)


def _mixed_pairs(bandit: PreferenceBandit, theta_D: FloatArray, size: int, rng: np.random.Generator) -> _Drawn:
    fresh = _on_policy_pairs(bandit, theta_D, size - size // 2, rng)
    candidates_K2 = np.column_stack(np.triu_indices(len(bandit.reference_A), 1))
    z_KD = bandit.differences(candidates_K2)
    weights_K = preferential_design(z_KD, bandit.beta * z_KD @ theta_D, iterations=200, tolerance=0.05).weights_K
    designed_P2 = candidates_K2[rng.choice(len(candidates_K2), size=size // 2, p=weights_K)]
    covariance_DD = (fresh.covariance_DD + (weights_K[:, None] * z_KD).T @ z_KD / 2) / 2
    return _Drawn(np.concatenate([fresh.pairs_P2, designed_P2]), covariance_DD)
