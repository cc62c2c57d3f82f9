"""VIP for real-valued rewards: the weight of a prompt is the predicted variance of its reward (VIP appendix E)."""

from __future__ import annotations

from typing import Any

import numpy as np

from allotment.allocation import allocate_exact
from allotment.planning.base import OneShotPlanner
from allotment.planning.ledger import Outcome
from allotment.prediction import RewardVarianceGaussianProcess
from allotment.prompts.embeddings import Embeddings
from allotment.state import Stateful
from allotment.types import Allocation, Posterior, PromptId, PromptIds


class RewardVarianceVIP(OneShotPlanner):
    """Least variance of the policy gradient for rewards that are not 0/1 (propositions E.1 and E.2).

    The paper has no experiment with it. Its plans carry no posterior of success probabilities.

    Args:
        budget: rollouts of a step, spent exactly.
        embeddings: of all prompts, see :class:`~allotment.prediction.RewardVarianceGaussianProcess`.
        ids: the prompt ids of ``embeddings``.
        bounds: least and most rollouts of a prompt.
        estimator: ``"rloo"`` or ``"dr_grpo"``.
        seed: breaks ties between prompts of equal price, differently at each step.
        gaussian_process: further settings of the Gaussian process.
    """

    def __init__(
        self,
        *,
        budget: int,
        embeddings: Embeddings,
        ids: PromptIds | None = None,
        bounds: tuple[int, int] = (3, 32),
        estimator: str = "rloo",
        seed: int = 0,
        **gaussian_process: Any,
    ) -> None:
        super().__init__(budget=budget, bounds=bounds, estimator=estimator, seed=seed)
        self.predictor = RewardVarianceGaussianProcess(embeddings, ids=ids, **gaussian_process)

    @property
    def _belief(self) -> Stateful:
        return self.predictor

    def _decide(self, ids: tuple[PromptId, ...], budget: int) -> tuple[Allocation, Posterior | None]:
        lower, upper = self.bounds
        weights_Q = self.predictor.predict_variance(ids)
        keys = self._tie_keys(ids)
        allocation = allocate_exact(
            weights_Q, budget, lower=lower, upper=upper, estimator=self.estimator, tie_keys=keys
        )
        return allocation, None

    def _observe(self, outcome: Outcome) -> None:
        """Prompts with a single reward say nothing of its variance and are left out."""
        variances_Q = outcome.reward_variance()
        known = np.isfinite(variances_Q)
        ids = [prompt for prompt, some in zip(outcome.prompt_ids, known, strict=True) if some]
        if ids:
            self.predictor.observe_variance(ids, variances_Q[known])
