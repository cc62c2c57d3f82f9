"""GVM-RAFT (arXiv 2505.02391): rollouts in proportion to gradient norm over the root of the success probability."""

from __future__ import annotations

from typing import Unpack

import numpy as np
import numpy.typing as npt

from allotment.allocation import allocate_exact
from allotment.checks import check_setting
from allotment.planning.contract import Contract, PlannerEntry
from allotment.planning.success import SuccessPlanner, SuccessSettings
from allotment.prediction import DiscountedCounts, GradientMoments, Predictor
from allotment.pricing import Estimator, WeightedPrice
from allotment.registry import ALIKE, BEFORE, EXACT, Row
from allotment.state import State, Stateful
from allotment.types import Allocation, FloatArray, Posterior, PromptId


def _variance(counts: npt.ArrayLike) -> FloatArray:
    return 1.0 / np.asarray(counts, dtype=np.float64)


def _gain(counts: npt.ArrayLike) -> FloatArray:
    n = np.asarray(counts, dtype=np.float64)
    return 1.0 / (n * (n + 1.0))


RAFT = Estimator("raft", 1, _variance, _gain)
"""A mean over what was accepted, without a baseline: ``g(n) = 1 / n``."""


class GVM(SuccessPlanner):
    """Counts in proportion to ``G / sqrt(p + alpha / p^(beta - 1))``: least variance of the gradient of RAFT.

    RAFT trains on successes alone, so the variance of a prompt's gradient is ``G^2 / (n p)`` with ``G^2`` the mean
    squared norm of the gradient of a success; alpha keeps prompts of very small p from taking everything. These counts
    minimise ``sum_q w_q^2 / n_q``, w the ratio above, and that is what is minimised here, exactly, over integers within
    the bounds: it sums to the budget and stays next to the proportional counts.

    Predicts each prompt's success probability (and takes its mean) and its G; decides before anything is generated;
    spends the budget exactly. With advantages by RLOO and a prompt's weight independent of its count it optimises the
    mean success probability, as uniform allocation does; RAFT's own loss, the mean log-probability of successes, would
    weigh prompts by 1/p.

    G comes from the score sketches of ``tell(..., scores=...)`` through :class:`~allotment.prediction.GradientMoments`:
    ``G^2 = V1 + (1 - p)^2 D2``, since the mean score of a prompt is 0. Until scores are told it is 1 for all.

    Source: the official code (RLHFlow/GVM). Deviations: beliefs from earlier steps instead of a
    pilot of 8 rollouts that is thrown away; root mean square of the norm, where the code averages norms of one
    parameter block; integers of least variance, where the code rounds and moves the largest residuals; p = 0 or G = 0
    gets the lower bound, and what no other prompt can take, where the code gives nothing (and so never looks again).

    Args:
        predictor: the belief; :class:`~allotment.prediction.DiscountedCounts` if None.
        alpha: the paper's regularisation, > 0.
        beta: its exponent, >= 1; at 2 the largest count is at p = ``sqrt(alpha)``.
        moments: the belief about scores; a new one if None.
    """

    contract = Contract(told=frozenset({"scores"}))
    moments: GradientMoments

    def __init__(
        self,
        *,
        alpha: float = 1e-3,
        beta: float = 2.0,
        moments: GradientMoments | None = None,
        **common: Unpack[SuccessSettings],
    ) -> None:
        super().__init__(**common)
        check_setting("alpha", alpha, 0 < alpha < np.inf, "a positive number")
        check_setting("beta", beta, 1 <= beta < np.inf, "a number >= 1")
        self.alpha, self.beta = float(alpha), float(beta)
        self.moments = GradientMoments() if moments is None else moments

    def _usual_predictor(self) -> Predictor:
        return DiscountedCounts()

    @property
    def _parts(self) -> dict[str, Stateful]:
        return {"success": self.predictor, "moments": self.moments}

    def _allocate(self, ids: tuple[PromptId, ...], posterior: Posterior, budget: int) -> Allocation:
        lower, upper = self.bounds
        p_Q = posterior.success_probability()
        square_Q = np.ones(len(ids))
        if self.moments.is_informed:
            moments = self.moments.predict(ids)
            square_Q = moments.within_Q2[:, 1] + (1 - p_Q) ** 2 * moments.gap_Q
        price = WeightedPrice(square_Q * inverse_acceptance(p_Q, self.alpha, self.beta), RAFT)
        return allocate_exact(price, budget, lower=lower, upper=upper, tie_keys=self._tie_keys(ids))

    def _settings(self) -> State:
        return {**super()._settings(), "alpha": self.alpha, "beta": self.beta}


def inverse_acceptance(p_Q: FloatArray, alpha: float, beta: float) -> FloatArray:
    """``1 / (p + alpha / p^(beta - 1))``, [Q]; 0 where p is 0."""
    return np.where(p_Q > 0, p_Q ** (beta - 1) / (p_Q**beta + alpha), 0.0)


ENTRY = PlannerEntry(
    GVM,
    GVM.contract,
    row=Row(
        "success probability and gradient norm",
        BEFORE,
        EXACT,
        ALIKE + "; RAFT's own loss weighs by 1/p",
        "GVM-RAFT, arXiv 2505.02391, code RLHFlow/GVM",
        "beliefs instead of a pilot of 8; p = 0 gets the lower bound, not nothing",
    ),
)
