"""The paper's theorems and its rounding."""

import cvxpy
import numpy as np
import pytest
from allocation_oracles import NAMES, exact_objective, objective, problems
from hypothesis import given
from hypothesis import strategies as st

from allotment.allocation import allocate_exact, allocate_relaxed, relaxed_counts
from allotment.allocation.relaxed import CLOSED_FORMS
from allotment.pricing import DR_GRPO, RLOO

estimators = pytest.mark.parametrize("name", NAMES)
SLOPE = {"rloo": lambda n: 1 / (n - 1) ** 2, "dr_grpo": lambda n: (n - 2) / n**3}
GOLDEN = {
    "rloo": [4.00, 11.09, 14.75, 17.18, 18.89, 20.07, 20.82, 21.18],
    "dr_grpo": [4.00, 10.18, 14.36, 17.12, 19.06, 20.39, 21.24, 21.65],
}


@estimators
def test_golden_vector_of_sixteen_prompts(name):
    p = np.arange(16) / 15
    result = relaxed_counts(p * (1 - p), 256, lower=4, upper=32, estimator=name)
    np.testing.assert_allclose(result.counts, GOLDEN[name] + GOLDEN[name][::-1], atol=0.005)


@pytest.mark.parametrize(("a", "multiplier", "n"), [(0.25, 0.001, 14.69617), (0.1, 0.0005, 13.00976), (0.27, 0.01, 3)])
def test_cubic_root(a, multiplier, n):
    ratio = np.array([a / multiplier])
    root = CLOSED_FORMS[DR_GRPO](ratio)[0]
    assert root == pytest.approx(n, abs=1e-5)
    assert root**3 - ratio[0] * root + 2 * ratio[0] == pytest.approx(0, abs=1e-9)


def test_rloo_root():
    assert CLOSED_FORMS[RLOO](np.array([4.0])).tolist() == [3.0]


@estimators
@given(problem=problems(max_prompts=30, max_room=30))
def test_conditions_of_optimality(name, problem):
    weights, budget, lower, upper = problem
    result = relaxed_counts(weights, budget, lower=lower, upper=upper, estimator=name)
    assert result.counts.sum() == pytest.approx(budget, rel=1e-9)
    assert (result.counts >= lower).all()
    assert (result.counts <= upper).all()
    for a, n, low, high in zip(weights, result.counts, lower, upper, strict=True):
        slope = a * SLOPE[name](n)
        if n > low:
            assert slope >= result.multiplier * (1 - 1e-6)
        if n < high:
            assert slope <= result.multiplier * (1 + 1e-6)


@estimators
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_a_convex_solver(name, seed):
    rng = np.random.default_rng(seed)
    weights, lower = rng.beta(1, 3, size=12), rng.integers(3, 6, size=12)
    upper = lower + rng.integers(1, 20, size=12)
    budget = int((lower.sum() + upper.sum()) // 2)
    n = cvxpy.Variable(12)
    if name == "rloo":
        cost = cvxpy.sum(cvxpy.multiply(weights, cvxpy.inv_pos(n - 1)))
    else:  # (n - 1) / n^2 is convex on n >= 3 only, beyond the rules of cvxpy: piecewise linear on a fine grid
        grid = np.linspace(3, 25, 1201)
        value, slope = (grid - 1) / grid**2, (2 - grid) / grid**3
        cost = sum(a * cvxpy.max(value + cvxpy.multiply(slope, x - grid)) for a, x in zip(weights, n, strict=True))
    problem = cvxpy.Problem(cvxpy.Minimize(cost), [cvxpy.sum(n) == budget, n >= lower, n <= upper])
    best = problem.solve(solver=cvxpy.CLARABEL)
    ours = relaxed_counts(weights, budget, lower=lower, upper=upper, estimator=name).counts
    assert objective_of_reals(weights, ours, name) == pytest.approx(best, rel=1e-5)
    np.testing.assert_allclose(ours, n.value, atol=0.05)


def objective_of_reals(weights, counts, name):
    return float((weights * (1 / (counts - 1) if name == "rloo" else (counts - 1) / counts**2)).sum())


@estimators
@given(problem=problems())
def test_relaxation_bounds_the_optimum_and_rounding_is_close(name, problem):
    weights, budget, lower, upper = problem
    options = {"lower": lower, "upper": upper, "estimator": name}
    relaxed = objective_of_reals(np.array(weights), relaxed_counts(weights, budget, **options).counts, name)
    rounded = allocate_relaxed(weights, budget, **options)
    best = allocate_exact(weights, budget, **options)
    assert relaxed <= best.objective * (1 + 1e-9)
    assert best.objective <= rounded.objective * (1 + 1e-12)
    assert rounded.objective <= best.objective * 1.01
    worse = exact_objective(weights, rounded.counts, name) - exact_objective(weights, best.counts, name)
    if rounded.is_certified:
        assert worse <= 1e-12 * best.objective
    elif rounded.multiplier[0] > rounded.multiplier[1] * (1 + 1e-9):
        assert worse > 0
    assert rounded.objective == pytest.approx(objective(weights, rounded.counts, name), rel=1e-12)


@estimators
def test_rounding_reaches_the_optimum_on_ordinary_batches(name):
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.beta(0.5, 1, size=64)
        rounded = allocate_relaxed(p * (1 - p), 512, estimator=name)
        best = allocate_exact(p * (1 - p), 512, estimator=name)
        assert rounded.objective == pytest.approx(best.objective, rel=1e-12)


def test_rounding_down_and_filling_is_not_always_optimal():
    """Twenty prompts of exactly 60 keep their 60th rollout although a third one is worth more to those at 3.48."""
    counts = np.repeat([3.48, 60.0], [100, 20])
    weights, budget = (counts - 1) ** 2, 1548
    np.testing.assert_allclose(relaxed_counts(weights, budget, upper=64).counts, counts, rtol=1e-9)
    rounded = allocate_relaxed(weights, budget, upper=64)
    best = allocate_exact(weights, budget, upper=64)
    assert best.is_certified
    assert not rounded.is_certified
    assert best.counts[-20:].tolist() == [59] * 20
    assert rounded.counts[-20:].tolist() == [60] * 20
    assert 1e-5 < rounded.objective / best.objective - 1 < 1e-3


@estimators
def test_zero_weights_share_what_the_others_cannot_take(name):
    result = relaxed_counts([0.0, 0.2, 0.0, 0.1], 41, lower=3, upper=[32, 10, 32, 10], estimator=name)
    np.testing.assert_allclose(result.counts, [10.5, 10, 10.5, 10])
    assert result.multiplier == 0.0
    tiny = relaxed_counts([1e-12, 0.2, 1e-12, 0.1], 41, lower=3, upper=[32, 10, 32, 10], estimator=name)
    np.testing.assert_allclose(tiny.counts, result.counts, rtol=1e-9)


@estimators
def test_all_weights_equal_is_uniform(name):
    for weight in (0.0, 1e-300, 0.25, 1e300):
        result = relaxed_counts([weight] * 7, 50, estimator=name)
        np.testing.assert_allclose(result.counts, 50 / 7, rtol=1e-9)


@estimators
@given(budget_above=st.integers(0, 3))
def test_sum_is_exact_next_to_the_inflection(name, budget_above):
    """At n = 3 the closed form of Dr. GRPO has infinite slope."""
    result = relaxed_counts(np.full(1000, 0.25), 3000 + budget_above, estimator=name)
    assert result.counts.sum() == pytest.approx(3000 + budget_above, rel=1e-9)
