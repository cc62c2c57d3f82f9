"""Ridge and nearest neighbours against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allotment.prediction import KNearest, Ridge

sklearn_linear = pytest.importorskip("sklearn.linear_model")
sklearn_neighbors = pytest.importorskip("sklearn.neighbors")

seeds = st.integers(0, 10**6)
PROMPTS, EPSILON = 40, 0.01


def told(predictor, seed, steps=3, batch=12):
    """The predictor after some batches; with it every observation, in order: rows, rates."""
    rng = np.random.default_rng(seed)
    rows, rates = [], []
    for _ in range(steps):
        chosen, trials = rng.choice(PROMPTS, batch, replace=False), rng.integers(1, 9, batch)
        successes = rng.binomial(trials, 0.4)
        predictor.observe(chosen, successes, trials)
        rows.extend(chosen)
        rates.extend(successes / trials)
    return np.array(rows), np.array(rates)


def points(seed, dimension):
    return np.random.default_rng(seed + 1).normal(size=(PROMPTS, dimension)) + 3.0


@settings(deadline=None, max_examples=30)
@given(seeds, st.sampled_from([1, 5, 60]), st.sampled_from([10, 25, 1024]), st.floats(0.01, 50))
def test_ridge_is_scikit_learn_ridge_over_the_window(seed, dimension, window, penalty):
    x = points(seed, dimension)
    predictor = Ridge(x, penalty=penalty, window=window)
    rows, rates = told(predictor, seed)
    model = sklearn_linear.Ridge(alpha=penalty).fit(x[rows[-window:]], rates[-window:])
    expected = np.clip(model.predict(x), EPSILON, 1 - EPSILON)
    belief = predictor.predict(range(PROMPTS))
    np.testing.assert_allclose(belief.plug_in_probability(), expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(belief.variance, 0)


@settings(deadline=None, max_examples=30)
@given(seeds, st.sampled_from([1, 3, 10, 25]), st.sampled_from([10, 25, 1024]))
def test_nearest_neighbours_are_those_of_scikit_learn(seed, neighbours, window):
    x = points(seed, 4)
    predictor = KNearest(x, neighbours=neighbours, window=window)
    # each prompt once, so that no two distances are equal
    order, rates = np.random.default_rng(seed).permutation(PROMPTS)[:30], np.arange(30) % 9 / 8
    predictor.observe(order, np.arange(30) % 9, np.full(30, 8))
    kept = min(window, 30)
    model = sklearn_neighbors.KNeighborsRegressor(min(neighbours, kept)).fit(x[order[-window:]], rates[-window:])
    expected = np.clip(model.predict(x), EPSILON, 1 - EPSILON)
    np.testing.assert_allclose(predictor.predict(range(PROMPTS)).plug_in_probability(), expected, atol=1e-12)


@pytest.mark.parametrize("make", [Ridge, KNearest])
class TestBoth:
    def test_before_data_everything_is_one_half(self, make):
        np.testing.assert_array_equal(make(points(0, 3)).predict([0, 5]).plug_in_probability(), 0.5)

    def test_zero_trials_are_no_observation(self, make):
        one, other = make(points(0, 3)), make(points(0, 3))
        one.observe([0, 1, 2], [3, 0, 1], [4, 0, 4])
        other.observe([0, 2], [3, 1], [4, 4])
        np.testing.assert_array_equal(one.predict(range(9)).mean, other.predict(range(9)).mean)

    def test_predictions_are_clipped(self, make):
        predictor = make(points(0, 3), epsilon=0.2)
        predictor.observe(range(10), [0] * 10, [8] * 10)
        np.testing.assert_allclose(predictor.predict(range(20)).plug_in_probability(), 0.2)

    def test_a_prompt_registered_later_is_predicted_from_the_others(self, make):
        x = points(0, 3)
        predictor = make(x)
        told(predictor, 0)
        predictor.register(["copy of 7"], x[7:8])
        np.testing.assert_allclose(predictor.predict(["copy of 7"]).mean, predictor.predict([7]).mean, rtol=1e-9)

    def test_no_prompts_no_predictions(self, make):
        predictor = make(points(0, 3))
        told(predictor, 0)
        assert len(predictor.predict([])) == 0
