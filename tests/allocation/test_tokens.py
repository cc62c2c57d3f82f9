"""The token budget: equal costs give the rollout split; the bound holds against enumeration; nothing is lost."""

import itertools
import math

import numpy as np
import pytest
from allocation_oracles import NAMES, objective, problems, weight
from hypothesis import assume, given
from hypothesis import strategies as st

from allotment.allocation import allocate_exact, allocate_tokens
from allotment.errors import InfeasibleBudgetError, InvalidInputError
from allotment.pricing import TablePrice

estimators = pytest.mark.parametrize("name", NAMES)


@st.composite
def token_problems(draw, max_prompts=4, max_room=5, cost=None):
    """(weights, budget, costs, lower, upper): whole costs, so that sums are exact, and a budget up to too large."""
    n_prompts = draw(st.integers(1, max_prompts))
    one = st.integers(1, 20) if cost is None else cost
    weights, costs = (np.array(draw(st.lists(s, min_size=n_prompts, max_size=n_prompts))) for s in (weight, one))
    lower = np.array(draw(st.lists(st.integers(3, 5), min_size=n_prompts, max_size=n_prompts)))
    upper = lower + draw(st.lists(st.integers(0, max_room), min_size=n_prompts, max_size=n_prompts))
    budget = draw(st.integers(math.ceil(costs @ lower), math.ceil(costs @ upper) + 5))
    return weights, budget, costs, lower, upper


def tokens(problem, name="rloo", **options):
    weights, budget, costs, lower, upper = problem
    return allocate_tokens(weights, budget, costs, lower=lower, upper=upper, estimator=name, **options)


def best_by_enumeration(problem, name):
    weights, budget, costs, lower, upper = problem
    every = itertools.product(*(range(low, high + 1) for low, high in zip(lower, upper, strict=True)))
    return min(objective(weights, n, name) for n in every if costs @ np.array(n) <= budget)


def test_worked_by_hand():
    """Gains of weight 0.24 from 3 rollouts on: .04, .02, .012. Per token of 2: .02, .01. Weight .06 at 1: .01, .005."""
    result = allocate_tokens([0.24, 0.06], 9 + 2, [2, 1], lower=3, upper=5)
    assert result.counts.tolist() == [4, 3]
    assert result.expected_tokens == result.token_budget == 11
    assert result.objective == result.lower_bound == pytest.approx(0.24 / 3 + 0.06 / 2)
    assert result.multiplier == pytest.approx((0.01, 0.02))
    assert result.is_certified
    assert result.uniform_objective == result.objective  # 3 and 3 cost 9, and the first by rank takes the 2 left


@estimators
@given(problem=problems(max_prompts=20, max_room=20), cost=st.floats(1e-3, 1e5), part=st.floats(0.01, 0.99))
def test_equal_costs_give_the_rollout_split(name, problem, cost, part):
    weights, budget, lower, upper = problem
    exact = allocate_exact(weights, budget, lower=lower, upper=upper, estimator=name, seed=3)
    result = tokens((weights, cost * (budget + part), np.full(len(weights), cost), lower, upper), name, seed=3)
    assert result.counts.tolist() == exact.counts.tolist()
    assert result.uniform_objective == exact.uniform_objective
    assert result.expected_tokens == pytest.approx(cost * budget)


@estimators
@given(problem=token_problems())
def test_the_optimum_lies_between_the_bound_and_the_objective(name, problem):
    result = tokens(problem, name)
    best = best_by_enumeration(problem, name)
    noise = 1e-12 * result.objective
    assert result.lower_bound <= best + noise
    assert best <= result.objective + noise
    assert result.objective == pytest.approx(objective(problem[0], result.counts, name))
    if result.is_certified:
        assert result.objective == pytest.approx(best, rel=1e-12, abs=0)


@estimators
@given(problem=token_problems(max_prompts=12, max_room=12, cost=st.floats(1, 1e4)))
def test_stays_within_budget_and_bounds_and_leaves_nothing_that_fits(name, problem):
    weights, budget, costs, lower, upper = problem
    result = tokens(problem, name)
    assert (lower <= result.counts).all()
    assert (result.counts <= upper).all()
    assert costs @ result.counts <= budget * (1 + 1e-9)
    left = budget * (1 - 1e-9) - costs @ result.counts
    assert not ((result.counts < upper) & (costs <= left)).any()
    largest = max(weights / 2)  # no gain of one rollout is larger: g(3) <= 1 / 2
    assert 0 <= result.gap <= largest


@given(problem=token_problems(max_prompts=12, max_room=12), data=st.data())
def test_the_bound_is_tight_where_the_budget_is_met(problem, data):
    """The budget that a prefix of the steps costs is met exactly, and the prefix is then proved optimal."""
    weights, _, costs, lower, upper = problem
    assume((weights > 0).all())
    price = data.draw(
        st.sampled_from([a / (n * (n - 1) * c) for a, c in zip(weights, costs, strict=True) for n in (3, 5)])
    )
    counts = np.array(
        [
            low + sum(a / (n * (n - 1) * c) > price for n in range(low, high))
            for a, c, low, high in zip(weights, costs, lower, upper, strict=True)
        ]
    )
    result = tokens((weights, int(costs @ counts), costs, lower, upper))
    assert result.gap == 0
    assert result.counts.tolist() == counts.tolist()


@given(problem=token_problems(max_prompts=8), random=st.randoms(use_true_random=False), scale=st.sampled_from([0.5, 4]))
def test_follows_the_prompts_and_the_unit_of_cost(problem, random, scale):
    weights, budget, costs, lower, upper = problem
    order = list(range(len(weights)))
    random.shuffle(order)
    keys = np.arange(len(weights)) * 7 % 11
    result = tokens(problem, tie_keys=keys)
    moved = tokens((weights[order], budget, costs[order], lower[order], upper[order]), tie_keys=keys[order])
    assert moved.counts.tolist() == result.counts[order].tolist()
    assert (
        tokens((weights, scale * budget, scale * costs, lower, upper), tie_keys=keys).counts.tolist()
        == result.counts.tolist()
    )


def test_any_convex_price():
    table = TablePrice(np.array([[9.0, 5.0, 2.0, 1.0], [9.0, 7.0, 6.0, 5.5]]), minimum_count=1)
    result = allocate_tokens(table, 37, [10, 4], lower=1, upper=4)
    assert result.counts.tolist() == [2, 4]  # gains per token .4 .3 .1, .5 .25 .125: .5, .4, skip .3, then what fits
    assert result.lower_bound == pytest.approx(5 + 7 - 0.3 * 9)


def test_a_budget_that_cannot_pay_names_the_least_that_can():
    with pytest.raises(InfeasibleBudgetError, match="at least 90 predicted tokens") as caught:
        allocate_tokens([0.1, 0.2], 89, [10, 20], lower=3)
    assert "fix:" in str(caught.value)
    assert allocate_tokens([0.1, 0.2], 90, [10, 20], lower=3).counts.tolist() == [3, 3]


@pytest.mark.parametrize("costs", [[0.0, 1.0], [1.0], [1.0, np.nan], [-1.0, 2.0], [[1.0, 2.0]]])
def test_refuses_costs_that_are_none(costs):
    with pytest.raises(InvalidInputError):
        allocate_tokens([0.1, 0.2], 100, costs)


@pytest.mark.parametrize("budget", [0, -1, np.inf, np.nan, "8", True, None])
def test_refuses_budgets_that_are_none(budget):
    with pytest.raises(InvalidInputError, match="token budget"):
        allocate_tokens([0.1, 0.2], budget, [1, 1])
