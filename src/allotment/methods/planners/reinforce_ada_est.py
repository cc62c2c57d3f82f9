"""Reinforce-Ada, estimated: counts from a predicted success probability (arXiv 2510.04996 v3, algorithm 1)."""

from __future__ import annotations

from typing import Literal, Unpack

import numpy as np

from allotment.allocation import allocate_exact
from allotment.checks import check_choice, check_setting
from allotment.methods.planners.gvm import RAFT
from allotment.methods.planners.mopps import BetaCounts
from allotment.methods.planners.reinforce_ada import Pool
from allotment.planning.contract import Contract, PlannerEntry
from allotment.planning.success import SuccessPlanner, SuccessSettings
from allotment.prediction import Predictor
from allotment.pricing import WeightedPrice
from allotment.registry import BEFORE, EXACT, Row
from allotment.selection import Scored, Selection, SelectorNeeds, Stateless
from allotment.state import State
from allotment.types import Allocation, FloatArray, Posterior, PromptId

Divisor = Literal["mean", "deviation"]
"""Whose root divides the advantages: the success rate, or the variance of the rewards."""
Shares = Literal["rollouts", "prompts"]
"""Whether every rollout of a step, or every prompt, counts alike in the loss."""
Rule = Literal["inverse_root", "log", "plain"]
"""What counts are proportional to; see :class:`ReinforceAdaEst`."""


class RootWeighting(Stateless):
    """All rollouts, with advantages ``(r - m) / sqrt(m + epsilon)``, m the success rate of the group (v3, Est).

    Sampling gives a prompt n ~ 1 / sqrt(p) rollouts and the advantage another 1 / sqrt(p), which together make the
    gradient of log p where every rollout of the step counts alike: ``shares="rollouts"``, v3's reading. With
    ``shares="prompts"`` every prompt counts alike, as elsewhere in this library, and the objective is about 2 sqrt(p).
    At n rollouts the weight of grad p is ``E[k (n - k) / (n^2 sqrt(k / n + epsilon))] / (p (1 - p))``, k binomial,
    times n over the mean n with ``shares="rollouts"``; without that it tends to ``1 / sqrt(p + epsilon)``.

    Args:
        epsilon: > 0. The paper names it and not its value.
        divisor: ``"deviation"`` divides by ``sqrt(m (1 - m) + epsilon)`` instead, GRPO's advantage, which belongs to
            the samplings n ~ sqrt((1 - p) / p), for log p, and n ~ sqrt(p (1 - p)), for p (v3's appendix).
        success_threshold: a reward of at least this is correct (r = 1).

    Raises:
        InvalidInputError: epsilon is not positive, or an unknown name.
    """

    NEEDS = SelectorNeeds(brings=frozenset({"advantages"}))

    def __init__(
        self,
        *,
        epsilon: float = 0.01,
        divisor: Divisor = "mean",
        shares: Shares = "rollouts",
        success_threshold: float = 0.5,
    ) -> None:
        check_choice("divisor", divisor, Divisor)
        check_choice("shares", shares, Shares)
        check_setting("epsilon", epsilon, 0 < epsilon < np.inf, "a positive number")
        self.epsilon, self.divisor, self.shares = float(epsilon), divisor, shares
        self.success_threshold = success_threshold

    def select(self, scored: Scored) -> Selection:
        """Everything; with ``shares="rollouts"`` weighted by the size of its group over the mean size."""
        pool = Pool.of(scored, self.success_threshold)
        mean_N, size_Q = pool.means[scored.rows_N], pool.sizes
        square_N = mean_N * (1.0 - mean_N) if self.divisor == "deviation" else mean_N
        advantages_N = (pool.class_N - mean_N) / np.sqrt(square_N + self.epsilon)
        weights_N = np.ones(len(scored))
        if self.shares == "rollouts":
            weights_N = size_Q[scored.rows_N] / size_Q[size_Q > 0].mean()
        return Selection(weights_N, advantages_N)


