"""The variance curves: closed forms against simulation, and the shape that exact allocation rests on."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allotment.errors import InvalidInputError
from allotment.pricing import DR_GRPO, ESTIMATORS, RLOO, get_estimator

EXACT = {
    "rloo": lambda n: Fraction(1, n - 1),
    "dr_grpo": lambda n: Fraction(n - 1, n * n),
}


def simulated_variance(estimator, rewards, scores):
    """Var of G = (1/n) sum A Z, from advantages written out as the paper defines them; rewards, scores [M, n]."""
    n = rewards.shape[1]
    total = rewards.sum(axis=1, keepdims=True)
    baseline = (total - rewards) / (n - 1) if estimator == "rloo" else total / n
    return float(((rewards - baseline) * scores).mean(axis=1).var())


@pytest.mark.parametrize("name", ["rloo", "dr_grpo"])
@pytest.mark.parametrize("n", [3, 4, 8, 16])
def test_variance_is_that_of_simulated_gradients(name, n):
    rng = np.random.default_rng(n)
    shape = (600_000, n)
    scores = rng.standard_normal(shape) + 0.7  # Var(Z) = 1; the mean must not matter
    p = 0.3
    rewards = (rng.random(shape) < p).astype(float)
    expected = p * (1 - p) * get_estimator(name).variance(n)
    assert simulated_variance(name, rewards, scores) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", ["rloo", "dr_grpo"])
def test_real_valued_rewards_enter_by_their_variance(name):
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((600_000, 6))
    rewards = rng.random((600_000, 6))  # variance 1/12
    expected = get_estimator(name).variance(6) / 12
    assert simulated_variance(name, rewards, scores) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", ["rloo", "dr_grpo"])
@given(n=st.integers(3, 10_000))
def test_curves_equal_exact_fractions(name, n):
    exact, estimator = EXACT[name], ESTIMATORS[name]
    assert float(estimator.variance(n)) == pytest.approx(float(exact(n)), rel=1e-15)
    assert float(estimator.gain(n)) == pytest.approx(float(exact(n) - exact(n + 1)), rel=1e-15)


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=lambda e: e.name)
@given(weight=st.floats(1e-200, 1e200))
def test_gains_fall_strictly_in_floating_point(estimator, weight):
    gains = estimator.gain(np.arange(estimator.minimum_count, 20_000))
    assert (np.diff(gains) < 0).all()
    assert (np.diff(weight * gains) <= 0).all()
    assert (gains > 0).all()


def test_dr_grpo_is_not_convex_below_its_minimum_count():
    gains = DR_GRPO.gain([2, 3, 4])
    assert gains[0] == pytest.approx(1 / 36)
    assert gains[1] == pytest.approx(5 / 144)
    assert gains[0] < gains[1] > gains[2]
    assert (RLOO.minimum_count, DR_GRPO.minimum_count) == (2, 3)


@pytest.mark.parametrize(
    ("name", "estimator"),
    [("rloo", RLOO), ("RLOO", RLOO), ("dr_grpo", DR_GRPO), ("dr-grpo", DR_GRPO), (DR_GRPO, DR_GRPO)],
)
def test_lookup(name, estimator):
    assert get_estimator(name) is estimator


@pytest.mark.parametrize("name", ["grpo", "", None, 3])
def test_unknown_estimator_lists_the_known(name):
    with pytest.raises(InvalidInputError, match="'rloo', 'dr_grpo'"):
        get_estimator(name)
