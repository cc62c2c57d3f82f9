"""The value of a rollout in CoBA-RL (arXiv 2602.03048): what the policy can learn now, saturating with the group.

With ``alpha + beta = kappa``, the value of B rollouts of a prompt of success probability p is

    V(B, p) = (1 - exp(-B p (1 - p) / tau)) Beta_pdf(p; alpha, beta).

Its gains are geometric: ``V(B + 1) - V(B) = D (1 - exp(-k)) exp(-k B)`` with ``k = p (1 - p) / tau`` and D the density,
so V is concave from B = 0 on, and the largest gains are the optimum. The price is what saturation leaves, ``D - V``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import betaln, expit, xlog1py, xlogy

from allotment.pricing.price import check_probabilities
from allotment.types import FloatArray, IntArray


@dataclass(frozen=True)
class CoBAPrice:
    """``f_q(n) = D_q exp(-k_q n)``: a :class:`~allotment.pricing.Price`. Make it with :func:`coba_price`."""

    density: FloatArray
    """[Q] D, the density of the Beta distribution at p, finite, >= 0; 0 where p is 0 or 1."""
    rate: FloatArray
    """[Q] k, ``p (1 - p) / tau``, >= 0."""
    minimum_count: ClassVar[int] = 0
    """Concave from no rollout on."""

    def __len__(self) -> int:
        return len(self.density)

    def gains(self, grid_K: IntArray) -> FloatArray:
        """``V(n + 1) - V(n)``, [Q, K]."""
        first_Q = self.density * -np.expm1(-self.rate)
        return first_Q[:, None] * np.exp(-self.rate[:, None] * grid_K)

    def cost(self, counts_Q: IntArray) -> FloatArray:
        """``D - V(n)``, [Q]."""
        return self.density * np.exp(-self.rate * counts_Q)


def coba_price(success_probabilities: npt.ArrayLike, alpha: float, beta: float, *, tau: float) -> CoBAPrice:
    """The price of Q prompts.

    Args:
        success_probabilities: [Q] in [0, 1].
        alpha: first shape of the density of value over success probabilities, > 0.
        beta: its second shape, > 0.
        tau: rollouts, in units of ``1 / (p (1 - p))``, after which a prompt's value is down to 1/e; > 0.

    Raises:
        InvalidInputError: a probability is NaN or outside [0, 1].
    """
    p_Q = check_probabilities(success_probabilities)
    variance_Q = p_Q * (1.0 - p_Q)
    inside_Q = np.where(variance_Q > 0, p_Q, 0.5)  # the density may be infinite at 0 and 1, where V is 0 anyway
    log_density_Q = xlogy(alpha - 1, inside_Q) + xlog1py(beta - 1, -inside_Q) - betaln(alpha, beta)
    return CoBAPrice(np.where(variance_Q > 0, np.exp(log_density_Q), 0.0), variance_Q / tau)


def failure_score(failure: float, *, gamma: float) -> float:
    """Psi: the failure rate F itself above 1/2, ``sigmoid(gamma (F - 1/2))`` below; in [0, 1], rising, continuous."""
    return failure if failure > 0.5 else float(expit(gamma * (failure - 0.5)))


def capability_shape(
    failure: float, *, kappa: float, gamma: float, alpha_bounds: tuple[float, float], slope: float
) -> tuple[float, float]:
    """The shapes (alpha, beta) of the density of value for a policy that fails at this rate.

    The more failures, the larger alpha: the peak, ``(alpha - 1) / (kappa - 2)``, then lies at easy prompts, and moves
    to hard ones as the policy learns.

    Args:
        failure: F, moving average of the failure rate over prompts, in [0, 1].
        kappa: alpha + beta.
        gamma: see :func:`failure_score`.
        alpha_bounds: least and largest alpha; 0 < least <= largest < kappa.
        slope: lambda, how much alpha rises from the least per unit of the score.
    """
    least, largest = alpha_bounds
    alpha = min(least + slope * failure_score(failure, gamma=gamma), largest)
    return alpha, kappa - alpha
