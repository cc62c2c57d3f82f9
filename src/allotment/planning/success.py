"""What planners share that believe in success probabilities."""

from __future__ import annotations

import math
from abc import abstractmethod

from allotment.errors import InvalidInputError
from allotment.planning.base import OneShotPlanner
from allotment.planning.ledger import Outcome
from allotment.prediction import Predictor, default_predictor
from allotment.state import State, Stateful
from allotment.types import Allocation, Posterior, PromptId


class SuccessPlanner(OneShotPlanner):
    """A one-shot planner that believes in success probabilities and learns from counts of successes.

    Args:
        budget: rollouts of a step, spent exactly.
        bounds: least and most rollouts of a prompt.
        estimator: ``"rloo"`` or ``"dr_grpo"``, the gradient estimator whose variance is priced.
        predictor: the belief; :func:`~allotment.prediction.default_predictor` without embeddings if None.
        success_threshold: a reward of at least this counts as a success; 0.5 fits rewards in {0, 1} and {-1, 1}.
        seed: breaks ties between prompts of equal price, differently at each step.

    Raises:
        InvalidInputError: as :class:`OneShotPlanner`; or the threshold is not finite.
    """

    def __init__(
        self,
        *,
        budget: int,
        bounds: tuple[int, int] = (3, 32),
        estimator: str = "rloo",
        predictor: Predictor | None = None,
        success_threshold: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(budget=budget, bounds=bounds, estimator=estimator, seed=seed)
        self.predictor: Predictor = default_predictor() if predictor is None else predictor
        self.success_threshold = float(success_threshold)
        if not math.isfinite(self.success_threshold):  # no reward, or every one, would be a success
            raise InvalidInputError(
                "the success threshold is not a finite number",
                got=success_threshold,
                allowed="the least reward that is a success",
                fix="0.5 for rewards in {0, 1} or {-1, 1}",
            )

    @abstractmethod
    def _allocate(self, ids: tuple[PromptId, ...], posterior: Posterior, budget: int) -> Allocation:
        """Split ``budget`` over the Q prompts."""

    @property
    def _belief(self) -> Stateful:
        return self.predictor

    def _decide(self, ids: tuple[PromptId, ...], budget: int) -> tuple[Allocation, Posterior]:
        posterior = self.predictor.predict(ids)
        return self._allocate(ids, posterior, budget), posterior

    def _observe(self, outcome: Outcome) -> None:
        told = outcome.received > 0
        ids = [prompt for prompt, some in zip(outcome.prompt_ids, told, strict=True) if some]
        successes = outcome.successes(self.success_threshold)
        self.predictor.observe(ids, successes[told], outcome.received[told])

    def _settings(self) -> State:
        return {**super()._settings(), "success_threshold": self.success_threshold}
