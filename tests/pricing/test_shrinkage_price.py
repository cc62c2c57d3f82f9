"""The price of the shrinkage baseline: limits, best share, convexity, gains."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allotment.allocation import allocate_exact
from allotment.pricing import RLOO, SHRINKAGE, ShrinkagePrice, WeightedPrice, posterior_weights
from allotment.types import Posterior

SOME = st.floats(0, 0.25)
GRID = np.arange(1, 40)


def cost(a, v, n):
    return float(ShrinkagePrice(np.array([a]), np.array([v])).cost(np.array([n]))[0])


@given(a=st.floats(1e-6, 0.25), v=SOME, n=st.integers(2, 64))
def test_no_share_has_less_variance(a, v, n):
    price = ShrinkagePrice(np.array([a]), np.array([v]))
    w = np.append(np.linspace(0, 1, 101), price.shares(np.array([n])))
    values = (a + w**2 * v + (1 - w) ** 2 * a / (n - 1)) / n
    assert cost(a, v, n) == pytest.approx(values.min())
    assert values[-1] == pytest.approx(values.min())


@given(a=SOME, v=SOME)
def test_it_lies_between_a_certain_belief_and_rloo(a, v):
    for n in (2, 3, 8, 32):
        assert a / n - 1e-15 <= cost(a, v, n) <= a / (n - 1) + 1e-15
    assert cost(a, v, 1) == pytest.approx(a + v)


def test_limits():
    assert cost(0.2, 0.0, 5) == pytest.approx(0.2 / 5)
    assert cost(0.2, 1e12, 5) == pytest.approx(0.2 / 4)
    assert cost(0.0, 0.25, 1) == 0.25  # p is 0 or 1, and nobody knows which: one rollout tells
    assert cost(0.0, 0.25, 2) == 0.0
    assert cost(0.0, 0.0, 1) == 0.0


@given(a=SOME, v=SOME)
def test_gains_are_differences_and_fall(a, v):
    price = ShrinkagePrice(np.array([a]), np.array([v]))
    gains = price.gains(GRID)[0]
    costs = np.array([cost(a, v, n) for n in np.append(GRID, 40)])
    assert gains == pytest.approx(costs[:-1] - costs[1:], abs=1e-15)
    assert (gains >= 0).all()
    assert (np.diff(gains) <= 1e-15).all()


def test_it_is_allocated_exactly_from_one_rollout_on():
    random = np.random.default_rng(0)
    price = ShrinkagePrice(random.uniform(0, 0.25, 6), random.uniform(0, 0.1, 6))
    allocation = allocate_exact(price, 15, lower=1, upper=9)
    assert allocation.is_certified
    assert allocation.counts.sum() == 15


def test_a_belief_of_no_certainty_is_never_worse_than_rloo_and_one_that_is_certain_gets_the_curves_price():
    posterior, counts = Posterior(np.linspace(-2, 2, 7), np.full(7, 0.7)), np.arange(2, 9)
    rloo = WeightedPrice(posterior_weights(posterior), RLOO)
    assert (ShrinkagePrice.of(posterior).cost(counts) <= rloo.cost(counts)).all()
    certain = Posterior(posterior.mean, np.zeros(7))
    curve = WeightedPrice(posterior_weights(certain), SHRINKAGE)
    assert ShrinkagePrice.of(certain).cost(counts) == pytest.approx(curve.cost(counts))
