"""The exact allocator: optimal by independent oracles, certified, nested, equivariant."""

import numpy as np
import pytest
from allocation_oracles import NAMES, best_by_dynamic_programming, exact_objective, greedy_by_heap, objective, problems
from allocation_oracles import G as VARIANCE
from hypothesis import assume, given
from hypothesis import strategies as st

from allotment.allocation import Problem, allocate, allocate_exact, uniform
from allotment.errors import InvalidInputError
from allotment.pricing import TablePrice

estimators = pytest.mark.parametrize("name", NAMES)


def exact(problem, name="rloo", **options):
    weights, budget, lower, upper = problem
    return allocate_exact(weights, budget, lower=lower, upper=upper, estimator=name, **options)


def test_more_variance_gets_more_rollouts():
    result = allocate_exact([0.25, 0.0, 0.09], 30, lower=3, upper=32)
    assert result.counts.tolist() == [17, 3, 10]
    assert result.objective == pytest.approx(0.25 / 16 + 0.09 / 9)
    assert result.uniform_objective == pytest.approx(0.34 / 9)
    assert result.multiplier == pytest.approx((0.09 / (10 * 9), 0.25 / (16 * 15)))
    assert not result.counts.flags.writeable


@estimators
@given(problem=problems())
def test_is_the_optimum_of_dynamic_programming(name, problem):
    weights, budget, lower, upper = problem
    best = best_by_dynamic_programming(lambda q, n: weights[q] * VARIANCE[name](n), lower, upper, budget)
    result = exact(problem, name)
    assert objective(weights, result.counts, name) == pytest.approx(best, rel=1e-12, abs=0)
    assert result.objective == pytest.approx(best, rel=1e-12, abs=0)


@estimators
@given(problem=problems(max_prompts=30, max_room=30))
def test_is_greedy_by_heap_count_for_count(name, problem):
    weights, budget, lower, upper = problem
    assert exact(problem, name).counts.tolist() == greedy_by_heap(weights, budget, lower, upper, name)


@st.composite
def convex_tables(draw):
    """Integer costs with many ties: rows are sums of falling integer gains, so all arithmetic is exact."""
    n_prompts, room = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    row = st.lists(st.integers(0, 6), min_size=room, max_size=room)
    gains = np.array([sorted(draw(row), reverse=True) for _ in range(n_prompts)])
    costs = 100.0 - np.concatenate([np.zeros((n_prompts, 1)), np.cumsum(gains, axis=1)], axis=1)
    return costs, draw(st.integers(n_prompts, n_prompts * (room + 1)))


@given(table=convex_tables())
def test_any_convex_price_is_optimal(table):
    costs, budget = table
    n_prompts, upper = costs.shape
    best = best_by_dynamic_programming(lambda q, n: costs[q, n - 1], [1] * n_prompts, [upper] * n_prompts, budget)
    result = allocate_exact(TablePrice(costs, minimum_count=1), budget, lower=1, upper=upper)
    assert result.objective == best
    assert result.is_certified
    assert result.budget == budget


def test_where_the_released_solver_is_not_optimal():
    p = np.array([0.01, 0.1, 0.2, 0.4, 0.5, 1, 1, 1])
    costs = (p * (1 - p))[:, None] / np.arange(4, 13)  # the released code's objective, sum p (1 - p) / n
    result = allocate_exact(TablePrice(costs, minimum_count=4), 64, lower=4, upper=12)
    assert result.counts.tolist() == [4, 12, 12, 12, 12, 4, 4, 4]
    released = np.array([5, 11, 12, 12, 12, 4, 4, 4])
    assert result.objective < (p * (1 - p) / released).sum()


@estimators
@given(problem=problems(), data=st.data())
def test_certificate_holds_at_the_optimum_and_only_there(name, problem, data):
    weights, budget, lower, upper = problem
    result = exact(problem, name)
    assert result.is_certified
    checked = Problem.of(weights, budget, lower=lower, upper=upper, estimator=name, tie_keys=None, seed=None)
    rising = [q for q in range(len(weights)) if result.counts[q] < upper[q]]
    falling = [q for q in range(len(weights)) if result.counts[q] > lower[q]]
    assume(rising and falling)
    moved = result.counts.copy()
    moved[data.draw(st.sampled_from(rising))] += 1
    moved[data.draw(st.sampled_from(falling))] -= 1
    other = checked.allocation(moved)
    worse = exact_objective(weights, moved, name) / exact_objective(weights, result.counts, name) if any(weights) else 1
    if other.is_certified:
        assert worse <= 1 + 1e-12
    elif other.multiplier[0] > other.multiplier[1] * (1 + 1e-9):
        assert worse > 1


def test_certificate_of_a_worse_split_fails():
    checked = Problem.of([0.25, 0.0], 12, lower=3, upper=9, estimator="rloo", tie_keys=None, seed=None)
    assert checked.allocation(np.array([9, 3])).is_certified
    assert not checked.allocation(np.array([8, 4])).is_certified


@estimators
@given(problem=problems(max_prompts=10), seed=st.one_of(st.none(), st.integers(0, 9)))
def test_optima_are_nested(name, problem, seed):
    weights, budget, lower, upper = problem
    assume(budget < sum(upper))
    more = exact((weights, budget + 1, lower, upper), name, seed=seed)
    step = more.counts - exact(problem, name, seed=seed).counts
    assert sorted(step)[-1] == 1
    assert sorted(step)[:-1] == [0] * (len(step) - 1)


