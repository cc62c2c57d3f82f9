"""SPO, single-stream policy optimisation (arXiv 2509.13232): one rollout a prompt, against a belief kept of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Unpack

import numpy as np

from allotment.allocation import uniform
from allotment.checks import check_setting
from allotment.methods.planners.spo_tracker import LEAST_MEMORY, BetaTracker, Change
from allotment.planning.contract import Contract, PlannerEntry
from allotment.planning.planner import Common
from allotment.planning.shrinkage import Shrinkage
from allotment.planning.success import SuccessPlanner
from allotment.registry import BEFORE, EXACT, Row
from allotment.selection import Scored, Selection, SelectorNeeds, Stateless
from allotment.state import State
from allotment.types import Allocation, FloatArray, IntArray, Plan, Posterior, PromptId


class BatchWhitening(Stateless):
    """All rollouts, their advantages less the batch's mean and over its standard deviation (that of a sample).

    Own rewards are in both, a bias of the order of 1 / N; apart from that it is one factor for the whole batch.
    """

    NEEDS = SelectorNeeds(brings=frozenset({"advantages"}))

    def select(self, scored: Scored) -> Selection:
        """Everything."""
        return Selection(np.ones(len(scored)), whitened(scored.advantages_N))


class SPO(SuccessPlanner):
    """One rollout for each prompt that is drawn; the baseline is the belief about the prompt, kept between steps.

    Believes in a Beta distribution of each prompt's success (:class:`BetaTracker`); decides before anything is
    generated; spends the budget exactly. Prompts are drawn among those asked, without replacement, in proportion to
    ``sqrt(p (1 - p)) + exploration``. No weights make up for it, so a prompt weighs as often as it is drawn: most near
    1/2. Advantages are ``r - p`` with the belief before the step, which does not see r; then the :attr:`selector`
    whitens them over the batch.

    Source: the paper and verl's recipe ``spo``. They draw 768 of 14,000 prompts. The recipe calls its drawing Thompson
    sampling, but takes the mean. Where the policy's change is not known a constant stands for it, and without offline
    rollouts prompts start at 1/2; for these and for what differs between paper and code see :class:`BetaTracker`.

    Args:
        budget: rollouts of a step; ``budget // lower bound`` prompts are drawn, or all that are asked if there are
            fewer, and get equal shares. The bounds are (1, 32) by default.
        exploration: 0.05 in paper and code.
        forgetting: see :class:`BetaTracker`, as for ``change``, ``offline``, ``smoothing``.
    """

    BELIEVES = True
    contract = Contract(leaves_out=True, baselines=True, selects=BatchWhitening.NEEDS)

    def __init__(
        self,
        *,
        exploration: float = 0.05,
        forgetting: float = LEAST_MEMORY,
        change: Change | None = None,
        offline: Mapping[PromptId, tuple[int, int]] | None = None,
        smoothing: float = 0.5,
        success_threshold: float = 0.5,
        **common: Unpack[Common],
    ) -> None:
        common.setdefault("estimator", "shrinkage")
        tracker = BetaTracker(forgetting=forgetting, change=change, offline=offline, smoothing=smoothing)
        super().__init__(predictor=tracker, success_threshold=success_threshold, **common)
        check_setting("exploration", exploration, 0 < exploration < np.inf, "a positive number")
        self.exploration, self.forgetting = float(exploration), float(forgetting)
        self.shrinkage = Shrinkage()
        self._selector = BatchWhitening()

    @property
    def selector(self) -> BatchWhitening:
        """All rollouts, whitened."""
        return self._selector

    def _open(self, ids: tuple[PromptId, ...], budget: int) -> Plan:
        assert self.shrinkage is not None
        posterior = self.predictor.predict(ids)
        allocation = self._allocate(ids, posterior, budget)
        baselines_Q = self.shrinkage.of_plan(posterior, np.ones_like(allocation.counts))["baselines"]
        about = {"posterior": posterior, "allocation": allocation, "baselines": baselines_Q}
        return self._new_plan(ids, allocation.counts, **about)

    def _allocate(self, ids: tuple[PromptId, ...], posterior: Posterior, budget: int) -> Allocation:
        lower, upper = self.bounds
        p_Q = posterior.success_probability()
        weights_Q = np.sqrt(p_Q * (1.0 - p_Q)) + self.exploration
        chosen = drawn(weights_Q, self._draws(ids, "prompts"), max(budget // lower, 1))
        keys = self._tie_keys(ids)[chosen]
        even = uniform(len(chosen), budget, lower=lower, upper=upper, estimator=self.estimator, tie_keys=keys)
        counts_Q = np.zeros(len(ids), dtype=np.int64)
        counts_Q[chosen] = even.counts
        counts_Q.setflags(write=False)
        return replace(even, counts=counts_Q)

    def _settings(self) -> State:
        return {**super()._settings(), "exploration": self.exploration, "forgetting": self.forgetting}


def drawn(weights_Q: FloatArray, uniform_Q: FloatArray, number: int) -> IntArray:
    """The rows of ``number`` prompts (all, if there are fewer), drawn one after another in proportion to the weights.

    ``uniform_Q``: [Q] numbers in [0, 1), one for each prompt: who would come first of exponential waiting times.
    """
    waits_Q = -np.log1p(-uniform_Q) / weights_Q
    return np.sort(np.argsort(waits_Q, kind="stable")[:number])


def whitened(values_N: FloatArray) -> FloatArray:
    """[N] less the mean, over the standard deviation; 0 where there is one value alone."""
    if len(values_N) < 2:
        return np.zeros_like(values_N)
    return np.asarray((values_N - values_N.mean()) / (values_N.std(ddof=1) + 1e-8), dtype=np.float64)


ENTRY = PlannerEntry(
    SPO,
    SPO.contract,
    candidates=16,
    estimator="shrinkage",
    row=Row(
        "success probability: a Beta tracker of each prompt, also its baseline",
        BEFORE,
        EXACT,
        "a prompt counts by how often it is drawn: `sqrt(p(1-p)) + .05` of the belief, without weights; whitening over "
        "the batch is one factor for all, up to 1/N",
        "arXiv 2509.13232; verl-recipe `spo`",
        "a constant forgets (.875), as the policy's change is not told; without offline rollouts a prompt starts at "
        "1/2; candidates twice the prompts drawn (paper 18 times)",
    ),
)
