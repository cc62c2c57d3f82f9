"""Which prompts, and how many rollouts each would get: inclusion probabilities of least variance (docs/joint.md).

Prompt q of M candidates is drawn with probability ``pi_q`` and weighs ``1 / pi_q`` in the mean over all of them
(Horvitz and Thompson 1952), which is unbiased whatever the probabilities. With B_q the squared gradient of the prompt
and ``V_q(n)`` the variance that n rollouts leave, minimise::

    sum_q (B_q + V_q(n_q)) / pi_q    subject to    sum_q pi_q n_q = C,    least <= pi_q <= 1

For a multiplier lambda the two choices of a prompt meet in one number, ``tau = lambda pi^2``: a rollout is worth
taking while its gain is at least tau, and ``tau = (B + V(n)) / (n + k)`` where neither bound of pi holds it, k being
what a prompt costs beside its rollouts. That n minimises ``(n + k) (B + V(n))`` and does not depend on lambda, which is
found by bisection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from allotment.checks import check_setting
from allotment.errors import InfeasibleBudgetError, InvalidInputError
from allotment.pricing import Price
from allotment.types import FloatArray, IntArray

HALVINGS = 40
"""Of an interval of multipliers that spans some powers of ten: to 1e-11 of the multiplier."""


@dataclass(frozen=True, eq=False)
class Inclusion:
    """How likely each candidate is drawn, and the rollouts it would get."""

    probabilities: FloatArray
    """[M] in [least, 1]."""
    counts: IntArray
    """[M] rollouts of each candidate, if it is drawn."""


def inclusion(
    price: Price,
    between: FloatArray,
    budget: float,
    *,
    bounds: tuple[int, int],
    least: float,
    costs: npt.ArrayLike = 1.0,
    prompt_cost: npt.ArrayLike = 0.0,
    is_prompt_charged: bool = True,
) -> Inclusion:
    """The probabilities and counts of least variance for a budget that holds in expectation.

    Args:
        price: of the M candidates, V(n).
        between: [M] B, the squared gradient of each prompt in units of the price, >= 0.
        budget: C, in units of ``costs``.
        bounds: least and most rollouts of a prompt that is drawn.
        least: the least probability, in (0, 1]; no weight is larger than one over it.
        costs: of a rollout, a number or [M], > 0.
        prompt_cost: k of the text, in units of ``costs``, a number or [M], >= 0.
        is_prompt_charged: whether ``prompt_cost`` counts in the budget, or only makes prompts fewer.

    Raises:
        InvalidInputError: ``least`` is outside (0, 1], or bounds are not those of the price.
        InfeasibleBudgetError: all candidates at their most rollouts do not spend the budget, or at their least
            probability and fewest rollouts they spend more.
    """
    problem = _Problem.of(price, between, bounds, least, costs, prompt_cost, is_prompt_charged)
    problem.check(budget)
    low, high = problem.multipliers()
    for _ in range(HALVINGS):  # the cost falls as the multiplier grows
        middle = np.sqrt(low * high)
        low, high = (low, middle) if problem.cost(*problem.solve(middle)) <= budget else (middle, high)
    return Inclusion(*problem.solve(high))


@dataclass(frozen=True, eq=False)
class _Problem:
    first: int
    gains_MK: FloatArray
    """Gain of the step from ``first + k`` rollouts to one more, for each unit of cost."""
    threshold_M: FloatArray
    """tau where pi is inside its bounds."""
    least: float
    costs_M: FloatArray
    charged_M: FloatArray
    """What a prompt costs in the budget beside its rollouts."""

    @classmethod
    def of(
        cls,
        price: Price,
        between_M: FloatArray,
        bounds: tuple[int, int],
        least: float,
        costs: npt.ArrayLike,
        prompt_cost: npt.ArrayLike,
        is_prompt_charged: bool,
    ) -> _Problem:
        lower, upper = bounds
        check_setting("least probability", least, 0.0 < least <= 1.0, "in (0, 1], such as 1/16")
        if not price.minimum_count <= lower <= upper:
            raise InvalidInputError(
                "bounds that this price does not allow",
                got=bounds,
                allowed=f"{price.minimum_count} <= lower <= upper",
                fix=f"raise the lower bound to {price.minimum_count}, or use the estimator 'shrinkage', from 1",
            )
        m = len(price)
        costs_M, prompt_M = (np.broadcast_to(np.asarray(c, dtype=np.float64), (m,)) for c in (costs, prompt_cost))
        grid_K = np.arange(lower, upper)
        gains_MK = price.gains(grid_K) if len(grid_K) else np.empty((m, 0))
        first_M = price.cost(np.full(m, lower))
        variances_MK = first_M[:, None] - np.concatenate([np.zeros((m, 1)), np.cumsum(gains_MK, axis=1)], axis=1)
        whole_MK = prompt_M[:, None] + np.arange(lower, upper + 1) * costs_M[:, None]
        left_MK = between_M[:, None] + np.maximum(variances_MK, 0.0)
        best_M = np.argmin(whole_MK * left_MK, axis=1)
        rows = np.arange(m)
        threshold_M = left_MK[rows, best_M] / whole_MK[rows, best_M]
        charged_M = prompt_M if is_prompt_charged else np.zeros(m)
        return cls(lower, gains_MK / costs_M[:, None], threshold_M, least, costs_M, charged_M)

    def solve(self, multiplier: float) -> tuple[FloatArray, IntArray]:
        """[M] twice, probabilities and counts of least variance plus ``multiplier`` times cost."""
        tau_M = np.clip(self.threshold_M, multiplier * self.least**2, multiplier)
        counts_M = self.first + np.count_nonzero(self.gains_MK >= tau_M[:, None], axis=1)
        return np.clip(np.sqrt(tau_M / multiplier), self.least, 1.0), counts_M

    def cost(self, probabilities_M: FloatArray, counts_M: IntArray) -> float:
        return float((probabilities_M * (counts_M * self.costs_M + self.charged_M)).sum())

    def multipliers(self) -> tuple[float, float]:
        """One at which every candidate is taken with all rollouts, and one at which none has more than it must."""
        values = np.concatenate([self.threshold_M, self.gains_MK.ravel()])
        some = values[values > 0.0]
        if not len(some):
            return 1.0, 1.0
        return float(some.min()) / 4.0, 4.0 * float(some.max()) / self.least**2

    def check(self, budget: float) -> None:
        most_M = np.full(len(self.costs_M), self.first + self.gains_MK.shape[1])
        fewest_M = np.full(len(self.costs_M), self.first)
        most = self.cost(np.ones(len(most_M)), most_M)
        fewest = self.cost(np.full(len(most_M), self.least), fewest_M)
        if not fewest <= budget <= most:
            raise InfeasibleBudgetError(
                "no choice of prompts within the bounds spends the budget",
                got=f"budget {budget:g} for {len(most_M)} candidates",
                allowed=f"{fewest:g} (each at its least probability, fewest rollouts) to {most:g} (all, most rollouts)",
                fix="take fewer candidates, lower the least probability, or raise the budget"
                if budget < fewest
                else "take more candidates, raise the upper bound, or lower the budget",
            )


def with_sum(probabilities_M: FloatArray, number: int, least: float) -> FloatArray:
    """[M] the probabilities in the same proportions, between ``least`` and 1, such that they sum to ``number``."""
    low, high = 0.0, 1.0 / float(probabilities_M.min())
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        short = np.clip(middle * probabilities_M, least, 1.0).sum() < number
        low, high = (middle, high) if short else (low, middle)
    return np.clip(high * probabilities_M, least, 1.0)


def systematic(probabilities_M: FloatArray, order_M: npt.ArrayLike, start: float) -> npt.NDArray[np.bool_]:
    """[M] which are drawn by systematic sampling: each with its probability, and their sum in number.

    Args:
        probabilities_M: in (0, 1], their sum whole but for rounding.
        order_M: the order in which they are laid end to end, a permutation; random, so that it favours no pair.
        start: in [0, 1), random: one prompt is drawn at each of start, start + 1, start + 2 and so on.
    """
    order = np.asarray(order_M)
    ends_M = np.cumsum(probabilities_M[order])
    ends_M *= round(float(ends_M[-1])) / ends_M[-1]
    passed_M = np.ceil(ends_M - start)  # how many of the marks lie below each end
    drawn_M = np.zeros(len(order), dtype=np.bool_)
    drawn_M[order] = np.diff(passed_M, prepend=np.ceil(-start)) > 0
    return drawn_M
