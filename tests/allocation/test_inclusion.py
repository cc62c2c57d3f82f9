"""Inclusion probabilities against a general solver and brute force; systematic sampling."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from allotment.allocation.inclusion import inclusion, systematic, with_sum
from allotment.errors import InvalidInputError
from allotment.pricing import ShrinkagePrice

LEAST = 1 / 16


def objective(probabilities, between, variances):
    return float(((between + variances) / probabilities).sum())


def solved(price, between, budget, bounds, costs, prompt_cost):
    """The optimum over every vector of counts, and for each over the probabilities by a general solver."""
    m, best = len(price), np.inf
    for counts in itertools.product(range(bounds[0], bounds[1] + 1), repeat=m):
        whole = np.array(counts) * costs + prompt_cost
        if whole.sum() * LEAST > budget or whole.sum() < budget:
            continue
        variances = price.cost(np.array(counts))
        start = np.full(m, budget / whole.sum())
        found = minimize(
            lambda x, v=variances: objective(x, between, v),
            start,
            jac=lambda x, v=variances: -(between + v) / x**2,
            bounds=[(LEAST, 1.0)] * m,
            constraints={"type": "eq", "fun": lambda x, w=whole: x @ w - budget, "jac": lambda _, w=whole: w},
            method="SLSQP",
            options={"maxiter": 200, "ftol": 1e-12},
        )
        if found.success:
            best = min(best, found.fun)
    return best


@pytest.mark.parametrize("seed", range(8))
def test_it_is_what_a_general_solver_finds(seed):
    """Where whole counts leave the budget short or over at a multiplier, both are scaled to the same expected cost."""
    random = np.random.default_rng(seed)
    m = 4
    a, v = random.uniform(0, 0.25, m), random.uniform(0, 0.05, m)
    price, between = ShrinkagePrice(a, v), 1.5 * a**2
    costs, prompt_cost = (1.0, 0.0) if seed % 2 else (random.uniform(0.5, 2, m), random.uniform(0, 3, m))
    found = inclusion(price, between, 3.0, bounds=(1, 4), least=LEAST, costs=costs, prompt_cost=prompt_cost)
    spent = float((found.probabilities * (found.counts * costs + prompt_cost)).sum())
    assert spent == pytest.approx(3.0, abs=1e-6)
    own = objective(found.probabilities, between, price.cost(found.counts))
    assert own == pytest.approx(solved(price, between, 3.0, (1, 4), costs, prompt_cost), rel=1e-3)


def test_the_counts_do_not_depend_on_the_budget_inside_the_bounds():
    a = np.array([0.05, 0.1, 0.2, 0.25])
    price = ShrinkagePrice(a, np.full(4, 0.01))
    some, more = (inclusion(price, 1.5 * a**2, c, bounds=(1, 8), least=0.01).counts for c in (1.0, 1.3))
    assert some.tolist() == more.tolist()


def test_equal_counts_give_the_square_root_rule():
    a = np.array([0.02, 0.1, 0.2, 0.25])
    price, between = ShrinkagePrice(a, np.zeros(4)), 1.5 * a**2
    found = inclusion(price, between, 4.0, bounds=(2, 2), least=0.01)
    roots = np.sqrt(between + a / 2)
    assert found.probabilities == pytest.approx(2.0 * roots / roots.sum())


@given(st.lists(st.floats(0.05, 1), min_size=3, max_size=12), st.integers(0, 1000))
def test_a_sum_is_reached_within_the_bounds(values, seed):
    values = np.array(values)
    number = int(np.random.default_rng(seed).integers(1, len(values) + 1))
    scaled = with_sum(values, number, 0.02)
    assert scaled.sum() == pytest.approx(number, abs=1e-9)
    assert ((scaled >= 0.02) & (scaled <= 1)).all()


def test_systematic_sampling_draws_each_with_its_probability_and_a_fixed_number():
    random = np.random.default_rng(0)
    chances = with_sum(random.random(15) + 0.05, 6, 0.05)
    draws = [systematic(chances, random.permutation(15), random.random()) for _ in range(20_000)]
    assert {int(d.sum()) for d in draws} == {6}
    se = np.sqrt(chances * (1 - chances) / len(draws)) + 1e-12
    assert (np.abs(np.mean(draws, axis=0) - chances) <= 4.5 * se).all()


def test_a_prompt_that_is_certain_is_always_drawn():
    random = np.random.default_rng(0)
    chances = np.array([1.0, 0.5, 0.5, 1.0])
    draws = [systematic(chances, random.permutation(4), random.random()) for _ in range(500)]
    assert np.mean(draws, axis=0)[[0, 3]].tolist() == [1.0, 1.0]


def test_bounds_that_the_price_does_not_allow():
    with pytest.raises(InvalidInputError, match="1 <= lower"):
        inclusion(ShrinkagePrice(np.ones(2), np.ones(2)), np.ones(2), 2.0, bounds=(0, 4), least=0.1)
