"""The price of the second round, against the estimator: variances over every outcome, scores independent of rewards."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allotment.allocation import allocate_exact
from allotment.prediction.posteriors import BetaPosterior, updated
from allotment.pricing import SecondLookPrice
from allotment.types import Posterior


def point(p):
    return Posterior(np.array([np.log(p / (1 - p))]), np.zeros(1))


def price(posterior, successes, trials, expected):
    return SecondLookPrice.of(posterior, *(np.atleast_1d(x) for x in (successes, trials, expected)))


def conditional_variance(p, early, later, expected):
    """E of the sum over rollouts of (weight (r - b))^2 given round 0: scores of mean 0 and variance 1, independent."""
    torch = pytest.importorskip("torch")
    from allotment.learning import second_look_advantages

    total, size = 0.0, len(early) + later
    for late in itertools.product([0.0, 1.0], repeat=later):
        ids_N = torch.zeros(size, dtype=torch.int64)
        advantages_N = second_look_advantages(
            torch.tensor([*early, *late], dtype=torch.float64),
            ids_N,
            torch.tensor([0] * len(early) + [1] * later),
            torch.full((size,), expected),
        )
        chance = np.prod([p if r else 1 - p for r in late])
        total += chance * float(((advantages_N / size) ** 2).sum())
    return total


@pytest.mark.parametrize("p", [0.5, 0.15])
@pytest.mark.parametrize("early", [(0.0, 0.0, 1.0), (0.0, 0.0), (1.0, 1.0, 1.0, 0.0)])
@pytest.mark.parametrize("expected", [1, 2, 4])
def test_is_the_variance_that_depends_on_the_count(p, early, expected):
    """Differences between counts: the part of the first round's own noise is the same for all of them."""
    first = 1 if expected == 1 else 2
    counts = np.arange(first, 7)
    prices = [float(price(point(p), sum(early), len(early), expected).cost(np.array([k]))[0]) for k in counts]
    truth = [conditional_variance(p, early, k, expected) for k in counts]
    assert np.diff(prices) == pytest.approx(np.diff(truth), rel=1e-9)


@given(st.integers(2, 9), st.integers(1, 9), st.floats(0.05, 0.95))
def test_as_many_as_expected_leaves_the_variance_of_rloo(first, expected, p):
    """Averaged over round 0, its own noise added: p (1 - p) / (n - 1) of the pooled group."""
    n, v = first + expected, p * (1 - p)
    error = v / first  # E[(rate - p)^2]
    exact = price(point(p), 0, first, expected)
    first_part = float(exact.first[0]) + (expected / n * first / (n - 1)) ** 2 * (error - p**2)  # the rate was 0 here
    own = (first / n**2) * v * (1 + (first - 1) / (n - 1) ** 2)
    pairs = float(exact.second[0]) / (expected * (expected - 1)) if expected > 1 else 0.0
    assert first_part / expected + pairs + own == pytest.approx(v / (n - 1), rel=1e-9)


@given(st.integers(0, 9), st.integers(1, 9), st.floats(0.1, 5), st.floats(0.1, 5), st.data())
def test_gains_are_the_differences_of_the_cost_and_fall(first, expected, alpha, beta, data):
    successes = data.draw(st.integers(0, first))
    belief = BetaPosterior.from_counts(np.array([alpha + successes]), np.array([beta + first - successes]))
    exact = price(belief, successes, first, expected)
    low = 2 if exact.second[0] > 0 else 1
    grid = np.arange(low, 40)
    gains = exact.gains(grid)[0]
    costs = np.array([exact.cost(np.array([k]))[0] for k in range(low, 41)])
    assert gains == pytest.approx(costs[:-1] - costs[1:], rel=1e-6, abs=1e-15)
    assert (np.diff(gains) <= 0).all()
    assert np.isinf(exact.cost(np.array([1]))[0]) == (low == 2)


def test_allocates_by_what_came_back():
    """A mixed first round earns more rollouts than one of failures alone; a prompt that expects one may get one."""
    belief = BetaPosterior.from_counts(np.full(3, 0.5), np.full(3, 0.5))
    successes, trials, expected = np.array([2, 0, 0]), np.array([4, 4, 4]), np.array([4, 4, 1])
    exact = SecondLookPrice.of(updated(belief, successes, trials), successes, trials, expected)
    result = allocate_exact(exact, 9, lower=np.array([2, 2, 1]), upper=28)
    assert result.counts[0] > result.counts[1] >= 2
    assert result.counts[2] == 1
