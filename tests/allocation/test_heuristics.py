"""The splits to compare with, and what all splits have in common."""

import numpy as np
import pytest
from allocation_oracles import NAMES, objective, problems
from hypothesis import given
from hypothesis import strategies as st

from allotment.allocation import (
    METHODS,
    allocate,
    allocate_exact,
    allocate_relaxed,
    inverse_accuracy,
    inverse_variance,
    uniform,
)
from allotment.allocation.heuristics import EPSILON


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
@given(problem=problems(max_prompts=12, max_room=20), seed=st.one_of(st.none(), st.integers(0, 3)))
def test_every_method_spends_the_budget_within_the_bounds(method, name, problem, seed):
    weights, budget, lower, upper = problem
    p = np.minimum(weights, 1.0)
    result = allocate(p, budget, lower=lower, upper=upper, estimator=name, method=method, seed=seed)
    assert result.counts.sum() == budget == result.budget
    assert (result.counts >= lower).all()
    assert (result.counts <= upper).all()
    assert result.counts.dtype == np.int64
    assert result.objective == pytest.approx(objective(p * (1 - p), result.counts, name), rel=1e-12, abs=1e-300)
    best = allocate(p, budget, lower=lower, upper=upper, estimator=name, seed=seed)
    assert best.objective <= result.objective * (1 + 1e-12)
    assert best.uniform_objective == pytest.approx(result.uniform_objective, rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
@given(eighths=st.lists(st.integers(0, 8), min_size=1, max_size=10), data=st.data())
def test_every_method_follows_the_prompts_when_keys_break_ties(method, eighths, data):
    p, keys = np.array(eighths) / 8, np.arange(len(eighths)) * 7
    budget = data.draw(st.integers(3 * len(p), 32 * len(p)))
    order = np.array(data.draw(st.permutations(range(len(p)))))
    original = allocate(p, budget, method=method, tie_keys=keys).counts
    shuffled = allocate(p[order], budget, method=method, tie_keys=keys[order]).counts
    assert shuffled.tolist() == original[order].tolist()


def test_dispatch_calls_what_it_names():
    p = np.array([0.05, 0.3, 0.5, 0.8, 0.95])
    weights = p * (1 - p)
    expected = {
        "exact": allocate_exact(weights, 47),
        "relaxed": allocate_relaxed(weights, 47),
        "uniform": uniform(weights, 47),
        "inverse-accuracy": inverse_accuracy(p, 47),
        "inverse-variance": inverse_variance(p, 47),
    }
    assert set(expected) == set(METHODS)
    for method, result in expected.items():
        assert allocate(p, 47, method=method).counts.tolist() == result.counts.tolist()
    assert len({tuple(result.counts) for result in expected.values()}) == 4  # exact and relaxed agree here


@given(problem=problems(max_prompts=12, max_room=20))
def test_uniform_levels(problem):
    """Even within the bounds: nobody who could still rise is more than one below anybody who could still fall."""
    weights, budget, lower, upper = problem
    counts = uniform(weights, budget, lower=lower, upper=upper).counts
    rising, falling = counts[counts < upper], counts[counts > lower]
    if len(rising) and len(falling):
        assert falling.max() <= rising.min() + 1
    assert counts.sum() == budget


def test_uniform_by_hand():
    assert uniform(4, 34).counts.tolist() == [9, 9, 8, 8]
    assert uniform(4, 34, tie_keys=["d", "c", "b", "a"]).counts.tolist() == [8, 8, 9, 9]
    assert uniform(3, 30, lower=[3, 12, 3], upper=[5, 20, 32]).counts.tolist() == [5, 13, 12]
    assert uniform(4, 32).objective == pytest.approx(4 / 7)


def test_inverse_accuracy_is_proportional():
    p = np.array([0.0, 0.5, 0.75])
    share = 1 - p + EPSILON
    counts = inverse_accuracy(p, 200, lower=3, upper=200).counts
    np.testing.assert_allclose(counts, 200 * share / share.sum(), atol=1)


def test_inverse_variance_is_proportional():
    p = np.array([0.02, 0.5, 0.9])
    share = 1 / (p * (1 - p) + EPSILON)
    counts = inverse_variance(p, 200, lower=3, upper=200).counts
    np.testing.assert_allclose(counts, 200 * share / share.sum(), atol=1)


def test_proportional_by_hand():
    # shares 1.5, 1.0, 0.5 of 18: 9, 6, 3; the third is held at 4, so 14 split 3:2 is 8.4 and 5.6
    assert inverse_accuracy([0.0, 0.5, 1.0], 18, lower=4, epsilon=0.5).counts.tolist() == [8, 6, 4]
    assert inverse_accuracy([0.5] * 4, 18).counts.tolist() == [5, 5, 4, 4]
    assert inverse_accuracy([0.5] * 4, 18, tie_keys=[9, 8, 7, 6]).counts.tolist() == [4, 4, 5, 5]


def test_inverse_rules_can_be_worse_than_uniform():
    p = np.array([0.02, 0.5, 0.5, 0.5])
    for rule in (inverse_accuracy, inverse_variance):
        result = rule(p, 40)
        assert result.objective > result.uniform_objective
        assert not result.is_certified
