import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allotment.errors import ConfigError, InvalidInputError
from allotment.learning import (
    advantage_estimator,
    baseline_advantages,
    dr_grpo_advantages,
    grpo_advantages,
    rloo_advantages,
)

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


shares = st.floats(0, 1)


def per_rollout(ids_N, by_group):
    """[N] float64 the value of each rollout's group, by id."""
    return torch.tensor([by_group[int(i)] for i in ids_N], dtype=torch.float64)


def test_baseline_by_hand_with_interleaved_groups_and_a_group_of_one():
    # group 1: rewards 1, 0, 0 at 0, 2, 3; group 0: rewards 1, 0 at 1, 4; group 9 alone at 5
    rewards_N, ids_N = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 1.0]), torch.tensor([1, 0, 1, 1, 0, 9])
    baseline_N = per_rollout(ids_N, {1: 0.4, 0: 0.5, 9: 0.2})
    share_N = per_rollout(ids_N, {1: 0.25, 0: 1.0, 9: 0.3})
    others = [1 - 0.0, None, -0.5, -0.5, None, None]  # reward less the mean of the others of group 1
    expected = [0.25 * 0.6 + 0.75 * others[0], 0.5, *[0.25 * -0.4 + 0.75 * others[2]] * 2, -0.5, 0.8]
    got = baseline_advantages(rewards_N, ids_N, baseline_N, share_N)
    torch.testing.assert_close(got, torch.tensor(expected))
    assert got.dtype == torch.float32


@given(batches, st.lists(rewards, min_size=5, max_size=5), st.lists(shares, min_size=5, max_size=5))
def test_baseline_is_equal_to_a_plain_loop(pairs, beliefs, mixed):
    rewards_N, ids_N = tensors(pairs)
    expected = []
    for j, (own_id, reward) in enumerate(pairs):
        others = [r for k, (i, r) in enumerate(pairs) if i == own_id and k != j]
        m, w = beliefs[own_id], mixed[own_id] if others else 1.0
        expected.append(reward - w * m - (1 - w) * (sum(others) / len(others) if others else 0.0))
    got = baseline_advantages(rewards_N, ids_N, per_rollout(ids_N, beliefs), per_rollout(ids_N, mixed))
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-8)


@given(batches, st.lists(rewards, min_size=5, max_size=5), st.sampled_from([torch.float32, torch.float64]))
def test_baseline_at_share_0_is_rloo_and_at_share_1_the_belief_bit_for_bit(pairs, beliefs, dtype):
    rewards_N, ids_N = tensors(pairs)
    rewards_N, baseline_N = rewards_N.to(dtype), per_rollout(ids_N, beliefs).to(dtype)
    from_belief_N, rloo_N = rewards_N - baseline_N, rloo_advantages(rewards_N, ids_N)
    is_alone_N = torch.tensor([[i for i, _ in pairs].count(own) == 1 for own, _ in pairs])
    got = baseline_advantages(rewards_N, ids_N, baseline_N, torch.zeros(len(pairs)))
    assert torch.equal(got, torch.where(is_alone_N, from_belief_N, rloo_N))
    assert torch.equal(baseline_advantages(rewards_N, ids_N, baseline_N, torch.ones(len(pairs))), from_belief_N)


@given(batches, st.lists(shares, min_size=5, max_size=5), st.randoms(use_true_random=False))
def test_baseline_does_not_depend_on_the_order(pairs, mixed, random):
    def advantages(rows):
        rewards_N, ids_N = tensors(rows)
        return baseline_advantages(rewards_N, ids_N, per_rollout(ids_N, [0.5] * 5), per_rollout(ids_N, mixed))

    order = random.sample(range(len(pairs)), len(pairs))
    shuffled = advantages([pairs[i] for i in order])
    torch.testing.assert_close(shuffled, advantages(pairs)[order], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("belief", [-0.5, 0.2, 0.9])
def test_baseline_is_unbiased_for_a_bernoulli_policy(n, share, belief):
    """Over all outcomes of n rollouts: mean of advantage times score is ``d p / d logit = p (1 - p)``; E[score] = 0."""
    p = 0.3
    outcomes = list(itertools.product([0.0, 1.0], repeat=n))
    chances_K = torch.tensor([math.prod(p if r else 1 - p for r in rs) for rs in outcomes], dtype=torch.float64)
    rewards_N = torch.tensor(outcomes, dtype=torch.float64).flatten()
    ids_N = torch.arange(len(outcomes)).repeat_interleave(n)
    full = torch.full_like(rewards_N, 1.0)
    advantages_N = baseline_advantages(rewards_N, ids_N, belief * full, share * full)
    estimates_K = (advantages_N * (rewards_N - p)).view(-1, n).mean(1)
    assert float(chances_K @ estimates_K) == pytest.approx(p * (1 - p), abs=1e-12)


@pytest.mark.parametrize(
    ("baseline", "share", "named"),
    [
        ([0.5, float("nan"), 0.5], [0.0, 0.0, 0.0], "baseline at index 1"),
        ([0.5, 0.5, float("inf")], [0.0, 0.0, 0.0], "baseline at index 2"),
        ([0.5, 0.5, 0.5], [0.0, -0.01, 0.0], "share"),
        ([0.5, 0.5, 0.5], [0.0, 1.01, 0.0], "share"),
        ([0.5, 0.5, 0.5], [0.0, float("nan"), 0.0], "share"),
        ([0.5, 0.5], [0.0, 0.0, 0.0], "baselines and the group ids do not fit"),
        ([0.5, 0.5, 0.5], [0.0], "shares and the group ids do not fit"),
    ],
)
def test_baseline_refuses_what_does_not_fit(baseline, share, named):
    with pytest.raises(InvalidInputError, match=named):
        baseline_advantages(
            torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0, 0, 1]), torch.tensor(baseline), torch.tensor(share)
        )


def test_baseline_carries_no_gradient():
    rewards_N, baseline_N = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    got = baseline_advantages(rewards_N, torch.tensor([0, 0]), baseline_N, torch.full((2,), 0.5, requires_grad=True))
    assert not got.requires_grad
