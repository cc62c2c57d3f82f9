"""A bandit with linear softmax policies and Bradley-Terry labels, and the regressions that fit a policy to labels.

Policies are ``pi_theta(a) ~ pi_ref(a) exp(theta . phi(a))`` with a fixed reference, implicit rewards
``beta theta . phi``, labels ``P(a beats b) = sigma(beta theta* . (phi(a) - phi(b)))``. For this class DPO is logistic
regression on differences of features, and reward distillation is least squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import OptimizeResult, brentq, minimize
from scipy.special import expit, softmax

from allotment.errors import InvalidInputError
from allotment.types import FloatArray, IntArray

PENALTY = 0.4
"""Of logistic regression: times half the squared norm of ``beta theta``, beside the sum of all losses, so that it
counts less the more labels there are. Without one, labels that can be separated have no fit."""


@dataclass(frozen=True, eq=False)
class PreferenceBandit:
    """A actions with features, a reference, and the parameter that the labels come from."""

    features_AD: FloatArray
    """[A, D]"""
    reference_A: FloatArray
    """[A] probabilities > 0."""
    theta_D: FloatArray
    """[D] theta*, in units in which the policy is ``reference exp(theta . phi)``."""
    beta: float = 1.0
    """Reward of a nat of log-ratio to the reference."""

    def policy(self, theta_D: FloatArray) -> FloatArray:
        """[A] probabilities."""
        return np.asarray(softmax(np.log(self.reference_A) + self.features_AD @ theta_D), dtype=np.float64)

    @property
    def target(self) -> FloatArray:
        """[A] the policy of theta*."""
        return self.policy(self.theta_D)

    def covariance(self, policy_A: FloatArray) -> FloatArray:
        """[D, D] of the features under a policy."""
        centred_AD = self.features_AD - policy_A @ self.features_AD
        return np.asarray((policy_A[:, None] * centred_AD).T @ centred_AD, dtype=np.float64)

    def differences(self, pairs_P2: IntArray) -> FloatArray:
        """[P, D] features of the first action of each pair less those of the second."""
        return np.asarray(self.features_AD[pairs_P2[:, 0]] - self.features_AD[pairs_P2[:, 1]], dtype=np.float64)

    def labels(self, differences_PD: FloatArray, rng: np.random.Generator) -> FloatArray:
        """[P] 1.0 where the first action of a pair is preferred, else 0.0."""
        chances_P = expit(self.beta * differences_PD @ self.theta_D)
        return np.asarray(rng.random(len(differences_PD)) < chances_P, dtype=np.float64)


def rare_action_bandit(
    seed: int, *, actions: int = 400, dimensions: int = 6, rare: int = 8, mass: float = 0.8
) -> PreferenceBandit:
    """A bandit whose target lies on few actions, which a uniform reference seldom draws and which alone tell much.

    The simulation of the fact sheet, with what it leaves open fixed here: common features are normal with standard
    deviation 0.05; the rare actions have 2 in the first dimension and standard normal numbers in the others; theta* is
    of norm 2 in these, of random direction, and its first entry is such that the target's mass on the rare is ``mass``.

    Raises:
        InvalidInputError: there are not more actions than rare ones, fewer than two of these or than two dimensions,
            or the mass is not between the rare actions' share of all and 1.
    """
    share = rare / max(actions, 1)
    if not (2 <= rare < actions and dimensions >= 2 and share < mass < 1):
        raise InvalidInputError(
            "no bandit with rare actions",
            got=f"{rare} rare of {actions} actions, {dimensions} dimensions, mass {mass}",
            allowed="2 <= rare < actions, at least 2 dimensions, a mass from rare / actions to 1",
            fix="use the defaults",
        )
    rng = np.random.default_rng(seed)
    features_AD = 0.05 * rng.normal(size=(actions, dimensions))
    features_AD[:rare] = np.column_stack([np.full(rare, 2.0), rng.normal(size=(rare, dimensions - 1))])
    inner_D = np.append(0.0, rng.normal(size=dimensions - 1))
    inner_D *= 2 / np.linalg.norm(inner_D)
    first_D = np.eye(dimensions)[0]

    def excess(first: float) -> float:
        return float(softmax(features_AD @ (inner_D + first * first_D))[:rare].sum() - mass)

    theta_D = inner_D + brentq(excess, -20.0, 20.0) * first_D
    return PreferenceBandit(features_AD, np.full(actions, 1 / actions), theta_D)


def dpo_loss_and_gradient(
    theta_D: FloatArray, differences_PD: FloatArray, labels_P: FloatArray, beta: float = 1.0, penalty: float = 0.0
) -> tuple[float, FloatArray]:
    """``mean -[y log sigma(m) + (1 - y) log sigma(-m)]`` with ``m = beta theta . z``, and its gradient [D].

    ``labels_P``: [P] in [0, 1]; 1 where the first of a pair is preferred. ``penalty`` adds
    ``penalty |beta theta|^2 / 2`` to the sum, before the mean.
    """
    margins_P = beta * (differences_PD @ theta_D)
    loss = np.sum(np.logaddexp(0.0, margins_P) - labels_P * margins_P) + 0.5 * penalty * beta**2 * theta_D @ theta_D
    gradient_D = beta * differences_PD.T @ (expit(margins_P) - labels_P) + penalty * beta**2 * theta_D
    return float(loss) / len(labels_P), np.asarray(gradient_D, dtype=np.float64) / len(labels_P)


def fit_dpo(
    differences_PD: npt.ArrayLike, labels_P: npt.ArrayLike, *, beta: float = 1.0, penalty: float = PENALTY
) -> FloatArray:
    """[D] the theta of least DPO loss.

    Raises:
        InvalidInputError: there is no pair, a difference is not finite, or a label is outside [0, 1].
    """
    z_PD, y_P = _checked_pairs(differences_PD, labels_P, "labels", 0.0, 1.0)
    found: OptimizeResult = minimize(
        dpo_loss_and_gradient,
        np.zeros(z_PD.shape[1]),
        args=(z_PD, y_P, beta, penalty),
        jac=True,
        method="L-BFGS-B",
        options={"gtol": 1e-9, "ftol": 1e-15, "maxiter": 2000},
    )
    return np.asarray(found.x, dtype=np.float64)


def distillation_loss(
    theta_D: FloatArray, differences_PD: FloatArray, reward_gaps_P: FloatArray, *, beta: float = 1.0
) -> float:
    """Mean squared relative reward regression: ``(beta theta . z - (r(a) - r(b)))^2``."""
    return float(np.mean((beta * (differences_PD @ theta_D) - reward_gaps_P) ** 2))


def fit_distillation(differences_PD: npt.ArrayLike, reward_gaps_P: npt.ArrayLike, *, beta: float = 1.0) -> FloatArray:
    """[D] the theta of least distillation loss, of these the shortest.

    Raises:
        InvalidInputError: there is no pair, or a number is not finite.
    """
    z_PD, gaps_P = _checked_pairs(differences_PD, reward_gaps_P, "reward gaps", -np.inf, np.inf)
    return np.asarray(np.linalg.lstsq(beta * z_PD, gaps_P)[0], dtype=np.float64)


def _checked_pairs(
    differences_PD: npt.ArrayLike, targets_P: npt.ArrayLike, name: str, low: float, high: float
) -> tuple[FloatArray, FloatArray]:
    z_PD, y_P = np.asarray(differences_PD, dtype=np.float64), np.asarray(targets_P, dtype=np.float64)
    fits = z_PD.ndim == 2 and y_P.shape == z_PD.shape[:1] and y_P.size > 0
    if not (fits and np.isfinite(z_PD).all() and np.isfinite(y_P).all() and ((low <= y_P) & (y_P <= high)).all()):
        raise InvalidInputError(
            f"differences and {name} cannot be fitted",
            got=f"differences {z_PD.shape}, {name} {y_P.shape}"
            + (f", from {y_P.min()} to {y_P.max()}" if fits else ""),
            allowed=f"finite differences [P, D], {name} [P] from {low:g} to {high:g}, P at least 1",
            fix="label at least one pair; leave out what is not finite",
        )
    return z_PD, y_P
