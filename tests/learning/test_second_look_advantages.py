"""Two rounds, the second allocated by the first: every path enumerated, the expectation is the gradient."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allotment.errors import ConfigError, InvalidInputError
from allotment.learning import rloo_advantages, second_look_advantages

ANSWERS = np.array([0.25, 0.45, 0.3])  # probabilities of the answers; only the first is right
REWARD = np.array([1.0, 0.0, 0.0])
SCORES = {  # d log pi(answer) / d logit of the second answer; and a weighted one, as 1 / |o| makes it, of mean not 0
    "policy": np.array([0.0, 1.0, 0.0]) - ANSWERS[1],
    "weighted": np.array([1.0, 0.2, 0.5]) * (np.array([0.0, 1.0, 0.0]) - ANSWERS[1]),
}
RULES = {  # how many rollouts follow after s of m successes
    "fewer after success": lambda s, m: 2 + 3 * (s == 0),
    "more after a mixed round": lambda s, m: 5 if 0 < s < m else 2,
    "always as expected": lambda s, m: 3,
}


def expectation(rule, first, expected, scores, estimator="unbiased"):
    """Sum over all outcomes of both rounds of probability times mean of advantage times score; one group a path."""
    rows, chances = [], []
    for early in itertools.product(range(3), repeat=first):
        later = rule(int(REWARD[list(early)].sum()), first)
        for late in itertools.product(range(3), repeat=later):
            path = len(chances)
            rows += [(path, 0, a) for a in early] + [(path, 1, a) for a in late]
            chances.append(ANSWERS[list(early + late)].prod())
    path_N, round_N, answer_N = np.array(rows).T
    advantages_N = second_look_advantages(
        torch.tensor(REWARD[answer_N]),
        torch.tensor(path_N),
        torch.tensor(round_N),
        torch.full((len(rows),), expected),
        estimator,
    ).numpy()
    assert sum(chances) == pytest.approx(1, abs=1e-12)
    means = np.bincount(path_N, advantages_N * scores[answer_N]) / np.bincount(path_N)
    return means @ np.array(chances)


def covariance(scores):
    return ANSWERS @ (REWARD * scores) - (ANSWERS @ REWARD) * (ANSWERS @ scores)


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("first", "expected"), [(2, 2), (3, 3), (3, 5), (1, 4)])
def test_unbiased_whatever_the_rule(rule, first, expected, scores):
    """RLOO of a fixed number of rollouts estimates the covariance of reward and score; so do two rounds."""
    got = expectation(RULES[rule], first, expected, SCORES[scores])
    assert got == pytest.approx(covariance(SCORES[scores]), abs=1e-12)


@pytest.mark.parametrize("scores", SCORES)
def test_unbiased_from_one_rollout_where_one_is_expected(scores):
    got = expectation(lambda s, m: 1 + 2 * (s == 0), 3, 1, SCORES[scores])
    assert got == pytest.approx(covariance(SCORES[scores]), abs=1e-12)


@pytest.mark.parametrize("rule", ["fewer after success", "more after a mixed round"])
def test_the_pooled_group_is_biased(rule):
    """By more than a twentieth here; and only because the second round depends on the first."""
    truth = covariance(SCORES["policy"])
    assert abs(expectation(RULES[rule], 3, 3, SCORES["policy"], "pooled") / truth - 1) > 0.05
    assert expectation(lambda s, m: 3, 3, 3, SCORES["policy"], "pooled") == pytest.approx(truth, abs=1e-12)


ragged = st.lists(
    st.tuples(st.integers(1, 5), st.integers(0, 5), st.lists(st.integers(-3, 3), min_size=10, max_size=10)),
    min_size=1,
    max_size=6,
)


def step(groups, expected=None):
    """Tensors of a step of groups (m, k, rewards); e is k unless given."""
    rows = [
        (q, int(j >= m), rewards[j], k if expected is None else expected)
        for q, (m, k, rewards) in enumerate(groups)
        for j in range(m + k)
    ]
    ids_N, rounds_N, rewards_N, expected_N = (torch.tensor(column) for column in zip(*rows, strict=True))
    return rewards_N.double(), ids_N, rounds_N, expected_N


@given(ragged)
def test_as_many_as_expected_is_rloo_on_the_pooled_group(groups):
    rewards_N, ids_N, rounds_N, expected_N = step(groups)
    got = second_look_advantages(rewards_N, ids_N, rounds_N, expected_N)
    torch.testing.assert_close(got, rloo_advantages(rewards_N, ids_N), rtol=1e-9, atol=1e-9)


@given(ragged, st.integers(0, 6), st.integers(-50, 50), st.randoms(use_true_random=False))
def test_follows_the_order_and_ignores_a_shift(groups, expected, shift, random):
    tensors = step(groups, expected)
    order = list(range(len(tensors[0])))
    random.shuffle(order)
    got = second_look_advantages(*tensors)
    moved = second_look_advantages(*(tensor[order] for tensor in tensors))
    torch.testing.assert_close(moved, got[order], rtol=1e-9, atol=1e-9)
    rewards_N, *rest = tensors
    torch.testing.assert_close(second_look_advantages(rewards_N + shift, *rest), got, rtol=1e-6, atol=1e-7)


@given(ragged, st.integers(0, 6), st.floats(-1e3, 1e3, width=32))
def test_equal_rewards_have_no_advantage(groups, expected, reward):
    rewards_N, *rest = step(groups, expected)
    assert not second_look_advantages(torch.full_like(rewards_N, reward), *rest).any()


@pytest.mark.parametrize(("rounds", "rewards"), [([0, 0, 0], [1.0, 0.0, 0.0]), ([1, 1, 1], [1.0, 0.0, 0.0])])
def test_a_round_that_did_not_come_leaves_rloo_on_the_other(rounds, rewards):
    ids = torch.zeros(3, dtype=torch.int64)
    got = second_look_advantages(torch.tensor(rewards), ids, torch.tensor(rounds), torch.full((3,), 4))
    torch.testing.assert_close(got, rloo_advantages(torch.tensor(rewards), ids))


@pytest.mark.parametrize(
    ("rounds", "expected", "named"),
    [
        ([0, 0], [2, 2, 2], "do not fit"),
        ([0, 0, 2], [2, 2, 2], "neither 0 nor 1"),
        ([0, 0, 1], [2, 2, -1], "no count"),
        ([0, 0, 1], [2.0, 2.0, float("nan")], "no count"),
        ([0, 0, 1], [2, 2, 3], "differ"),
    ],
)
def test_refuses_what_does_not_fit(rounds, expected, named):
    with pytest.raises(InvalidInputError, match=named):
        second_look_advantages(
            torch.ones(3), torch.zeros(3, dtype=torch.int64), torch.tensor(rounds), torch.tensor(expected)
        )


def test_refuses_an_unknown_estimator():
    ids = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ConfigError, match="unbiased"):
        second_look_advantages(torch.ones(2), ids, ids, ids, "separate")
