"""Reinforce-Ada, sequential (arXiv 2510.04996): rounds, exits, what they cost, and what the step optimises."""

import itertools
from collections import Counter

import numpy as np
import pytest
from planning_cases import Known, assert_same
from scipy.special import logit
from scipy.stats import beta, binom

from allotment.errors import InfeasibleBudgetError, InvalidInputError, StateError
from allotment.methods.planners.reinforce_ada import NoSignalPrice, ReinforceAda
from allotment.prediction.posteriors import BetaPosterior
from allotment.types import Posterior
from theory.toy import measured_weights

BALANCE, POSITIVE = (2, 2), (1, 0)
"""Correct and wrong rollouts to leave with, of the code at n = 4."""


def play(planner, rewards, **asked):
    """One step in which prompt i's rollouts get the rewards ``rewards[i]`` in that order; the counts of each round."""
    ids, used, rounds = list(range(len(rewards))), [0] * len(rewards), []
    while True:
        plan = planner.ask(ids, **(asked if not rounds else {}))
        told = [rewards[i][used[i] : used[i] + n] for i, n in enumerate(plan.counts)]
        planner.tell(plan, np.concatenate([np.array(part, dtype=float) for part in told]), plan.group_ids())
        used = [u + int(n) for u, n in zip(used, plan.counts, strict=True)]
        rounds.append(plan.counts.tolist())
        if planner.done:
            return rounds


def simulated(planner, p, prompts, seed=0):
    """Rollouts [Q] and correct ones [Q] of one step of that many prompts of success probability p."""
    rewards = (np.random.default_rng(seed).random((prompts, 32)) < p).astype(int)
    totals_Q = np.sum(play(planner, rewards.tolist()), axis=0)
    return totals_Q, (rewards * (np.arange(32) < totals_Q[:, None])).sum(axis=1)


def pools(p, needed, size=8, rounds=4):
    """Chance of every (correct, rollouts) with which a prompt ends; by recursion over rounds."""
    active, ended = {(0, 0): 1.0}, Counter()
    for round_ in range(rounds):
        following = Counter()
        for (k, n), chance in active.items():
            for new, share in enumerate(binom.pmf(np.arange(size + 1), size, p)):
                following[k + new, n + size] += chance * share
        leaves = {
            pool: round_ == rounds - 1 or (pool[0] >= needed[0] and pool[1] - pool[0] >= needed[1])
            for pool in following
        }
        ended.update({pool: chance for pool, chance in following.items() if leaves[pool]})
        active = {pool: chance for pool, chance in following.items() if not leaves[pool]}
    return ended


