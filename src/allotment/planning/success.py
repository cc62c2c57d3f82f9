"""What planners share that believe in success probabilities."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Unpack

import numpy as np
import numpy.typing as npt

from allotment.checks import check_setting
from allotment.planning.contract import Contract
from allotment.planning.gradient_size import GradientSize
from allotment.planning.outcome import Outcome
from allotment.planning.planner import Common, Planner
from allotment.planning.score_weighted import ScoreWeighted
from allotment.planning.shrinkage import Shrinkage
from allotment.prediction import GradientMoments, Predictor, default_predictor
from allotment.prediction.measured import ScoreVisit
from allotment.pricing import get_estimator
from allotment.state import State, Stateful
from allotment.types import Allocation, FloatArray, IntArray, Plan, Posterior, PromptId


class SuccessSettings(Common, total=False):
    """The settings of :class:`SuccessPlanner`, for the constructors of its subclasses."""

    predictor: Predictor | None
    success_threshold: float


class SuccessPlanner(Planner):
    """A planner that believes in success probabilities and learns from counts of successes.

    Args:
        predictor: the belief; :meth:`_usual_predictor` if None.
        success_threshold: a reward of at least this counts as a success; 0.5 fits rewards in {0, 1} and {-1, 1}.
        common: ``budget``, ``bounds``, ``estimator``, ``seed`` of :class:`Planner`.

    Raises InvalidInputError as :class:`Planner`; or where the threshold is not finite.
    """

    def __init__(
        self, *, predictor: Predictor | None = None, success_threshold: float = 0.5, **common: Unpack[Common]
    ) -> None:
        super().__init__(**common)
        self.predictor: Predictor = self._usual_predictor() if predictor is None else predictor
        self.success_threshold = float(success_threshold)
        allowed = "the least reward that is a success, such as 0.5"  # else no reward would be one, or every one
        check_setting("success_threshold", success_threshold, math.isfinite(self.success_threshold), allowed)
        self.shrinkage = Shrinkage() if get_estimator(self.estimator).believes else None
        """For an estimator that compares rewards with the belief."""
        self.score_parts: list[GradientSize | ScoreWeighted] = []
        """What learns from scores and the belief before the step."""

    def _usual_predictor(self) -> Predictor:
        """The library's default, without embeddings."""
        return default_predictor()

    moments: GradientMoments | None = None
    """The belief about scores, of planners that have one."""

    @property
    def contract(self) -> Contract:
        """With an estimator that believes, plans carry baselines."""
        return Contract(baselines=self.shrinkage is not None)

    @abstractmethod
    def _allocate(self, ids: tuple[PromptId, ...], posterior: Posterior, budget: int) -> Allocation:
        """Split ``budget`` over the Q prompts."""

    @property
    def _parts(self) -> dict[str, Stateful]:
        return {"predictor": self.predictor} | ({} if self.shrinkage is None else {"shrinkage": self.shrinkage})

    def _open(self, ids: tuple[PromptId, ...], budget: int) -> Plan:
        posterior = self.predictor.predict(ids)
        allocation = self._allocate(ids, posterior, budget)
        believed = {} if self.shrinkage is None else self.shrinkage.of_plan(posterior, allocation.counts)
        return self._new_plan(ids, allocation.counts, posterior=posterior, allocation=allocation, **believed)

    def _observe(self, outcome: Outcome) -> None:
        (ids, rows_B), is_success_N = outcome.told(), outcome.rewards_N >= self.success_threshold
        if outcome.scores_NK is not None:
            self.learn_scores(outcome.prompt_ids, outcome.rows_N, is_success_N, outcome.scores_NK)
        self.predictor.observe(ids, outcome.successes(self.success_threshold)[rows_B], outcome.received[rows_B])
        if self.shrinkage is not None:
            self.shrinkage.observe(outcome.rewards_N, is_success_N)

    def learn_scores(
        self, ids: tuple[PromptId, ...], rows_N: IntArray, is_success_N: npt.NDArray[np.bool_], scores_NK: FloatArray
    ) -> None:
        """Learn from scores [N, K], before the predictor learns from the rewards of the same rollouts; raises what it
        does about prompts that it does not know, before anything is learnt.
        """
        belief = self.predictor.predict(ids)
        for part in self.score_parts:
            part.observe(belief, is_success_N.astype(np.float64), rows_N, scores_NK)
        if self.moments is not None:
            self.moments.observe(ScoreVisit.of(ids, rows_N, is_success_N, scores_NK))

    def _settings(self) -> State:
        return {**super()._settings(), "success_threshold": self.success_threshold}
