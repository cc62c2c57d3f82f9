"""Planners to compare with: uniform, and the paper's two heuristic allocations."""

from __future__ import annotations

from collections.abc import Callable

from allotment.allocation import inverse_accuracy, inverse_variance, uniform
from allotment.planning.success import SuccessPlanner
from allotment.pricing import posterior_weights
from allotment.types import Allocation, FloatArray, Posterior, PromptId


class _Baseline(SuccessPlanner):
    """A planner whose counts come from a rule other than least variance; it still predicts, for the log."""

    def _split(
        self, rule: Callable[..., Allocation], values_Q: FloatArray, ids: tuple[PromptId, ...], budget: int
    ) -> Allocation:
        lower, upper = self.bounds
        return rule(values_Q, budget, lower=lower, upper=upper, estimator=self.estimator, tie_keys=self._tie_keys(ids))


class Uniform(_Baseline):
    """The same number of rollouts for every prompt; a remainder goes to prompts drawn anew at each step."""

    def _allocate(self, ids: tuple[PromptId, ...], posterior: Posterior, budget: int) -> Allocation:
        return self._split(uniform, posterior_weights(posterior), ids, budget)


class InverseAccuracy(_Baseline):
    """Rollouts in proportion to ``1 - p`` (VIP appendix C.1): more for hard prompts."""

    def _allocate(self, ids: tuple[PromptId, ...], posterior: Posterior, budget: int) -> Allocation:
        return self._split(inverse_accuracy, posterior.success_probability(), ids, budget)


class InverseVariance(_Baseline):
    """Rollouts in proportion to ``1 / (p (1 - p))`` (VIP appendix C.1): the opposite of what theory asks."""

    def _allocate(self, ids: tuple[PromptId, ...], posterior: Posterior, budget: int) -> Allocation:
        return self._split(inverse_variance, posterior.success_probability(), ids, budget)
