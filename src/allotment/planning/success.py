"""What planners share that believe in success probabilities."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

from allotment.checks import check_setting
from allotment.planning.contract import Contract
from allotment.planning.outcome import Outcome
from allotment.planning.planner import Common, Planner
from allotment.prediction import GradientMoments, Predictor, default_predictor
from allotment.prediction.measured import ScoreVisit
from allotment.prediction.observed import RewardLevels
from allotment.pricing import get_estimator
from allotment.state import State, Stateful
from allotment.types import Allocation, FloatArray, IntArray, Plan, Posterior, PromptId

if TYPE_CHECKING:
    from allotment.pricing import ShrinkagePrice


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

    Raises:
        InvalidInputError: as :class:`Planner`; or the threshold is not finite.
    """

    def __init__(
        self, *, predictor: Predictor | None = None, success_threshold: float = 0.5, **common: Unpack[Common]
    ) -> None:
        super().__init__(**common)
        self.predictor: Predictor = self._usual_predictor() if predictor is None else predictor
        self.success_threshold = float(success_threshold)
        allowed = "the least reward that is a success, such as 0.5"  # else no reward would be one, or every one
        check_setting("success_threshold", success_threshold, math.isfinite(self.success_threshold), allowed)
        self.levels: RewardLevels | None = None
        """What failures and successes are worth, for an estimator that compares rewards with the belief."""
        if get_estimator(self.estimator).believes:
            self.levels = RewardLevels()

    def _usual_predictor(self) -> Predictor:
        """The library's default, without embeddings."""
        return default_predictor()

    moments: GradientMoments | None = None
    """The belief about scores, of planners that have one."""

    @property
    def contract(self) -> Contract:
        """With an estimator that believes, plans carry baselines."""
        return Contract(baselines=self.levels is not None)

    @abstractmethod
    def _allocate(self, ids: tuple[PromptId, ...], posterior: Posterior, budget: int) -> Allocation:
        """Split ``budget`` over the Q prompts."""

    @property
    def _parts(self) -> dict[str, Stateful]:
        return {"predictor": self.predictor} | ({} if self.levels is None else {"levels": self.levels})

    def _open(self, ids: tuple[PromptId, ...], budget: int) -> Plan:
        posterior = self.predictor.predict(ids)
        allocation = self._allocate(ids, posterior, budget)
        counts_Q, believed = allocation.counts, self._baselines(posterior, allocation.counts)
        return self._new_plan(ids, counts_Q, posterior=posterior, allocation=allocation, **believed)

    def _baselines(self, posterior: Posterior, counts_Q: IntArray) -> dict[str, FloatArray]:
        """Baselines and their shares, [Q] each, as a plan has them; nothing for an estimator without a belief."""
        if self.levels is None:
            return {}
        baselines_Q = self.levels.baseline(posterior.success_probability())
        return {"baselines": baselines_Q, "baseline_shares": self._shrinkage_price(posterior).shares(counts_Q)}

    def _shrinkage_price(self, posterior: Posterior) -> ShrinkagePrice:
        """The price with the spread of rewards among equally good rollouts, where they are not 0/1."""
        from allotment.pricing import ShrinkagePrice

        price = ShrinkagePrice.of(posterior)
        if self.levels is None:
            return price
        return replace(price, variance=price.variance + self.levels.spread(posterior.success_probability()))

    def _observe(self, outcome: Outcome) -> None:
        ids, rows_B = outcome.told()
        if self.levels is not None:
            self.predictor.predict(ids)  # raises where it would not observe them, before anything is learnt
            self.levels.observe(outcome.rewards_N, outcome.rewards_N >= self.success_threshold)
        self.predictor.observe(ids, outcome.successes(self.success_threshold)[rows_B], outcome.received[rows_B])

    def _observe_scores(self, moments: GradientMoments | None, outcome: Outcome) -> None:
        """Tell ``moments`` the scores of an outcome, where there are any."""
        if moments is None or outcome.scores_NK is None:
            return
        is_success_N = outcome.rewards_N >= self.success_threshold
        visit = ScoreVisit.of(outcome.prompt_ids, outcome.rows_N, is_success_N, outcome.scores_NK)
        self.predictor.predict(visit.ids)  # raises where it would not observe them, before anything is learnt
        moments.observe(visit)

    def _settings(self) -> State:
        return {**super()._settings(), "success_threshold": self.success_threshold}
