import pytest
import torch
from batch_expectation import expected_gradient
from hypothesis import given
from hypothesis import strategies as st

from allotment.errors import InvalidInputError
from allotment.learning import group, rloo_advantages
from allotment.methods.objectives.jspo import JSPO, shrinkage

CHANCES = [0.1, 0.3, 0.6, 0.85]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def jspo(rewards_N, groups_N):
    return JSPO().advantages({"r": rewards_N}, groups_N)


def ids(*sizes):
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


def test_lambda_and_the_other_prompts_mean_by_hand():
    """Means 1/2, 1/4, 1 and variances 1/3, 1/4, 0 of four rollouts each.

    The first prompt: v = (1/8)/3, s = 9/32 - (1/8)/4 = 1/4, so lambda = 2/3 * 1/7.
    The third: v = (7/24)/3, spread 1/32, less than its noise 7/96: s = 0, lambda = 2/3.
    """
    rewards_N = f64(1, 1, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1)
    others_Q, shares_Q = shrinkage(rewards_N, group(ids(4, 4, 4)))
    torch.testing.assert_close(others_Q, f64(5 / 8, 3 / 4, 3 / 8))
    torch.testing.assert_close(shares_Q[[0, 2]], f64(2 / 21, 2 / 3))


def test_advantages_by_hand():
    """Beside a mixed prompt: v = 1/4, s = 0, lambda = 2/3; beside two unanimous ones v = 0 and it is RLOO."""
    advantages_N = jspo(f64(1, 0, 1, 1, 0, 0), ids(2, 2, 2))
    torch.testing.assert_close(advantages_N, f64(1, -1, 0.5, 0.5, -0.5, -0.5))


def test_rewards_are_added_up():
    some_N, more_N = f64(1, 0, 0, 1, 1, 0, 1), f64(0.5, 0, 1, 0, -1, 0, 0)
    both = JSPO().advantages({"a": some_N, "b": more_N}, ids(3, 2, 2))
    torch.testing.assert_close(both, jspo(some_N + more_N, ids(3, 2, 2)))


@pytest.mark.parametrize("counts", [(2, 2, 2, 2), (3, 1, 2, 1), (1, 1, 4, 2)])
def test_unbiased_for_every_count_groups_of_one_too(counts):
    torch.testing.assert_close(expected_gradient(jspo, CHANCES, counts), torch.ones(4, dtype=torch.float64))


def test_a_batch_mean_that_holds_the_own_reward_fails_this_test():
    def biased(rewards_N, groups_N):
        return rewards_N - 0.5 * (rewards_N - rloo_advantages(rewards_N, groups_N)) - 0.5 * rewards_N.mean()

    found_Q = expected_gradient(biased, CHANCES, (2, 2, 2, 2))
    assert (found_Q - 1).abs().min() > 0.05


@pytest.mark.parametrize("sizes", [(4,), (4, 4), (3, 1), (2,)])
def test_with_fewer_than_two_other_prompts_it_is_rloo(sizes):
    rewards_N = torch.arange(sum(sizes), dtype=torch.float64) % 2
    rows_N = ids(*sizes)
    alone_N = (rows_N == 1) if sizes == (3, 1) else torch.zeros_like(rows_N, dtype=torch.bool)
    expected_N = torch.where(alone_N, rewards_N - 1 / 3, rloo_advantages(rewards_N, rows_N))
    torch.testing.assert_close(jspo(rewards_N, rows_N), expected_N)


def test_groups_of_one_alone_are_compared_with_the_other_prompts():
    torch.testing.assert_close(jspo(f64(1, 0, 0, 1), torch.arange(4)), f64(2 / 3, -2 / 3, -2 / 3, 2 / 3))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.randoms())
def test_shares_are_shares_and_the_order_of_rows_does_not_matter(sizes, random):
    rows_N = ids(*sizes)
    rewards_N = f64(*(random.choice([0.0, 1.0, 0.3, -2.0]) for _ in rows_N))
    _, shares_Q = shrinkage(rewards_N, group(rows_N))
    assert ((shares_Q >= 0) & (shares_Q <= 1)).all()
    order_N = torch.tensor(random.sample(range(len(rows_N)), len(rows_N)))
    torch.testing.assert_close(jspo(rewards_N[order_N], rows_N[order_N]), jspo(rewards_N, rows_N)[order_N])


def test_a_reward_that_is_no_number_is_refused():
    with pytest.raises(InvalidInputError, match="reward"):
        jspo(f64(1, float("nan")), ids(2))
