"""PODS, arXiv 2504.13818: a known example, invariants, brute force as oracle."""

from itertools import combinations
from math import comb, prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from selection_cases import kept_of, permuted, random_scored, scored

from allotment.errors import InvalidInputError
from allotment.learning.advantages import grpo_advantages
from allotment.learning.selected import selected_advantages_and_weights
from allotment.methods.selectors.subsets import PODS, max_variance_subset
from allotment.selection import check_selection

PAPER = [0.1, 0.9, 0.5, 0.4, 0.6, 1.0]


def best_variance(rewards, m):
    return max(np.var(subset) for subset in combinations(rewards, m))


def test_the_known_example():
    chosen = max_variance_subset(PAPER, 4)
    assert chosen.tolist() == [0, 1, 3, 5]
    assert np.var(np.take(PAPER, chosen)) == pytest.approx(0.135)
    low_to_high = sorted(PAPER)
    by_k = [np.var(low_to_high[: 4 - k] + low_to_high[6 - k :]) for k in range(5)]
    np.testing.assert_allclose(by_k, [0.035, 0.105, 0.135, 0.1225, 0.0425])


def test_advantages_are_normalised_after_selection():
    one = scored([PAPER])
    rewards_N, groups_N = torch.tensor(one.rewards_N), torch.tensor(one.rows_N)
    selection = check_selection(PODS(keep=4).select(one), one)
    advantages_N, weights_NT = selected_advantages_and_weights(
        rewards_N, groups_N, torch.ones(6, 1), selection, "grpo", dtype=torch.float64
    )
    np.testing.assert_allclose(advantages_N, [-1.1782, 0.7069, 0, -0.4713, 0, 0.9426], atol=5e-5)
    assert advantages_N.sum() == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(weights_NT[:, 0], [0.25, 0.25, 0, 0.25, 0, 0.25])


rewards_with_ties = st.lists(st.sampled_from([0.0, 1.0, 0.1, -2.5]) | st.floats(-3, 3), min_size=2, max_size=9)


@given(rewards_with_ties, st.data())
def test_equals_brute_force_and_is_a_prefix_and_a_suffix(rewards, data):
    m = data.draw(st.integers(2, len(rewards)))
    chosen = max_variance_subset(rewards, m)
    assert len(set(chosen.tolist())) == m
    assert (np.diff(chosen) > 0).all()
    assert np.var(np.take(rewards, chosen)) == pytest.approx(best_variance(rewards, m), rel=1e-9, abs=1e-10)
    kept, ordered = sorted(np.take(rewards, chosen).tolist()), sorted(rewards)
    assert any(kept == ordered[: m - k] + ordered[len(ordered) - k :] for k in range(m + 1))


@given(rewards_with_ties, st.floats(0.1, 9), st.floats(-9, 9), st.data())
def test_does_not_care_about_the_unit_of_the_reward(rewards, scale, shift, data):
    m = data.draw(st.integers(2, len(rewards)))
    moved = scale * np.array(rewards) + shift
    for other in (moved, -moved):
        chosen = max_variance_subset(other, m)
        assert np.var(np.take(rewards, chosen)) == pytest.approx(best_variance(rewards, m), rel=1e-6, abs=1e-9)


@given(rewards_with_ties, st.floats(-3, 3), st.data())
def test_one_more_rollout_never_lowers_the_variance(rewards, further, data):
    m = data.draw(st.integers(2, len(rewards)))
    variances = [np.var(np.take(pool, max_variance_subset(pool, m))) for pool in (rewards, [*rewards, further])]
    assert variances[1] >= variances[0] - 1e-9


