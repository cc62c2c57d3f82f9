"""CoBA-RL's value (arXiv 2602.03048): its golden figures, and the exact allocator against its heap and against all."""

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from allotment.allocation import allocate_exact
from allotment.errors import InfeasibleBudgetError
from allotment.methods.planners.coba_rl import capability_shape, coba_price, failure_score

KAPPA = 11.0
SIXTEENTHS = np.arange(1, 16) / 16


def value(n, p, alpha, tau):
    """V(B, p) as printed."""
    return (1 - np.exp(-(n / tau) * p * (1 - p))) * beta.pdf(p, alpha, KAPPA - alpha)


def counts_of(p, alpha, tau, budget, lower, upper):
    price = coba_price(p, alpha, KAPPA - alpha, tau=tau)
    return allocate_exact(price, budget, lower=lower, upper=upper).counts


def heap_greedy(p, alpha, tau, budget, lower, upper):
    """The paper's algorithm, line by line; what is left over comes back too."""
    gain = [lambda n, q=q: value(n + 1, q, alpha, tau) - value(n, q, alpha, tau) for q in p]
    counts, left = [lower] * len(p), budget - lower * len(p)
    heap = [(-gain[i](lower), i) for i in range(len(p))] if upper > lower else []
    heapq.heapify(heap)
    while left and heap:
        _, i = heapq.heappop(heap)
        counts[i] += 1
        left -= 1
        if counts[i] < upper:
            heapq.heappush(heap, (-gain[i](counts[i]), i))
    return counts, left


def dynamic_programming(p, alpha, tau, budget, lower, upper):
    """The largest total value of any integers within the bounds that sum to the budget."""
    best = {0: 0.0}
    for q in p:
        of_q = [value(n, q, alpha, tau) for n in range(lower, upper + 1)]
        following: dict[int, float] = {}
        for spent, total in best.items():
            for extra, worth in enumerate(of_q):
                key = spent + lower + extra
                if key <= budget:
                    following[key] = max(following.get(key, -np.inf), total + worth)
        best = following
    return best[budget]


@pytest.mark.parametrize(
    ("tau", "alpha", "counts"),
    [
        (1, 7.26, [2, 2, 2, 5, 10, 14, 16, 18, 20, 21, 23, 26, 28, 31, 22]),
        (1, 2.54, [54, 40, 31, 25, 21, 18, 15, 12, 9, 5, 2, 2, 2, 2, 2]),
        (8, 7.26, [2, 2, 2, 2, 2, 2, 5, 22, 34, 42, 47, 45, 29, 2, 2]),
    ],
)
def test_golden_allocations(tau, alpha, counts):
    assert counts_of(SIXTEENTHS, alpha, tau, 240, 2, 128).tolist() == counts
    assert heap_greedy(SIXTEENTHS, alpha, tau, 240, 2, 128) == (counts, 0)


@given(
    p=st.lists(st.floats(0.02, 0.98), min_size=1, max_size=5, unique=True),
    alpha=st.floats(1.5, 9.5),
    tau=st.floats(0.5, 8),
    lower=st.integers(0, 3),
    room=st.integers(0, 8),
    share=st.floats(0, 1),
)
@settings(deadline=None, max_examples=60)
def test_most_value_of_all_splits(p, alpha, tau, lower, room, share):
    upper = lower + room
    budget = len(p) * lower + round(share * len(p) * room)
    counts = counts_of(np.array(p), alpha, tau, budget, lower, upper)
    total = value(counts, np.array(p), alpha, tau).sum()
    assert counts.sum() == budget
    assert total == pytest.approx(dynamic_programming(p, alpha, tau, budget, lower, upper), rel=1e-12, abs=1e-300)
    greedy, left = heap_greedy(p, alpha, tau, budget, lower, upper)
    assert left == 0
    assert total == pytest.approx(value(np.array(greedy), np.array(p), alpha, tau).sum(), rel=1e-12, abs=1e-300)


def test_value_is_the_formula_and_gains_are_geometric():
    grid = np.arange(0, 130)
    price = coba_price(SIXTEENTHS, 4.5, KAPPA - 4.5, tau=2.0)
    worth = np.array([value(grid, p, 4.5, 2.0) for p in SIXTEENTHS])
    costs = np.stack([price.cost(np.full(15, n)) for n in grid], axis=1)
    np.testing.assert_allclose(costs[:, :1] - costs, worth, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(price.gains(grid[:-1]), np.diff(worth, axis=1), rtol=1e-9, atol=1e-15)
    ratio = np.exp(-SIXTEENTHS * (1 - SIXTEENTHS) / 2.0)
    np.testing.assert_allclose(price.gains(grid)[:, 1:] / price.gains(grid)[:, :-1], ratio[:, None] + 0 * grid[1:])


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.5, 10.5])  # densities infinite at 0 or at 1 among them
def test_certain_prompts_are_worth_nothing(alpha):
    p = np.array([0.0, 0.4, 1.0, 0.7])
    assert counts_of(p, alpha, 1.0, 40, 2, 17).tolist() == [3, 17, 3, 17]  # only what nobody else can take
    assert counts_of(p, alpha, 1.0, 30, 2, 17)[[0, 2]].tolist() == [2, 2]
    assert coba_price(p, alpha, KAPPA - alpha, tau=1.0).cost(np.full(4, 5))[[0, 2]].tolist() == [0, 0]
    assert counts_of(np.array([0.0, 1.0, 1.0]), alpha, 1.0, 10, 2, 8).tolist() == [4, 3, 3]  # ties alone


def test_a_budget_that_cannot_be_spent_is_refused():
    assert heap_greedy([0.3, 0.6], 4.5, 1.0, 11, 2, 5)[1] == 1  # the paper's heap runs empty
    with pytest.raises(InfeasibleBudgetError, match=r"4 \(sum of the lower bounds\) to 10"):
        counts_of(np.array([0.3, 0.6]), 4.5, 1.0, 11, 2, 5)


@pytest.mark.parametrize(("failure", "score"), [(0.4, 0.2689), (0.3, 0.1192), (0.2, 0.0474), (0.1, 0.0180)])
def test_golden_scores_of_failures(failure, score):
    assert failure_score(failure, gamma=10.0) == pytest.approx(score, abs=5e-5)


def test_the_score_rises_without_a_jump():
    rates = np.linspace(0, 1, 1001)
    scores = np.array([failure_score(f, gamma=10.0) for f in rates])
    assert (np.diff(scores) > 0).all()
    assert np.diff(scores).max() < 0.003  # the slope at 1/2 from below, gamma / 4, over 1,000 steps
    assert scores[rates >= 0.5] == pytest.approx(rates[rates >= 0.5])


@pytest.mark.parametrize(("alpha", "peak"), [(7.26, 0.70), (4.50, 0.39), (2.54, 0.17)])
def test_the_peak_moves_from_easy_to_hard(alpha, peak):
    grid = np.linspace(0.005, 0.995, 199)
    density = coba_price(grid, alpha, KAPPA - alpha, tau=1.0).density
    assert grid[density.argmax()] == pytest.approx(peak, abs=0.006)


def test_shapes_are_clipped_and_sum_to_kappa():
    shape = {"kappa": 11.0, "gamma": 10.0, "alpha_bounds": (1.5, 9.5), "slope": 8.0}
    assert capability_shape(0.8, **shape) == pytest.approx((1.5 + 8 * 0.8, 11 - 7.9))
    assert capability_shape(0.8, **{**shape, "slope": 20.0}) == (9.5, 1.5)
