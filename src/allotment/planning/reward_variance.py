"""VIP for real-valued rewards: the variance of a prompt's reward is predicted, not its success probability."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from allotment.allocation import Limits, allocate_exact
from allotment.errors import InvalidInputError
from allotment.planning.contract import PlannerEntry
from allotment.planning.outcome import Outcome
from allotment.planning.planner import Common, Planner
from allotment.prediction import RecordedRewardVariance, RewardVarianceGaussianProcess
from allotment.prompts.embeddings import Embeddings
from allotment.registry import Row
from allotment.state import Stateful
from allotment.types import Plan, PromptId, PromptIds


class RewardVarianceVIP(Planner):
    """Least variance of the policy gradient for rewards that are not 0/1 (propositions E.1 and E.2).

    Its plans carry no posterior of success probabilities. The paper has no experiment with it.

    Args:
        embeddings: of all prompts, for the paper's prediction, a Gaussian process. Without any, variances are predicted
            from each prompt's own record and the level of all: :class:`~allotment.prediction.RecordedRewardVariance`.
        ids: [M] the prompt ids of the rows of ``embeddings``; 0..M-1 if None.
        gaussian_process: further settings of :class:`~allotment.prediction.RewardVarianceGaussianProcess`.
        common: ``budget``, ``bounds``, ``estimator``, ``seed`` of :class:`Planner`.

    Raises InvalidInputError as :class:`Planner`; or where ``ids`` or ``gaussian_process`` come without embeddings.
    """

    def __init__(
        self,
        *,
        embeddings: Embeddings | None = None,
        ids: PromptIds | None = None,
        gaussian_process: dict[str, Any] | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        self.predictor: RewardVarianceGaussianProcess | RecordedRewardVariance
        if embeddings is not None:
            self.predictor = RewardVarianceGaussianProcess(embeddings, ids=ids, **(gaussian_process or {}))
            return
        _refuse_without_embeddings(ids, gaussian_process)
        self.predictor = RecordedRewardVariance()

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
        variances_Q, rollouts_Q = outcome.reward_variance(), outcome.received
        known = np.isfinite(variances_Q)
        ids = [prompt for prompt, some in zip(outcome.prompt_ids, known, strict=True) if some]
        if not ids:
            return
        if isinstance(self.predictor, RecordedRewardVariance):
            self.predictor.observe_variance(ids, variances_Q[known], rollouts_Q[known])
        else:
            self.predictor.observe_variance(ids, variances_Q[known])


def _refuse_without_embeddings(ids: PromptIds | None, gaussian_process: dict[str, Any] | None) -> None:
    if ids is not None or gaussian_process is not None:
        raise InvalidInputError(
            "settings of a prediction from embeddings, and no embeddings",
            got=" and ".join(n for n, v in (("ids", ids), ("gaussian_process", gaussian_process)) if v is not None),
            allowed="with embeddings only",
            fix="give embeddings, or leave these out: variances are then predicted from each prompt's own record",
        )


ENTRY = PlannerEntry(
    RewardVarianceVIP,
    row=Row.before(
        "variance of the reward: own record and level of all; with embeddings the paper's Gaussian process",
        "arXiv 2602.01601, appendix E",
        "with embeddings none; without, the belief is ours. The paper has no experiment with it",
    ),
)
