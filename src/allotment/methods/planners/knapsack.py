"""Knapsack RL (arXiv 2509.25849): most groups with a gradient, weighted by what the gradient is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Unpack

import numpy as np
import numpy.typing as npt

from allotment.allocation import allocate_exact, uniform
from allotment.checks import check_setting
from allotment.planning.contract import PlannerEntry
from allotment.planning.outcome import Outcome
from allotment.planning.success import SuccessPlanner, SuccessSettings
from allotment.prediction import LastValue, Predictor
from allotment.prompts.ids import PromptTable
from allotment.registry import ALIKE, BEFORE, EXACT, Row
from allotment.state import State, Stateful
from allotment.types import Allocation, FloatArray, IntArray, Posterior, PromptId


class Knapsack(SuccessPlanner):
    """The knapsack of largest value: maximise ``sum_q (1 - p^n - (1 - p)^n) p (1 - p)^2`` over the counts n.

    Predicts each prompt's success probability, by default the rate of its last visit, and takes its mean; decides
    before anything is generated; spends the budget exactly. The knapsack is solved exactly without dynamic programming,
    since its values are concave (:class:`KnapsackPrice`). With advantages by RLOO and a
    prompt's weight independent of its count it optimises the mean success probability, as uniform allocation does.

    The value is 0 at p = 0 and p = 1, so the paper adds rules, which do much of the work: a prompt that always
    succeeded gets the least, and what the others cannot take within their bounds goes to prompts that never succeeded.
    In a first epoch all counts are equal. Here, where epochs are not known: a prompt without rollouts so far gets its
    even share, and the others share the rest (a reconstruction for batches of both kinds). Only where all others are
    at their upper bounds do prompts that always succeed get more than the least.

    Args:
        predictor: the belief; the rate of the last visit if None.
        certain: a predicted probability below this counts as 0, one above 1 minus this as 1; in [0, 1/2). The default
            suits the default predictor, whose rates are 0 and 1 but for 1e-9 of a rollout. One that shrinks, such as
            VIP's, never says 0 or 1: raise it, or have no use of the two rules.
    """

    BOUNDS = (2, 128)

    def __init__(
        self,
        *,
        certain: float = 1e-6,
        **common: Unpack[SuccessSettings],
    ) -> None:
        super().__init__(**common)
        check_setting("certain", certain, 0 <= certain < 0.5, "0 <= certain < 1/2")
        self.certain = float(certain)
        self._rates = PromptTable()

    def _usual_predictor(self) -> Predictor:
        return LastValue(smoothing=1e-9)

    @property
    def _parts(self) -> dict[str, Stateful]:
        return {"success": self.predictor, "rates": self._rates}

    def _allocate(self, ids: tuple[PromptId, ...], posterior: Posterior, budget: int) -> Allocation:
        lower, upper = self.bounds
        keys = self._tie_keys(ids)
        p_Q = posterior.success_probability()
        p_Q = np.where(p_Q < self.certain, 0.0, np.where(p_Q > 1 - self.certain, 1.0, p_Q))
        even = uniform(len(ids), budget, lower=lower, upper=upper, estimator=self.estimator, tie_keys=keys)
        is_new_Q = np.isnan(self._rates.gather(ids, np.nan))
        lower_Q, upper_Q = _limits(p_Q, even.counts, is_new_Q, budget, self.bounds)
        return allocate_exact(KnapsackPrice(p_Q), budget, lower=lower_Q, upper=upper_Q, tie_keys=keys)

    def _observe(self, outcome: Outcome) -> None:
        super()._observe(outcome)
        ids, rows_B = outcome.told()
        self._rates.set(ids, outcome.successes(self.success_threshold)[rows_B] / outcome.received[rows_B])

    def _settings(self) -> State:
        return {**super()._settings(), "certain": self.certain}


def _limits(
    p_Q: FloatArray, even_Q: IntArray, is_new_Q: npt.NDArray[np.bool_], budget: int, bounds: tuple[int, int]
) -> tuple[IntArray, IntArray]:
    """[Q] bounds that carry the paper's rules: new prompts keep their even share, easy ones the least if they can.

    Prompts of p = 0 need no rule: their gains are 0, so they take what is left.
    """
    lower_Q, upper_Q = (np.where(is_new_Q, even_Q, bound) for bound in bounds)
    without_easy_Q = np.where(p_Q == 1.0, lower_Q, upper_Q)
    if int(without_easy_Q.sum()) >= budget:
        return lower_Q, without_easy_Q
    return without_easy_Q, upper_Q


@dataclass(frozen=True)
class KnapsackPrice:
    """What is missing to the value of an endless group: a :class:`~allotment.pricing.Price`.

    ``V(N, p) = (1 - p^N - (1 - p)^N) p (1 - p)^2``: the probability that N rewards are not all equal, times the paper's
    information gain. The next rollout is worth ``p (1 - p)^2 (p^N (1 - p) + (1 - p)^N p)``, a sum of two geometric
    sequences that fall with N; so V is concave from N = 1 on, and the largest gains are the optimum of the knapsack.
    """

    probability: FloatArray
    """[Q] success probability, in [0, 1]."""
    minimum_count: ClassVar[int] = 1
    """From there on V is concave."""

    def __len__(self) -> int:
        return len(self.probability)

    def information(self) -> FloatArray:
        """[Q] ``p (1 - p)^2``; largest at p = 1/3, 0 at 0 and 1."""
        return self.probability * (1 - self.probability) ** 2

    def gains(self, grid_K: IntArray) -> FloatArray:
        """``V(n + 1) - V(n)``, [Q, K]."""
        p_Q1 = self.probability[:, None]
        return self.information()[:, None] * (p_Q1**grid_K * (1 - p_Q1) + (1 - p_Q1) ** grid_K * p_Q1)

    def cost(self, counts_Q: IntArray) -> FloatArray:
        """``p (1 - p)^2 - V(n)``, [Q]."""
        return self.information() * (self.probability**counts_Q + (1 - self.probability) ** counts_Q)


ENTRY = PlannerEntry(
    Knapsack,
    row=Row(
        "success rate of the last visit",
        BEFORE,
        EXACT,
        ALIKE,
        "Knapsack RL, arXiv 2509.25849, from secondary sources (no official code)",
        "exact without dynamic programming (the value is concave); rule for batches of new and known prompts",
    ),
)
