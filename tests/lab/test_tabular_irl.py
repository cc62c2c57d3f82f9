import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from allotment.errors import InvalidInputError
from theory.tabular_irl import (
    FiniteMDP,
    improved_policy,
    likelihood_gradient,
    log_likelihood,
    occupancies,
    sampled_visits,
    single_loop,
    soft_optimal_policy,
    soft_q,
    uniform_policy,
)

STATES, ACTIONS = 5, 3


def random_mdp(seed, states=STATES, actions=ACTIONS, gamma=0.9, temperature=0.5):
    random = np.random.default_rng(seed)
    transitions_SAS = random.dirichlet(np.ones(states), (states, actions))
    return FiniteMDP(transitions_SAS, random.dirichlet(np.ones(states)), gamma, temperature), random


@pytest.fixture
def mdp():
    return random_mdp(0)[0]


@pytest.fixture(name="rewards_SA")
def some_rewards():
    return np.random.default_rng(1).normal(size=(STATES, ACTIONS))


@pytest.fixture(name="expert_SA")
def some_expert(mdp, rewards_SA):
    """Logarithm of the expert's policy."""
    return soft_optimal_policy(mdp, rewards_SA)


def optimal_q(mdp, rewards_SA):
    """A second way: the fixed point of soft value iteration, a contraction."""
    q_SA = np.zeros_like(rewards_SA)
    for _ in range(2000):
        scaled_SA = q_SA / mdp.temperature
        top_S = scaled_SA.max(1)
        values_S = mdp.temperature * (top_S + np.log(np.exp(scaled_SA - top_S[:, None]).sum(1)))
        q_SA = rewards_SA + mdp.gamma * mdp.transitions_SAS @ values_S
    return q_SA


@st.composite
def processes(draw):
    mdp, random = random_mdp(
        draw(st.integers(0, 2**32)),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 4)),
        draw(st.floats(0, 0.97)),
        draw(st.floats(0.05, 3)),
    )
    shape = mdp.transitions_SAS.shape[:2]
    return mdp, random.normal(size=shape) * draw(st.floats(0, 5)), np.log(random.dirichlet(np.ones(shape[1]), shape[0]))


@settings(max_examples=60, deadline=None)
@given(processes())
def test_a_soft_policy_iteration_never_lowers_q_and_contracts(process):
    mdp, rewards_SA, log_policy_SA = process
    best_SA = optimal_q(mdp, rewards_SA)
    slack = 1e-9 * max(1, np.abs(best_SA).max())
    q_SA = soft_q(mdp, rewards_SA, log_policy_SA)
    for _ in range(5):
        next_SA = soft_q(mdp, rewards_SA, improved_policy(mdp, q_SA))
        assert (next_SA >= q_SA - slack).all()
        assert np.abs(next_SA - best_SA).max() <= mdp.gamma * np.abs(q_SA - best_SA).max() + slack
        q_SA = next_SA


def test_soft_policy_iteration_converges_to_the_soft_optimal_policy(mdp, rewards_SA):
    best_SA = optimal_q(mdp, rewards_SA)
    q_SA = soft_q(mdp, rewards_SA, uniform_policy(mdp))
    assert np.abs(q_SA - best_SA).max() > 0.1
    for _ in range(30):
        q_SA = soft_q(mdp, rewards_SA, improved_policy(mdp, q_SA))
    policy_SA = np.exp(improved_policy(mdp, q_SA))
    assert np.abs(policy_SA - np.exp(improved_policy(mdp, best_SA))).max() < 2e-15
    assert np.abs(policy_SA - np.exp(soft_optimal_policy(mdp, rewards_SA))).max() < 2e-15


def test_q_of_a_policy_is_what_a_long_sum_gives(mdp, rewards_SA):
    policy_SA = np.random.default_rng(2).dirichlet(np.ones(ACTIONS), STATES)
    values_S = np.zeros(STATES)
    for _ in range(500):
        q_SA = rewards_SA + mdp.gamma * mdp.transitions_SAS @ values_S
        values_S = (policy_SA * (q_SA - mdp.temperature * np.log(policy_SA))).sum(1)
    assert_allclose(soft_q(mdp, rewards_SA, np.log(policy_SA)), q_SA, atol=1e-12)


