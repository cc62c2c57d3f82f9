"""Figures of a step, worked out by hand."""

import numpy as np
import pytest

from allotment import VIP
from allotment.planning import RewardVarianceVIP
from allotment.run_logs.figures import step_figures


def told(planner, rewards):
    """The plan of the next step, and what came of it; the rewards of each prompt by its id."""
    plan = planner.ask(list(rewards))
    groups = plan.group_ids()
    left = {prompt: list(values) for prompt, values in rewards.items()}
    return plan, planner.tell(plan, [left[g].pop(0) for g in groups], groups)


def ratio(plan, outcome):
    return step_figures(plan, 2, outcome, 0.5, "rloo")["realised_variance_ratio"]


def uneven(planner):
    """After a step that showed that ``a`` varies and ``b`` does not: more rollouts for ``a``."""
    told(planner, {"a": [0.0, 1.0] * 8, "b": [1.0] * 16})
    return planner


def test_the_realised_ratio_of_successes():
    plan, outcome = told(uneven(VIP(budget=16, bounds=(3, 13))), {"a": [1.0, 0.0] * 8, "b": [1.0, 1.0, 0.0] * 5})
    (n, m), (k, j) = plan.counts, outcome.successes(0.5)
    assert n > m
    v = [c * (size - c) / (size * (size - 1)) for c, size in ((k, n), (j, m))]
    assert ratio(plan, outcome) == pytest.approx((v[0] / (n - 1) + v[1] / (m - 1)) / (sum(v) / 7))


def test_the_realised_ratio_is_that_of_the_rewards_whatever_their_size():
    """None of these is a success, and all differ."""
    planner = uneven(RewardVarianceVIP(budget=16, bounds=(3, 13)))
    rewards = {"a": np.linspace(-30.0, -1.0, 16), "b": np.linspace(-1.0, 0.0, 16)}
    plan, outcome = told(planner, rewards)
    n, m = plan.counts
    v = rewards["a"][:n].var(ddof=1), rewards["b"][:m].var(ddof=1)
    assert ratio(plan, outcome) == pytest.approx((v[0] / (n - 1) + v[1] / (m - 1)) / ((v[0] + v[1]) / 7))
    assert ratio(plan, outcome) < 1