@estimators
@given(problem=problems(max_prompts=10), power=st.integers(-60, 60))
def test_scale_of_the_weights_does_not_matter(name, problem, power):
    weights, budget, lower, upper = problem
    scaled = exact(([a * 2.0**power for a in weights], budget, lower, upper), name)
    assert scaled.counts.tolist() == exact(problem, name).counts.tolist()
    assert scaled.objective == pytest.approx(exact(problem, name).objective * 2.0**power, rel=1e-12)


@estimators
@given(problem=problems(max_prompts=10), data=st.data())
def test_counts_follow_the_prompts_when_keys_break_ties(name, problem, data):
    weights, budget, lower, upper = problem
    keys = [f"prompt-{q}" for q in range(len(weights))]
    order = data.draw(st.permutations(range(len(weights))))
    original = exact(problem, name, tie_keys=keys).counts
    shuffled = exact(
        ([weights[q] for q in order], budget, [lower[q] for q in order], [upper[q] for q in order]),
        name,
        tie_keys=[keys[q] for q in order],
    ).counts
    assert shuffled.tolist() == original[list(order)].tolist()


@estimators
@given(sixty_fourths=st.lists(st.integers(0, 64), min_size=1, max_size=12), data=st.data())
def test_failure_counts_like_success(name, sixty_fourths, data):
    p = np.array(sixty_fourths) / 64
    budget = data.draw(st.integers(3 * len(p), 20 * len(p)))
    left = allocate(p, budget, upper=20, estimator=name)
    right = allocate(1 - p, budget, upper=20, estimator=name)
    assert left.counts.tolist() == right.counts.tolist()


@estimators
@given(problem=problems(max_prompts=10))
def test_never_worse_than_uniform(name, problem):
    weights, budget, lower, upper = problem
    result = exact(problem, name)
    even = uniform(weights, budget, lower=lower, upper=upper, estimator=name)
    assert result.uniform_objective == even.objective
    assert result.objective <= even.objective * (1 + 1e-12)


@given(problem=problems(max_prompts=12))
def test_without_any_variance_the_budget_is_spent_evenly(problem):
    weights, budget, lower, upper = problem
    result = exact(([0.0] * len(weights), budget, lower, upper))
    assert result.counts.tolist() == uniform(len(weights), budget, lower=lower, upper=upper).counts.tolist()
    assert result.objective == 0.0
    assert result.budget == budget


def test_ties_by_position_key_and_seed():
    assert allocate_exact([0.2] * 4, 18).counts.tolist() == [5, 5, 4, 4]
    assert allocate_exact([0.2] * 4, 18, tie_keys=[3, 2, 1, 0]).counts.tolist() == [4, 4, 5, 5]
    by_seed = {tuple(allocate_exact([0.2] * 4, 18, seed=seed).counts) for seed in range(40)}
    assert len(by_seed) == 6  # every pair of prompts gets its turn
    assert (
        allocate_exact([0.2] * 4, 18, seed=7).counts.tolist() == allocate_exact([0.2] * 4, 18, seed=7).counts.tolist()
    )


def test_equal_gains_go_to_fewer_rollouts_first():
    costs = np.array([[8.0, 7, 6, 5], [8.0, 7, 6, 5]])
    result = allocate_exact(TablePrice(costs, minimum_count=3), 10, lower=[4, 3], upper=6, tie_keys=[0, 1])
    assert result.counts.tolist() == [5, 5]
    assert allocate_exact(TablePrice(costs, 3), 8, lower=[4, 3], upper=6).counts.tolist() == [4, 4]


def test_rounding_noise_of_a_table_is_forgiven_but_no_more():
    costs = 0.3 - 0.1 * np.arange(8)[None, :]
    assert (np.diff(-np.diff(costs)) > 0).any()  # linear, but not in floating point
    assert allocate_exact(TablePrice(np.repeat(costs, 2, axis=0), 3), 12, upper=10).counts.tolist() == [6, 6]


@pytest.mark.parametrize(
    "costs",
    [
        [[9.0, 8.0, 6.0, 5.0]],  # gains 1, 2, 1
        [[9.0, 8.0, 8.5, 9.0]],  # rises
        [[9.0, 8.0, np.nan, 5.0]],
        [[np.inf, 8.0, 7.0, 6.0]],
    ],
)
def test_price_that_is_not_convex_and_falling_is_refused(costs):
    rows = [[9.0, 8.0, 7.0, 6.0], *costs]
    with pytest.raises(InvalidInputError, match=r"price of prompt 1 is not convex"):
        allocate_exact(TablePrice(np.array(rows), minimum_count=3), 9, lower=3, upper=6)


def test_price_is_checked_within_its_own_bounds_only():
    costs = np.array([[9.0, 8.0, 6.0, np.nan], [9.0, 8.0, 7.0, 6.5]])  # prompt 0: gains 1, 2, NaN
    above = allocate_exact(TablePrice(costs, minimum_count=3), 9, lower=[4, 3], upper=[5, 6])
    assert above.counts.tolist() == [5, 4]
    below = allocate_exact(TablePrice(costs, minimum_count=3), 9, lower=3, upper=[4, 6])
    assert below.counts.tolist() == [4, 5]
    with pytest.raises(InvalidInputError, match=r"(?s)prompt 0 is not convex.*gain 2 from 4 to 5 rollouts, after 1 "):
        allocate_exact(TablePrice(costs, minimum_count=3), 9, lower=3, upper=[5, 6])
