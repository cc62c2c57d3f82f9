"""Planners to compare with: even and inverse splits, and the oracle that is told the success probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import logit

from allotment.allocation import Limits, inverse_accuracy, inverse_variance, uniform
from allotment.planning.contract import PlannerEntry
from allotment.planning.success import SuccessPlanner
from allotment.planning.vip import VIP
from allotment.pricing import posterior_weights
from allotment.prompts.ids import canonical_ids
from allotment.registry import UNBIASED, Row
from allotment.state import State
from allotment.types import Allocation, FloatArray, Posterior, PromptId, PromptIds

SuccessProbability = Callable[[tuple[PromptId, ...]], FloatArray]


class _Baseline(SuccessPlanner):
    """A planner whose counts come from a rule other than least variance; it still predicts, for the log."""

    BELIEVES = True
    RULE: Callable[..., Allocation]

    def _values(self, posterior: Posterior) -> FloatArray:
        """[Q] what the rule takes of each prompt."""
        return posterior.success_probability()

    def _allocate(self, ids: tuple[PromptId, ...], posterior: Posterior, budget: int) -> Allocation:
        (lower, upper), keys = self.bounds, self._tie_keys(ids)
        limits: Limits = {"lower": lower, "upper": upper, "estimator": self.estimator, "tie_keys": keys}
        return type(self).RULE(self._values(posterior), budget, **limits)


class Uniform(_Baseline):
    """The same number of rollouts for every prompt; a remainder goes to prompts drawn anew at each step."""

    RULE = uniform

    def _values(self, posterior: Posterior) -> FloatArray:
        return posterior_weights(posterior)


class InverseAccuracy(_Baseline):
    """Rollouts in proportion to ``1 - p`` (VIP appendix C.1): more for hard prompts."""

    RULE = inverse_accuracy


class InverseVariance(_Baseline):
    """Rollouts in proportion to ``1 / (p (1 - p))`` (VIP appendix C.1): the opposite of what theory asks."""

    RULE = inverse_variance


class Oracle:
    """A predictor that knows: ``success_probability`` of prompts by id, [Q], as they are when it is called."""

    def __init__(self, success_probability: SuccessProbability) -> None:
        self._success_probability = success_probability

    def predict(self, ids: PromptIds) -> Posterior:
        """The exact success probability of each prompt, without uncertainty; [Q]."""
        p_Q = self._success_probability(canonical_ids(ids, unique=False))
        mean_Q = logit(np.clip(p_Q, 1e-9, 1 - 1e-9))
        return Posterior(mean_Q, np.zeros_like(mean_Q))

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """Nothing to learn."""

    def state_dict(self) -> State:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Nothing to restore."""


def oracle(*, success_probability: SuccessProbability, success_threshold: float = 0.5, **settings: Any) -> VIP:
    """VIP that knows every success probability: the bound of what prediction can bring."""
    return VIP(predictor=Oracle(success_probability), success_threshold=success_threshold, **settings)


UNIFORM = PlannerEntry(
    Uniform,
    row=Row.before(
        "nothing (a belief is kept for the log)",
        "the baseline of every paper here",
        "a remainder goes to prompts drawn anew at each step",
        optimises=UNBIASED,
    ),
)
INVERSE_ACCURACY, INVERSE_VARIANCE = (
    PlannerEntry(
        kind, row=Row.before("success probability", "arXiv 2602.01601, appendix C.1", "the predictor is that of `vip`")
    )
    for kind in (InverseAccuracy, InverseVariance)
)
ORACLE = PlannerEntry(oracle, needs=("success_probability",))
