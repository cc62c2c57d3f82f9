"""CoBA-RL: capability-oriented budget allocation (arXiv 2602.03048)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Unpack

import numpy as np
import numpy.typing as npt
from scipy.special import betaln, expit, xlog1py, xlogy

from allotment.allocation import allocate_exact
from allotment.checks import check_probabilities, check_setting
from allotment.planning.contract import PlannerEntry
from allotment.planning.outcome import Outcome
from allotment.planning.success import SuccessPlanner, SuccessSettings
from allotment.prediction import DiscountedCounts, Predictor
from allotment.registry import ALIKE, BEFORE, EXACT, Row
from allotment.state import State, Stateful, array_from_state, check_state
from allotment.types import Allocation, FloatArray, IntArray, Posterior, PromptId

NEAR = 4
"""Times the mean room above the lower bound, up to which counts are looked for first."""


class CoBARL(SuccessPlanner):
    """Most value for the budget, where what is of value depends on how able the policy is.

    Maximises ``sum_q V(n_q, p_q)`` exactly (:class:`CoBAPrice`). While the policy fails often, easy prompts are of
    value; as it learns, hard ones. Predicts each prompt's success probability, and takes its mean; decides before
    anything is generated; spends the budget exactly. With advantages by RLOO and a prompt's weight independent of its
    count it optimises the mean success probability, as uniform allocation does; V moves the variance only.

    The failure rate of a step is the mean over prompts of what its rollouts showed; before the first, that of the
    prediction. Equal gains are taken in an order drawn at each step.

    Args:
        predictor: the belief; if None :class:`~allotment.prediction.DiscountedCounts` with a prior of two rollouts at
            the mean over prompts, which is also the belief about a prompt never seen.
        kappa: alpha + beta of the density of value; the larger, the narrower.
        gamma: how fast the score of failures falls below a failure rate of 1/2.
        alpha_bounds: least and largest alpha; the peak is at p = ``(alpha - 1) / (kappa - 2)``.
        slope: lambda: alpha is the least plus this times the score; the difference of ``alpha_bounds`` if None.
        tau: the larger, the later a prompt's value saturates.
        window: k, steps over which the failure rate is averaged.
    """

    BOUNDS = (2, 128)

    def __init__(
        self,
        *,
        kappa: float = 11.0,
        gamma: float = 10.0,
        alpha_bounds: tuple[float, float] = (1.5, 9.5),
        slope: float | None = None,
        tau: float = 1.0,
        window: int = 10,
        **common: Unpack[SuccessSettings],
    ) -> None:
        super().__init__(**common)
        least, largest = alpha_bounds
        slope = largest - least if slope is None else slope
        is_between = 0 < least <= largest < kappa < np.inf
        check_setting("alpha_bounds", (least, largest), is_between, f"0 < least <= largest < kappa = {kappa}")
        check_setting("slope", slope, 0 <= slope < np.inf, "a number >= 0")
        check_setting("gamma", gamma, 0 < gamma < np.inf, "a positive number")
        check_setting("tau", tau, 0 < tau < np.inf, "a positive number")
        self.alpha_bounds = (float(least), float(largest))
        self.kappa, self.gamma, self.slope, self.tau = float(kappa), float(gamma), float(slope), float(tau)
        self.failure = FailureRate(window=window)

    def _usual_predictor(self) -> Predictor:
        return DiscountedCounts(prior_strength=2.0)

    @property
    def _parts(self) -> dict[str, Stateful]:
        return {"success": self.predictor, "failure": self.failure}

    def _allocate(self, ids: tuple[PromptId, ...], posterior: Posterior, budget: int) -> Allocation:
        lower, upper = self.bounds
        p_Q = posterior.success_probability()
        failure = self.failure.mean
        alpha, beta = capability_shape(
            float(np.mean(1.0 - np.sort(p_Q))) if failure is None else failure,  # sorted: no trace of the order
            kappa=self.kappa,
            gamma=self.gamma,
            alpha_bounds=self.alpha_bounds,
            slope=self.slope,
        )
        price, keys = coba_price(p_Q, alpha, beta, tau=self.tau), self._tie_keys(ids)
        spare = budget // len(ids) - lower + 1
        near = lower + NEAR * spare  # a smaller table of gains; an upper bound that no count reaches changes nothing
        if spare > 0 and near < upper:
            allocation = allocate_exact(price, budget, lower=lower, upper=near, tie_keys=keys)
            if int(allocation.counts.max()) < near:
                return allocation
        return allocate_exact(price, budget, lower=lower, upper=upper, tie_keys=keys)

    def _observe(self, outcome: Outcome) -> None:
        super()._observe(outcome)
        _, rows_B = outcome.told()
        if len(rows_B):
            self.failure.observe(1.0 - outcome.successes(self.success_threshold)[rows_B] / outcome.received[rows_B])

    def _settings(self) -> State:
        own = {name: getattr(self, name) for name in ("kappa", "gamma", "slope", "tau")}
        least, largest = self.alpha_bounds
        window = self.failure.window
        return {**super()._settings(), **own, "alpha_min": least, "alpha_max": largest, "window": window}


class FailureRate:
    """Moving average over the last ``window`` steps of the failure rate, the mean over a step's prompts."""

    def __init__(self, *, window: int) -> None:
        check_setting("window", window, window >= 1 and window == int(window), "a whole number >= 1")
        self.window = int(window)
        self._rates = np.empty(0)

    @property
    def mean(self) -> float | None:
        """In [0, 1]; None before the first step."""
        return float(self._rates.mean()) if len(self._rates) else None

    def observe(self, failure_B: FloatArray) -> None:
        """Learn the failure rates of a step's B prompts, B >= 1."""
        self._rates = np.append(self._rates, np.sort(failure_B).mean())[-self.window :]

    def state_dict(self) -> State:
        """The rates in the window."""
        return {"kind": "FailureRate", "rates": self._rates.copy()}

    def load_state_dict(self, state: State) -> None:
        """Take over the rates from a :meth:`state_dict` of the same window."""
        check_state(state, "FailureRate", ("rates",))
        length = min(len(np.atleast_1d(state["rates"])), self.window)
        self._rates = array_from_state(state, "rates", (length,))


@dataclass(frozen=True)
class CoBAPrice:
    """``D exp(-k n)``, what saturation leaves of a prompt's value: a :class:`~allotment.pricing.Price`.

    The value of n rollouts is ``V(n, p) = (1 - exp(-n p (1 - p) / tau)) Beta_pdf(p; alpha, beta)``. Its gains are
    geometric, so V is concave from n = 0 on, and the largest gains are the optimum. Make it with :func:`coba_price`.
    """

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


ENTRY = PlannerEntry(
    CoBARL,
    row=Row(
        "success probability of each prompt, failure rate of the last steps",
        BEFORE,
        EXACT,
        ALIKE,
        "arXiv 2602.03048",
        "exact split for the heap (the same counts); alpha bounds, lambda, tau, window and cold start are ours",
    ),
)