def expected_weight(p, needed, baseline, n=4):
    """The weight of grad p, over all pools: f A+ / p - (1 - f) A- / (1 - p) of what is kept."""
    total = 0.0
    for (k, pool), chance in pools(p, needed).items():
        if 0 < k < pool:
            m, f = k / pool, min(k, max(n // 2, n - (pool - k))) / n
            both = m * (1 - m) * pool / (pool - 1)
            correct, wrong = {
                "pool": (f * (1 - m), (1 - f) * m),
                "log_pool": (f * (1 - m) / m, 1 - f),
                "p": (both, both),
                "log_p": (1 - m, 1 - m),
            }[baseline]
            total += chance * (correct / p + wrong / (1 - p))
    return total


def test_rounds_of_the_released_settings():
    """8 rollouts a round until 2 correct and 2 wrong, or 32: never right, always right, at once, late, just missed."""
    rewards = [[0] * 32, [1] * 32, [1, 1, 0, 0] * 8, [0] * 15 + [1] * 17, [0] * 23 + [1] + [0] * 8]
    planner = ReinforceAda(budget=40)
    assert play(planner, rewards) == [[8, 8, 8, 8, 8], [8, 8, 0, 8, 8], [8, 8, 0, 8, 8], [8, 8, 0, 0, 8]]
    assert planner.selector.group_size == 4
    assert play(ReinforceAda(budget=40, exit="positive"), rewards)[1:] == [
        [8, 0, 0, 8, 8],
        [8, 0, 0, 0, 8],
        [8, 0, 0, 0, 0],
    ]


def test_v3_names_larger_numbers():
    planner = ReinforceAda(budget=16, positives=8, negatives=8, group_size=16)
    assert play(planner, [[0, 1] * 16, [0] * 8 + [1] * 24]) == [[8, 8], [8, 8]]
    planner = ReinforceAda(budget=16, exit="positive", positives=16)
    assert play(planner, [[1] * 32, [0, 1] * 16]) == [[8, 8], [8, 8], [0, 8], [0, 8]]


@pytest.mark.parametrize(("p", "cost"), [(0.5, 8.03), (0.2, 9.61), (0.1, 13.56), (0.05, 19.16), (0.02, 25.52)])
def test_expected_cost_of_the_positive_exit(p, cost):
    """It costs 8 sum_t (1 - p)^(8 t), which is not 1 / p; simulated within 4 standard errors."""
    formula = 8 * sum((1 - p) ** (8 * t) for t in range(4))
    assert round(formula, 2) == cost
    assert sum(chance * n for (_, n), chance in pools(p, POSITIVE).items()) == pytest.approx(formula)
    rollouts_Q, _ = simulated(ReinforceAda(budget=8 * 2000, exit="positive"), p, 2000)
    assert rollouts_Q.mean() == pytest.approx(formula, abs=4 * rollouts_Q.std() / np.sqrt(2000))


@pytest.mark.parametrize(
    ("p", "cost", "mean", "unresolved"),
    [(0.1, 20.96, 0.132, 0.156), (0.9, 20.96, 0.868, 0.156), (0.05, 27.31, 0.066, 0.52)],
)
def test_the_balance_exit_costs_alike_at_both_ends_and_biases_the_mean_of_the_pool(p, cost, mean, unresolved):
    """Golden values, recursion and simulation agree; the ratio of sums over prompts is unbiased."""
    exact = pools(p, BALANCE)
    assert sum(c * n for (_, n), c in exact.items()) == pytest.approx(cost, abs=0.005)
    assert sum(c * k / n for (k, n), c in exact.items()) == pytest.approx(mean, abs=6e-4)
    assert sum(c for (k, n), c in exact.items() if min(k, n - k) < 2) == pytest.approx(unresolved, abs=2e-3)
    rollouts_Q, correct_Q = simulated(ReinforceAda(budget=8 * 3000), p, 3000)
    for found_Q, expected in [
        (rollouts_Q, cost),
        (correct_Q / rollouts_Q, mean),
        (np.minimum(correct_Q, rollouts_Q - correct_Q) < 2, unresolved),
        (correct_Q - p * rollouts_Q, 0.0),
    ]:
        assert found_Q.mean() == pytest.approx(expected, abs=4 * found_Q.std() / np.sqrt(3000) + 2e-3)


@pytest.mark.parametrize(
    ("baseline", "exit", "golden"),
    [
        ("pool", "balance", {0.1: 3.95, 0.2: 2.05, 0.5: 1.00, 0.9: 3.95}),
        ("pool", "positive", {0.1: 2.80, 0.2: 1.66, 0.5: 0.97, 0.9: 1.58}),
        ("log_pool", "balance", {0.1: 41.4, 0.5: 2.24, 0.9: 4.62}),
        ("p", "balance", {0.1: 1.29, 0.2: 1.17, 0.5: 1.03, 0.9: 1.29}),
        ("log_p", "balance", {0.1: 9.26, 0.2: 4.76, 0.5: 2.00, 0.9: 1.47}),
    ],
)
def test_measured_weight_of_the_whole_step(baseline, exit, golden):
    """Ask, rounds, selection and loss on a toy with exact gradients, against the recursion, within 4 SE."""
    grid = np.array(list(golden))
    needed = BALANCE if exit == "balance" else POSITIVE
    expected_P = np.array([expected_weight(p, needed, baseline) for p in grid])
    np.testing.assert_allclose(expected_P, list(golden.values()), rtol=5e-3)

    def planner(seed):
        return ReinforceAda(budget=8 * 25 * len(grid), exit=exit, baseline=baseline, seed=seed)

    measured = measured_weights(planner, grid, steps=4, warm_up=0, runs=30, copies=25)
    assert (measured.errors_P < 0.08 * expected_P).all()
    np.testing.assert_array_less(np.abs(measured.weights_P - expected_P), 4 * measured.errors_P)
    costs_P = [sum(c * n for (_, n), c in pools(p, needed).items()) for p in grid]
    np.testing.assert_allclose(measured.generated_P, costs_P, rtol=0.03)
    np.testing.assert_array_equal(measured.trained_P, 4)


def test_what_does_not_divide_the_cap_and_the_group_size_of_a_smaller_step():
    """The rest of C / Q is spread over round 0; the upper bound ends the last round early."""
    planner = ReinforceAda(budget=20, bounds=(3, 17))
    rounds = play(planner, [[0] * 32] * 3)
    assert sorted(rounds[0]) == [6, 7, 7]
    assert rounds[1] == [6, 6, 6]
    assert sorted(np.sum(rounds, axis=0)) == [17, 17, 17]
    assert planner.selector.group_size == 3
    play(planner, [[0] * 32] * 3, budget=48)
    assert planner.selector.group_size == 8


@pytest.mark.parametrize("settings", [{"rounds": 1}, {"rounds": 2, "exit": "positive"}])
def test_a_step_ends_after_its_rounds(settings):
    assert play(ReinforceAda(budget=16, **settings), [[0] * 32] * 2) == [[8, 8]] * settings["rounds"]


def wide(*means, strength=2.0):
    """A belief Beta(strength m, strength (1 - m)) about each prompt."""
    means_Q = np.array(means)
    return BetaPosterior.from_counts(strength * means_Q, strength * (1 - means_Q))


class Believing(Known):
    """Known, but with any posterior."""

    def __init__(self, posterior):
        super().__init__({})
        self.posterior = posterior

    def predict(self, ids):
        return Posterior(*(a[list(ids)] for a in (self.posterior.mean, self.posterior.variance)))


@pytest.mark.parametrize("exit", ["balance", "positive"])
def test_a_prior_spends_round_0_where_most_prompts_get_a_signal(exit):
    """VIP's prior as starting belief: the best of all splits by enumeration, for known probabilities."""
    p = np.array([0.003, 0.12, 0.5, 0.97])
    planner = ReinforceAda(budget=32, exit=exit, predictor=Known(dict(enumerate(logit(p)))))

    def signals(counts):
        n = np.array(counts)
        return float((1 - (1 - p) ** n - (exit == "balance") * p**n).sum())

    splits = [s for s in itertools.product(range(3, 24), repeat=4) if sum(s) == 32]
    plan = planner.ask(range(4))
    assert plan.budget == 32
    assert signals(plan.counts) == pytest.approx(max(map(signals, splits)), abs=1e-5)
    assert signals(plan.counts) > signals([8, 8, 8, 8])
    np.testing.assert_allclose(plan.posterior.plug_in_probability(), p)


def test_a_prior_is_learnt_from_all_rounds_as_one_visit_and_later_rounds_stay_as_they_are():
    known = Known({0: 0.0, 1: -6.0, 2: -2.0})
    planner = ReinforceAda(budget=24, predictor=known)
    rounds = play(planner, [[1, 0] * 16, [0] * 32, [0, 0, 0, 1] * 8])
    assert rounds == [[6, 3, 15], [0, 8, 0], [0, 8, 0], [0, 8, 0]]
    assert known.observed == [([0, 1, 2], [3, 0, 3], [6, 27, 15])]


@pytest.mark.parametrize("strength", [0.5, 2.0, 40.0])
def test_the_price_of_no_signal_is_that_of_the_belief(strength):
    """E[p^n + (1 - p)^n] by integration; gains are the differences of costs, and fall."""
    means = (0.02, 0.3, 0.8)
    price = NoSignalPrice.of(wide(*means, strength=strength), is_both=True)
    grid = np.arange(2, 20)
    costs_QK = np.array([price.cost(np.full(3, n)) for n in grid]).T
    for m, costs_K in zip(means, costs_QK, strict=True):
        p = beta(strength * m, strength * (1 - m)).ppf((np.arange(200_000) + 0.5) / 200_000)
        np.testing.assert_allclose(costs_K[:3], [(p**n + (1 - p) ** n).mean() for n in grid[:3]], rtol=1e-4)
    gains_QK = price.gains(grid)
    np.testing.assert_allclose(gains_QK[:, :-1], -np.diff(costs_QK), atol=1e-14)
    assert (np.diff(gains_QK) < 0).all()


def test_a_step_goes_on_where_it_was_saved(tmp_path):
    """The round size and the group size of a step asked with a budget of its own."""
    planner = ReinforceAda(budget=16)
    plan = planner.ask([0, 1], budget=24)
    planner.tell(plan, np.zeros(24), plan.group_ids())
    planner.save(tmp_path / "state")
    restored = ReinforceAda(budget=16).load(tmp_path / "state")
    assert_same(restored.state_dict(), planner.state_dict())
    assert restored.selector.group_size == 6
    assert restored.ask([1, 0]).counts.tolist() == planner.ask([1, 0]).counts.tolist() == [12, 12]
    for other in ({"exit": "positive"}, {"rounds": 3}, {"baseline": "p"}, {"positives": 3}):
        with pytest.raises(StateError, match="settings"):
            ReinforceAda(budget=16, **other).load(tmp_path / "state")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"exit": "never"}, "balance, positive"),
        ({"rounds": 0}, "rounds"),
        ({"rounds": 2.0}, "rounds"),
        ({"group_size": 1}, "group_size"),
        ({"positives": 0}, "positives"),
        ({"exit": "positive", "negatives": 2}, "negatives"),
        ({"baseline": "mean"}, "log_pool"),
        ({"success_threshold": np.nan}, "success_threshold"),
    ],
)
def test_settings_refused(settings, text):
    with pytest.raises(InvalidInputError, match=text):
        ReinforceAda(budget=16, **settings)


@pytest.mark.parametrize(
    ("settings", "budget", "text"),
    [({}, 5, "sum of the lower"), ({}, 65, "sum of the upper"), ({"positives": 30, "negatives": 3}, 16, "ever leave")],
)
def test_a_budget_that_contradicts_the_batch(settings, budget, text):
    planner = ReinforceAda(budget=16, **settings)
    with pytest.raises(InfeasibleBudgetError, match=text):
        planner.ask([0, 1], budget=budget)
    assert not planner.open_plans
    assert planner.done
