"""Knapsack RL (arXiv 2509.25849): a concave value, an exact knapsack, and rules for p = 0, p = 1 and new prompts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import Known, assert_same

from allotment.allocation import allocate_exact
from allotment.errors import InfeasibleBudgetError, InvalidInputError, StateError
from allotment.methods.planners.knapsack import Knapsack, KnapsackPrice


def value(n, p):
    """V(N, p) as printed."""
    return (1 - p**n - (1 - p) ** n) * p * (1 - p) ** 2


def most_value(p, budget, lower, upper):
    """The largest total value by dynamic programming over the budget, as the paper does."""
    best = {0: 0.0}
    for q in p:
        following: dict[int, float] = {}
        for spent, total in best.items():
            for n in range(lower, min(upper, budget - spent) + 1):
                following[spent + n] = max(following.get(spent + n, -1.0), total + value(n, q))
        best = following
    return best[budget]


def told(planner, successes, ids=None, budget=None):
    """After one step in which the first ``successes[q]`` rollouts of each group succeeded; the plan."""
    plan = planner.ask(range(len(successes)) if ids is None else ids, budget=budget)
    within = np.concatenate([np.arange(n) for n in plan.counts])
    planner.tell(plan, within < np.repeat(successes, plan.counts), plan.group_ids())
    return plan


def test_the_value_is_concave_from_one_rollout_on_and_not_before():
    p, n = np.linspace(0, 1, 1001)[:, None], np.arange(1, 400)
    steps = np.diff(value(n, p), axis=1)
    assert (np.diff(steps, axis=1) <= 1e-16).all()
    np.testing.assert_allclose(KnapsackPrice(p[:, 0]).gains(n[:-1]), steps, atol=1e-16)
    mixed = np.array([0.0, 0.0, 0.5])  # chance of unequal rewards at p = 1/2 with 0, 1, 2 rollouts
    assert np.diff(mixed)[1] > np.diff(mixed)[0]
    with pytest.raises(InvalidInputError, match="lower"):
        allocate_exact(KnapsackPrice(np.array([0.5])), 2, lower=0, upper=4)


@pytest.mark.parametrize(("n", "p"), [(2, 0.5), (8, 0.1), (16, 0.95)])
def test_the_value_is_the_chance_of_a_gradient_times_its_information(n, p):
    draws = 40_000
    successes = np.random.default_rng(0).binomial(n, p, draws)
    mixed = ((successes > 0) & (successes < n)).mean()
    price = KnapsackPrice(np.array([p]))
    chance = 1 - price.cost(np.array([n]))[0] / price.information()[0]
    assert abs(mixed - chance) < 4 * np.sqrt(chance * (1 - chance) / draws)
    grid = np.linspace(0, 1, 3001)
    assert grid[KnapsackPrice(grid).information().argmax()] == pytest.approx(1 / 3, abs=1e-3)


@given(
    p=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=5),
    lower=st.integers(2, 3),
    room=st.integers(0, 9),
    share=st.floats(0, 1),
)
@settings(deadline=None, max_examples=60)
def test_no_split_has_more_value(p, lower, room, share):
    budget = len(p) * lower + round(share * len(p) * room)
    counts = allocate_exact(KnapsackPrice(np.array(p)), budget, lower=lower, upper=lower + room).counts
    assert value(counts, np.array(p)).sum() == pytest.approx(most_value(p, budget, lower, lower + room), rel=1e-12)


def test_a_first_epoch_is_uniform_and_the_second_goes_by_its_rates():
    planner = Knapsack(budget=64)
    for ids in (range(8), range(8, 16)):
        assert told(planner, [1, 2, 3, 4, 5, 6, 7, 4], ids).counts.tolist() == [8] * 8
    rates = np.array([1, 2, 3, 4, 5, 6, 7, 4]) / 8
    second = planner.ask(range(8)).counts
    assert second.tolist() != [8] * 8
    assert value(second, rates).sum() == pytest.approx(most_value(rates, 64, 2, 57), rel=1e-7)


def test_only_the_last_visit_counts():
    planner = Knapsack(budget=32)
    told(planner, [8, 8, 8, 8])
    told(planner, [4, 1, 0, 8])
    p = planner.ask(range(4)).posterior.success_probability()
    np.testing.assert_allclose(p, [0.5, 0.125, 0, 1], atol=1e-9)


def test_new_prompts_of_a_mixed_batch_get_their_even_share():
    planner = Knapsack(budget=40)
    told(planner, [1, 4, 7, 8], budget=32)
    counts = planner.ask(["new", 0, 1, 2, 3]).counts
    assert (counts[0], counts[4], counts.sum()) == (8, 2, 40)
    assert counts[2] > 2


def test_always_gets_the_least_and_never_what_is_left():
    planner = Knapsack(budget=40, bounds=(2, 12))
    told(planner, [0, 0, 10, 5], budget=40)
    assert planner.ask(range(4), budget=18).counts.tolist() == [2, 2, 2, 12]
    assert planner.ask(range(4), budget=23).counts[2:].tolist() == [2, 12]
    assert sorted(planner.ask(range(4), budget=23).counts[:2]) == [4, 5]
    assert planner.ask(range(4), budget=38).counts.tolist() == [12, 12, 2, 12]
    assert planner.ask(range(4), budget=43).counts.tolist() == [12, 12, 7, 12]  # nobody else is left
    with pytest.raises(InfeasibleBudgetError, match=r"8 .* to 48 "):
        planner.ask(range(4), budget=49)


def test_nothing_between_never_and_always():
    planner = Knapsack(budget=40, bounds=(2, 30))
    told(planner, [0, 10, 10, 0])
    assert planner.ask(range(4)).counts.tolist() == [18, 2, 2, 18]
    everything = Knapsack(budget=40)
    told(everything, [10, 10, 10, 10])
    assert everything.ask(range(4)).counts.tolist() == [10] * 4


def test_a_belief_that_is_never_certain_needs_a_wider_margin():
    logits = {0: -4.0, 1: 4.0, 2: 0.0}
    plans = []
    for certain in (1e-6, 0.05):
        planner = Knapsack(budget=30, bounds=(2, 16), predictor=Known(logits), certain=certain)
        told(planner, [0, 0, 0])
        plans.append(planner.ask(range(3)).counts.tolist())
    assert plans[0] != plans[1] == [12, 2, 16]


def test_a_prompt_without_rewards_stays_new(tmp_path):
    planner = Knapsack(budget=24)
    plan = planner.ask(range(3))
    planner.tell(plan, [1.0] * 16, [0] * 8 + [1] * 8, allow_missing_groups=True)
    planner.save(tmp_path / "planner")
    loaded = Knapsack(budget=24).load(tmp_path / "planner")
    assert_same(loaded.state_dict(), planner.state_dict())
    for one in (planner, loaded):
        assert one.ask(range(3), budget=60).counts[2] == 20
    with pytest.raises(StateError, match="certain"):
        Knapsack(budget=24, certain=0.1).load(tmp_path / "planner")


@pytest.mark.parametrize("certain", [-0.1, 0.5, float("nan")])
def test_settings_without_meaning_are_refused(certain):
    with pytest.raises(InvalidInputError, match="certain"):
        Knapsack(budget=24, certain=certain)