def test_occupancies_are_what_a_long_sum_gives(mdp, expert_SA):
    state_S, summed_SA = mdp.start_S, np.zeros((STATES, ACTIONS))
    for t in range(500):
        both_SA = state_S[:, None] * np.exp(expert_SA)
        summed_SA += mdp.gamma**t * both_SA
        state_S = np.einsum("sa,sat->t", both_SA, mdp.transitions_SAS)
    assert_allclose(occupancies(mdp, expert_SA), summed_SA, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(processes())
def test_the_gradient_is_the_difference_of_occupancies(process):
    """Along a random direction, by central differences extrapolated to a step of 0."""
    mdp, rewards_SA, expert_SA = process
    expert_SA = occupancies(mdp, expert_SA)
    direction_SA = np.random.default_rng(0).normal(size=rewards_SA.shape)
    direction_SA /= np.abs(direction_SA).max()

    def likelihood(size):
        return log_likelihood(expert_SA, soft_optimal_policy(mdp, rewards_SA + size * direction_SA))

    def slope(size):
        return (likelihood(size) - likelihood(-size)) / (2 * size)

    size = 1e-3 * mdp.temperature * (1 - mdp.gamma)
    expected = (4 * slope(size / 2) - slope(size)) / 3
    agent_SA = occupancies(mdp, soft_optimal_policy(mdp, rewards_SA))
    exact = (likelihood_gradient(mdp, expert_SA, agent_SA) * direction_SA).sum()
    scale = 1 / (mdp.temperature * (1 - mdp.gamma))
    assert abs(exact - expected) < 1e-8 * max(1, scale * abs(likelihood(0)))


def test_every_entry_of_the_gradient_by_finite_differences(mdp, expert_SA):
    rewards_SA = np.random.default_rng(3).normal(size=(STATES, ACTIONS))
    expert_SA = occupancies(mdp, expert_SA)
    exact_SA = likelihood_gradient(mdp, expert_SA, occupancies(mdp, soft_optimal_policy(mdp, rewards_SA)))
    for entry in np.ndindex(STATES, ACTIONS):
        shift_SA = np.zeros((STATES, ACTIONS))
        shift_SA[entry] = 1e-4
        up, down = (
            log_likelihood(expert_SA, soft_optimal_policy(mdp, rewards_SA + sign * shift_SA)) for sign in (1, -1)
        )
        assert abs((up - down) / 2e-4 - exact_SA[entry]) < 1e-8


def test_an_agent_like_the_expert_has_no_gradient_and_the_largest_likelihood(mdp, rewards_SA, expert_SA):
    occupancies_SA = occupancies(mdp, expert_SA)
    assert_allclose(occupancies_SA.sum(), 1 / (1 - mdp.gamma), rtol=1e-14)
    assert not likelihood_gradient(mdp, occupancies_SA, occupancies_SA).any()
    best = log_likelihood(occupancies_SA, expert_SA)
    assert best == pytest.approx((occupancies_SA * np.log(np.exp(expert_SA))).sum())
    for seed in range(20):
        other_SA = np.log(np.random.default_rng(seed).dirichlet(np.ones(ACTIONS), STATES))
        assert log_likelihood(occupancies_SA, other_SA) < best


@settings(max_examples=40, deadline=None)
@given(processes())
def test_potential_shaping_leaves_the_soft_optimal_policy_unchanged(process):
    mdp, rewards_SA, _ = process
    potential_S = np.random.default_rng(4).normal(size=len(rewards_SA))
    shaped_SA = rewards_SA + mdp.gamma * mdp.transitions_SAS @ potential_S - potential_S[:, None]
    policies = [np.exp(soft_optimal_policy(mdp, r_SA)) for r_SA in (rewards_SA, shaped_SA)]
    assert_allclose(policies[0], policies[1], atol=1e-10)
    assert np.abs(shaped_SA - rewards_SA).max() > 1e-3


def test_the_single_loop_finds_the_expert_s_policy_not_its_reward(mdp, rewards_SA, expert_SA):
    course = single_loop(mdp, expert_SA, steps=4000)
    bound = log_likelihood(occupancies(mdp, expert_SA), expert_SA)
    assert (np.diff(course.log_likelihoods_K) > -1e-13).all()
    assert course.log_likelihoods_K[0] < bound - 0.1
    assert course.log_likelihoods_K[-1] == pytest.approx(bound, abs=1e-12)
    assert course.policy_errors_K[0] > 0.1
    assert course.policy_errors_K[-1] < 1e-12
    assert np.abs(course.rewards_SA - rewards_SA).max() > 0.1
    assert_allclose(soft_optimal_policy(mdp, course.rewards_SA), expert_SA, atol=1e-10)


def test_the_single_loop_comes_near_an_expert_who_is_certain(mdp):
    expert_SA = np.where(np.arange(ACTIONS) == np.arange(STATES)[:, None] % ACTIONS, 0.0, -np.inf)
    course = single_loop(mdp, expert_SA, steps=500, step_size=1.0)
    assert (np.exp(course.log_policy_SA[expert_SA == 0]) > 0.95).all()
    assert course.log_likelihoods_K[0] < course.log_likelihoods_K[-1] < 0


def test_sampled_visits_and_gradient_agree_with_the_exact_ones(mdp, expert_SA):
    random = np.random.default_rng(5)
    agent_SA = uniform_policy(mdp)
    seen = [sampled_visits(mdp, policy_SA, 3000, random) for policy_SA in (expert_SA, agent_SA)]
    exact_SA = likelihood_gradient(mdp, occupancies(mdp, expert_SA), occupancies(mdp, agent_SA))
    gradients_NSA = likelihood_gradient(mdp, *seen)
    error_SA = gradients_NSA.std(0, ddof=1) / np.sqrt(len(gradients_NSA))
    assert (np.abs(gradients_NSA.mean(0) - exact_SA) < 4 * error_SA).all()
    assert_allclose(gradients_NSA.sum((1, 2)), 0, atol=1e-9)


def test_the_sampled_loop_comes_near_the_expert_and_is_a_function_of_its_seed(mdp, expert_SA):
    runs = [
        single_loop(mdp, expert_SA, steps=60, step_size=0.5, decay=0.5, trajectories=20, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert (runs[0].rewards_SA == runs[1].rewards_SA).all()
    assert (runs[0].rewards_SA != runs[2].rewards_SA).any()
    bound = log_likelihood(occupancies(mdp, expert_SA), expert_SA)
    for run in runs:
        assert bound - run.log_likelihoods_K[-10:].mean() < 0.3 * (bound - run.log_likelihoods_K[0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"transitions_SAS": np.full((2, 1, 2), 0.6)}, "transitions_SAS"),
        ({"transitions_SAS": np.array([[[1.5, -0.5]], [[0.5, 0.5]]])}, "transitions_SAS"),
        ({"transitions_SAS": np.full((2, 1, 2), np.nan)}, "transitions_SAS"),
        ({"transitions_SAS": np.full((2, 2), 0.5)}, "shapes"),
        ({"start_S": np.ones(3) / 3}, "shapes"),
        ({"start_S": np.zeros(2)}, "start_S"),
        ({"gamma": 1.0}, "gamma"),
        ({"gamma": float("nan")}, "gamma"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
    ],
)
def test_what_is_no_decision_process_is_refused(changes, said):
    mdp = FiniteMDP(np.full((2, 1, 2), 0.5), np.array([1.0, 0.0]))
    with pytest.raises(InvalidInputError, match=f"this {said}"):
        dataclasses.replace(mdp, **changes)


def test_rewards_and_policies_that_are_none_are_refused(mdp, rewards_SA):
    for bad_SA in (np.where(rewards_SA > 0, np.nan, 0), rewards_SA[:2]):
        with pytest.raises(InvalidInputError, match="this rewards"):
            soft_q(mdp, bad_SA, uniform_policy(mdp))
    for bad_SA in (rewards_SA, uniform_policy(mdp)[:, :2], np.full((STATES, ACTIONS), np.nan)):
        with pytest.raises(InvalidInputError, match="this policy"):
            occupancies(mdp, bad_SA)
