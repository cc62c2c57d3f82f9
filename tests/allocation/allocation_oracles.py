"""Oracles that share no code with the library, and random problems."""

import heapq
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

G = {"rloo": lambda n: 1 / (n - 1), "dr_grpo": lambda n: (n - 1) / n**2}
NAMES = ["rloo", "dr_grpo"]


def objective(weights, counts, name):
    return sum(a * G[name](int(n)) for a, n in zip(weights, counts, strict=True))


def exact_objective(weights, counts, name):
    """The same without any rounding: weights 36 orders of magnitude apart still count."""
    one = {"rloo": lambda n: Fraction(1, n - 1), "dr_grpo": lambda n: Fraction(n - 1, n * n)}[name]
    return sum(Fraction(float(a)) * one(int(n)) for a, n in zip(weights, counts, strict=True))


def best_by_dynamic_programming(cost, lower, upper, budget):
    """Least sum of ``cost(q, n)`` over all integer counts within the bounds that sum to the budget."""
    best = {0: 0.0}
    for q, (low, high) in enumerate(zip(lower, upper, strict=True)):
        after: dict[int, float] = {}
        for spent, value in best.items():
            for n in range(low, high + 1):
                total = value + cost(q, n)
                if spent + n <= budget and total < after.get(spent + n, np.inf):
                    after[spent + n] = total
        best = after
    return best[budget]


def greedy_by_heap(weights, budget, lower, upper, name):
    """Fox 1966: one rollout at a time to the largest decrease; ties to the fewer rollouts, then by position."""
    counts = list(lower)

    def entry(q):
        n = counts[q]
        gain = 1 / (n * (n - 1)) if name == "rloo" else (n * n - n - 1) / (n * (n + 1)) ** 2
        return (-weights[q] * gain, n, q)

    heap = [entry(q) for q in range(len(counts)) if counts[q] < upper[q]]
    heapq.heapify(heap)
    for _ in range(budget - sum(counts)):
        q = heapq.heappop(heap)[2]
        counts[q] += 1
        if counts[q] < upper[q]:
            heapq.heappush(heap, entry(q))
    return counts


weight = st.one_of(st.sampled_from([0.0, 0.0, 0.25, 0.1]), st.floats(1e-9, 1.0), st.floats(1e-30, 1e6))


@st.composite
def problems(draw, max_prompts=6, max_room=8):
    """(weights, budget, lower [Q], upper [Q]), feasible, with ties and zero weights."""
    n_prompts = draw(st.integers(1, max_prompts))
    weights = draw(st.lists(weight, min_size=n_prompts, max_size=n_prompts))
    lower = draw(st.lists(st.integers(3, 7), min_size=n_prompts, max_size=n_prompts))
    if draw(st.booleans()):
        lower = [lower[0]] * n_prompts
    room = draw(st.lists(st.integers(0, max_room), min_size=n_prompts, max_size=n_prompts))
    if draw(st.booleans()):
        room = [room[0]] * n_prompts
    upper = [low + extra for low, extra in zip(lower, room, strict=True)]
    budget = draw(st.integers(sum(lower), sum(upper)))
    return weights, budget, lower, upper
