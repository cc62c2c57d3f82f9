"""VIP for real-valued rewards: the variance of a prompt's reward is predicted, not its success probability."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from allotment.allocation import Limits, allocate_exact
from allotment.planning.contract import PlannerEntry
from allotment.planning.outcome import Outcome
from allotment.planning.planner import Common, Planner
from allotment.prediction import RewardVarianceGaussianProcess
from allotment.prompts.embeddings import Embeddings
from allotment.registry import Row
from allotment.state import Stateful
from allotment.types import Plan, PromptId, PromptIds


class RewardVarianceVIP(Planner):
    """Least variance of the policy gradient for rewards that are not 0/1 (propositions E.1 and E.2).

    The paper has no experiment with it. Its plans carry no posterior of success probabilities. ``embeddings``, ``ids``
    and the further settings ``gaussian_process`` are those of
    :class:`~allotment.prediction.RewardVarianceGaussianProcess`, the others those of :class:`Planner`.
    """

    def __init__(
        self,
        *,
        embeddings: Embeddings,
        ids: PromptIds | None = None,
        gaussian_process: dict[str, Any] | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        self.predictor = RewardVarianceGaussianProcess(embeddings, ids=ids, **(gaussian_process or {}))

    @property
    def _parts(self) -> dict[str, Stateful]:
        return {"predictor": self.predictor}

    def _open(self, ids: tuple[PromptId, ...], budget: int) -> Plan:
        (lower, upper), keys = self.bounds, self._tie_keys(ids)
        limits: Limits = {"lower": lower, "upper": upper, "estimator": self.estimator, "tie_keys": keys}
        allocation = allocate_exact(self.predictor.predict_variance(ids), budget, **limits)
        return self._new_plan(ids, allocation.counts, allocation=allocation)

    def _observe(self, outcome: Outcome) -> None:
        """Prompts with a single reward say nothing of its variance and are left out."""
        variances_Q = outcome.reward_variance()
        known = np.isfinite(variances_Q)
        ids = [prompt for prompt, some in zip(outcome.prompt_ids, known, strict=True) if some]
        if ids:
            self.predictor.observe_variance(ids, variances_Q[known])


ENTRY = PlannerEntry(
    RewardVarianceVIP,
    needs=("embeddings",),
    row=Row.before(
        "variance of the reward: Gaussian process on embeddings",
        "arXiv 2602.01601, appendix E",
        "none; the paper has no experiment with it",
    ),
)
