"""The belief as baseline: what rewards are worth, the price, and what a plan says of it (docs/joint.md)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from allotment.planning.score_weighted import FORGETTING, ScoreWeighted
from allotment.pricing import ShrinkagePrice
from allotment.state import State, array_from_state, check_state
from allotment.types import FloatArray, IntArray, Posterior


class Shrinkage:
    """The mean and the variance of a reward among failures and among successes: (0, 1) and none for 0/1 rewards.

    A success is a reward of at least a threshold. With these a belief about success is one about the mean reward, for
    rewards of -1 and 1 or shaped ones too.
    """

    KIND = "Shrinkage"

    def __init__(self, weighted: ScoreWeighted | None = None) -> None:
        """``weighted``: a baseline other than the belief itself."""
        self.weighted = weighted
        self._sums_2x3 = np.zeros((2, 3))
        """Discounted count, sum and sum of squares of failures and of successes."""

    def price(self, posterior: Posterior) -> ShrinkagePrice:
        """What rollouts are worth, in units of the squared gap between successes and failures."""
        price = ShrinkagePrice.of(posterior)
        low, high = self._means()
        within_2 = self._within()
        if not within_2.any() or high == low:
            return price
        p_Q = posterior.success_probability()
        spread_Q = ((1.0 - p_Q) * within_2[0] + p_Q * within_2[1]) / (high - low) ** 2
        return replace(price, variance=price.variance + spread_Q)

    def of_plan(self, posterior: Posterior, counts_Q: IntArray) -> dict[str, FloatArray]:
        """``baselines`` and ``baseline_shares`` of a plan, [Q] each."""
        low, high = self._means()
        m_Q = posterior.success_probability()
        baselines_Q = low + (high - low) * (m_Q if self.weighted is None else self.weighted.predict(m_Q))
        return {"baselines": baselines_Q, "baseline_shares": self.price(posterior).shares(counts_Q)}

    def _means(self) -> tuple[float, float]:
        count_2, sum_2, _ = self._sums_2x3.T
        low, high = (s / c if c > 0 else usual for s, c, usual in zip(sum_2, count_2, (0.0, 1.0), strict=True))
        return float(low), float(high)

    def _within(self) -> FloatArray:
        """[2] variance among failures and among successes."""
        count_2, sum_2, square_2 = self._sums_2x3.T
        count_2 = np.maximum(count_2, 1e-300)
        variance_2 = square_2 / count_2 - (sum_2 / count_2) ** 2
        is_rounding_2 = variance_2 <= 1e-12 * (1.0 + square_2 / count_2)
        return np.where(is_rounding_2, 0.0, variance_2)

    def observe(self, rewards_N: FloatArray, is_success_N: npt.NDArray[np.bool_]) -> None:
        """Learn from the rewards of a step."""
        parts = [np.sort(rewards_N[chosen]) for chosen in (~is_success_N, is_success_N)]  # no trace of the order
        new_2x3 = [[len(part), part.sum(), (part**2).sum()] for part in parts]
        self._sums_2x3 = FORGETTING * self._sums_2x3 + np.array(new_2x3)

    def state_dict(self) -> State:
        """The sums."""
        weighted = {} if self.weighted is None else {"weighted": self.weighted.state_dict()}
        return {"kind": self.KIND, "sums": self._sums_2x3.copy(), **weighted}

    def load_state_dict(self, state: State) -> None:
        """See :class:`~allotment.state.Stateful`."""
        check_state(state, self.KIND, ("sums",) if self.weighted is None else ("sums", "weighted"))
        sums_2x3 = array_from_state(state, "sums", (2, 3))
        if self.weighted is not None:
            self.weighted.load_state_dict(state["weighted"])
        self._sums_2x3 = sums_2x3