class ReinforceAdaEst(SuccessPlanner):
    """Counts in proportion to ``1 / sqrt(p + epsilon)``: the harder, the more, and half of log p's weight with it.

    Predicts each prompt's success probability (and takes its mean); decides before anything is generated; spends the
    budget exactly. The integers within the bounds minimise ``sum_q 1 / ((p_q + epsilon) n_q)``, which is least at the
    proportional counts. Its :attr:`selector` trains on all rollouts with advantages ``(r - m) / sqrt(m + epsilon)``,
    which brings the other half: where every rollout counts alike (``shares="rollouts"``) the gradient is about that of
    log p, up to the bounds, epsilon and the noise of m; see
    :class:`RootWeighting`.

    =================== =================================== ======================== =================
    ``rule``            counts                              advantage                objective
    =================== =================================== ======================== =================
    ``"inverse_root"``  ``1 / sqrt(p + epsilon)``           over ``sqrt(m)``         log p
    ``"log"``           ``sqrt((1 - p) / (p + epsilon))``   over ``sqrt(m (1 - m))`` log p
    ``"plain"``         ``sqrt(p (1 - p))``                 over ``sqrt(m (1 - m))`` p
    =================== =================================== ======================== =================

    The first is algorithm 1, and has least variance for log p without a baseline; ``"log"`` has least variance for log
    p with one, ``"plain"`` for p (appendix of v3). GRPO's advantage falls out of both.

    Args:
        predictor: the belief; ``BetaCounts(forgetting=0.9, prior=(1, 1))`` if None: discounted counts, lambda = 0.9,
            with a Beta prior, as in algorithm 1. Any other predictor stands for the value network.
        epsilon: keeps counts and advantages finite; > 0.
    """

    contract = Contract(selects=RootWeighting.NEEDS)

    def __init__(
        self,
        *,
        epsilon: float = 0.01,
        rule: Rule = "inverse_root",
        shares: Shares = "rollouts",
        **common: Unpack[SuccessSettings],
    ) -> None:
        super().__init__(**common)
        check_setting("epsilon", epsilon, 0 < epsilon < np.inf, "a positive number")
        check_choice("rule", rule, Rule)
        self.epsilon, self.rule = float(epsilon), rule
        self._selector = RootWeighting(
            epsilon=self.epsilon,
            divisor="mean" if rule == "inverse_root" else "deviation",
            shares=shares,
            success_threshold=self.success_threshold,
        )

    def _usual_predictor(self) -> Predictor:
        return BetaCounts(forgetting=0.9)

    @property
    def selector(self) -> RootWeighting:
        """All rollouts, with advantages over the root of the success rate, or of the variance."""
        return self._selector

    def _allocate(self, ids: tuple[PromptId, ...], posterior: Posterior, budget: int) -> Allocation:
        lower, upper = self.bounds
        price = WeightedPrice(squared_shares(posterior.success_probability(), self.rule, self.epsilon), RAFT)
        return allocate_exact(price, budget, lower=lower, upper=upper, tie_keys=self._tie_keys(ids))

    def _settings(self) -> State:
        own = {"epsilon": self.epsilon, "rule": self.rule, "shares": self._selector.shares}
        return {**super()._settings(), **own}


def squared_shares(p_Q: FloatArray, rule: Rule, epsilon: float) -> FloatArray:
    """[Q] the square of what counts are proportional to."""
    if rule == "plain":
        return p_Q * (1.0 - p_Q)
    return (1.0 - p_Q if rule == "log" else 1.0) / (p_Q + epsilon)


ENTRY = PlannerEntry(
    ReinforceAdaEst,
    ReinforceAdaEst.contract,
    row=Row(
        "success probability: discounted Beta counts",
        BEFORE,
        EXACT,
        'about log p, where every rollout counts alike (`shares="rollouts"`): counts go with `1/sqrt(p)`, advantages '
        "with another `1/sqrt(p)`; both bounded by epsilon and the counts",
        "arXiv 2510.04996 v3, algorithm 1 (no code)",
        "epsilon, prior, forgetting and bounds are ours",
    ),
)
