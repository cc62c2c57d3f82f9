import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allotment.errors import ConfigError, InvalidInputError
from allotment.learning import advantage_estimator, dr_grpo_advantages, grpo_advantages, rloo_advantages

NAMES = ["rloo", "dr_grpo", "grpo"]
rewards = st.floats(-100, 100).map(lambda x: round(x, 3))
batches = st.lists(st.tuples(st.integers(0, 4), rewards), min_size=1, max_size=40)


def tensors(pairs):
    ids, values = zip(*pairs, strict=True)
    return torch.tensor(values, dtype=torch.float64), torch.tensor(ids)


def by_loop(name, pairs):
    """The definitions, one rollout at a time."""
    out = []
    for j, (own_id, reward) in enumerate(pairs):
        group = [r for i, r in pairs if i == own_id]
        others = [r for k, (i, r) in enumerate(pairs) if i == own_id and k != j]
        if not others:
            out.append(0.0)
        elif name == "rloo":
            out.append(reward - sum(others) / len(others))
        elif name == "dr_grpo":
            out.append(reward - sum(group) / len(group))
        else:
            out.append((reward - sum(group) / len(group)) / (statistics.stdev(group) + 1e-4))
    return out


def test_by_hand_with_interleaved_groups():
    # group 1: rewards 1, 0, 0, 1 at positions 0, 2, 3, 5; group 0: rewards 1, 0 at 1, 4; group 9 alone at 6
    rewards_N = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    ids_N = torch.tensor([1, 0, 1, 1, 0, 1, 9])
    third = 2 / 3
    expected = [third, 1, -third, -third, -1, third, 0]
    torch.testing.assert_close(rloo_advantages(rewards_N, ids_N), torch.tensor(expected))
    expected = [0.5, 0.5, -0.5, -0.5, -0.5, 0.5, 0]
    torch.testing.assert_close(dr_grpo_advantages(rewards_N, ids_N), torch.tensor(expected))
    a, b = 0.5 / (math.sqrt(1 / 3) + 1e-4), 0.5 / (math.sqrt(1 / 2) + 1e-4)
    torch.testing.assert_close(grpo_advantages(rewards_N, ids_N), torch.tensor([a, b, -a, -a, -b, a, 0]))


@pytest.mark.parametrize("name", NAMES)
@given(batches)
def test_equal_to_a_plain_loop(name, pairs):
    got = advantage_estimator(name)(*tensors(pairs))
    torch.testing.assert_close(got, torch.tensor(by_loop(name, pairs), dtype=torch.float64), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
@given(batches, st.randoms(use_true_random=False))
def test_permutation_equivariant(name, pairs, random):
    """Interleaving is a permutation of sorted groups, so this covers both."""
    order = list(range(len(pairs)))
    random.shuffle(order)
    rewards_N, ids_N = tensors(pairs)
    estimate = advantage_estimator(name)
    permuted = estimate(rewards_N[order], ids_N[order])
    torch.testing.assert_close(permuted, estimate(rewards_N, ids_N)[order], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
@given(batches, st.integers(-50, 50))
def test_invariant_to_a_shift_of_rewards(name, pairs, shift):
    rewards_N, ids_N = tensors(pairs)
    estimate = advantage_estimator(name)
    torch.testing.assert_close(estimate(rewards_N + shift, ids_N), estimate(rewards_N, ids_N), rtol=1e-6, atol=1e-7)


@given(batches)
def test_sums_to_zero_and_rloo_is_dr_grpo_scaled(pairs):
    rewards_N, ids_N = tensors(pairs)
    rloo_N, dr_grpo_N = rloo_advantages(rewards_N, ids_N), dr_grpo_advantages(rewards_N, ids_N)
    for i in ids_N.unique():
        own_N = ids_N == i
        n = int(own_N.sum())
        assert abs(float(dr_grpo_N[own_N].sum())) < 1e-9
        if n > 1:
            torch.testing.assert_close(rloo_N[own_N], dr_grpo_N[own_N] * n / (n - 1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@given(st.floats(-1e4, 1e4, width=32), st.integers(1, 33))
def test_nothing_to_compare_is_exactly_zero(name, reward, n):
    """A singleton, and a group whose rewards are all equal, beside a group that does have advantages."""
    rewards_N = torch.tensor([reward] * n + [0.0, 1.0])
    ids_N = torch.tensor([4] * n + [2, 2])
    got = advantage_estimator(name)(rewards_N, ids_N)
    assert not got[:n].any()
    assert got[n:].all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_refuses_non_finite_rewards_with_their_index(name, bad):
    with pytest.raises(InvalidInputError, match="index 2"):
        advantage_estimator(name)(torch.tensor([0.0, 1.0, bad]), torch.tensor([0, 0, 0]))


def test_refuses_what_does_not_fit():
    ids_N = torch.tensor([0, 0, 1])
    with pytest.raises(InvalidInputError, match="do not fit"):
        rloo_advantages(torch.zeros(2), ids_N)
    with pytest.raises(InvalidInputError, match="epsilon"):
        grpo_advantages(torch.zeros(3), ids_N, epsilon=0.0)
    with pytest.raises(ConfigError, match="rloo, dr_grpo, grpo"):
        advantage_estimator("reinforce")


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [
        (torch.bool, torch.float32),
        (torch.int64, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_dtype_and_no_gradient(given_dtype, dtype):
    rewards_N = torch.tensor([1, 0, 0]).to(given_dtype).requires_grad_(given_dtype.is_floating_point)
    got = rloo_advantages(rewards_N, torch.tensor([3, 3, 3], dtype=torch.int32))
    assert got.dtype == dtype
    assert not got.requires_grad
    assert got.tolist() == pytest.approx([1, -0.5, -0.5])