@pytest.mark.parametrize(
    ("ones", "zeros", "m"), [(*c, m) for c in [(3, 5), (1, 7), (7, 1), (0, 8)] for m in range(2, 9)]
)
def test_binary_rewards_keep_half_successes_or_as_near_as_there_are(ones, zeros, m):
    chosen = max_variance_subset([1.0] * ones + [0.0] * zeros, m)
    kept = np.clip(m // 2, m - zeros, ones)  # odd m: fewer successes, as the released code
    assert (chosen < ones).sum() == kept
    one = scored([[1] * ones + [0] * zeros])
    assert kept_of(PODS(keep=m).select(one), one) == [[0] * (m - kept) + [1] * kept]


@pytest.mark.parametrize("unit", [1e8, 1e-150, 1e150])
def test_sums_of_squares_do_not_cancel_or_overflow(unit):
    rewards = np.array([0.0, 1.0, 3.0, 4.0, 2.0]) * (1 if unit == 1e8 else unit) + (1e8 if unit == 1e8 else 0)
    assert max_variance_subset(rewards, 4).tolist() == [0, 1, 2, 3]


def test_groups_are_ragged_and_small_ones_kept_whole():
    one = scored([[0, 1, 0.5, 0.6], [1], [0, 0, 0], [], [1, 0]])
    assert kept_of(PODS(keep=2).select(one), one) == [[0, 1], [1], [0, 0], [], [0, 1]]
    assert kept_of(PODS(keep=0.6).select(one), one) == [[0, 0.6, 1], [1], [0, 0], [], [0, 1]]


def test_keeping_everything_is_the_estimator_without_selection():
    one = random_scored(np.random.default_rng(0), sizes=(2, 9))
    rewards_N, groups_N = torch.tensor(one.rewards_N), torch.tensor(one.rows_N)
    selection = PODS(keep=16).select(one)
    assert selection.is_kept.all()
    advantages_N, _ = selected_advantages_and_weights(rewards_N, groups_N, torch.ones(len(one), 1), selection, "grpo")
    assert torch.equal(advantages_N, grpo_advantages(rewards_N, groups_N))


def test_equal_rewards_bring_no_advantage():
    one = scored([[0.1] * 8])
    selection = PODS(keep=4).select(one)
    advantages_N, _ = selected_advantages_and_weights(
        torch.tensor(one.rewards_N), torch.tensor(one.rows_N), torch.ones(8, 1), selection, "rloo"
    )
    assert (selection.is_kept.sum(), advantages_N.abs().max()) == (4, 0)


def test_the_order_of_the_batch_does_not_matter_and_equal_rollouts_take_turns():
    one = random_scored(np.random.default_rng(1), sizes=(6, 12))
    order = np.random.default_rng(2).permutation(len(one))
    kept_N = PODS(keep=3).select(one).is_kept
    np.testing.assert_array_equal(PODS(keep=3).select(permuted(one, order)).is_kept, kept_N[order])
    kept = sum(PODS(keep=2).select(scored([[0, 0, 0, 0, 1]], step=t)).is_kept[:4] for t in range(1, 401))
    assert (np.abs(kept - 100) < 4 * np.sqrt(75)).all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_effective_weight_of_a_prompt_is_that_of_the_docstring(p):
    n, m, groups = 8, 4, 4000
    rng = np.random.default_rng(0)
    one = scored(rng.random((groups, n)) < p)
    kept_N = PODS(keep=m).select(one).is_kept
    scores_N = one.rewards_N - p  # d log pi / d logit of a Bernoulli policy, where grad p = p (1 - p)
    share_Q = np.bincount(one.rows_N, kept_N * one.rewards_N) / m
    gradient_Q = np.bincount(one.rows_N, kept_N * (one.rewards_N - share_Q[one.rows_N]) * scores_N) / m
    measured_Q = gradient_Q / (p * (1 - p))
    weight = {s: comb(n, s) * p**s * (1 - p) ** (n - s) for s in range(n + 1)}
    kept = {s: np.clip(m // 2, m - (n - s), s) / m for s in range(n + 1)}
    expected = sum(weight[s] * prod((kept[s], 1 - kept[s])) for s in weight) / (p * (1 - p))
    assert abs(measured_Q.mean() - expected) < 4 * measured_Q.std() / np.sqrt(groups)


@pytest.mark.parametrize(
    ("rewards", "m"), [([0, 1, 2], 1), ([0, 1, 2], 4), ([0, np.nan, 1], 2), ([[0, 1]], 2), ([1], 1)]
)
def test_what_has_no_subset_of_largest_variance_is_refused(rewards, m):
    with pytest.raises(InvalidInputError, match="m = "):
        max_variance_subset(rewards, m)
