"""What Reinforce-Ada (arXiv 2510.04996) trains on: the kept halves, four advantages, and what they optimise."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from selection_cases import kept_of, permuted, random_scored, scored

from allotment.errors import InvalidInputError, StateError
from allotment.learning.selected import selected_advantages_and_weights
from allotment.methods.planners.reinforce_ada import BalancedDownSampling, balanced_counts
from allotment.methods.planners.reinforce_ada_est import RootWeighting
from theory.toy import Policy

POOL = [1, 0, 0, 1, 0, 0, 1, 0]  # three of eight correct


def released(p):
    """W(p): the weight of grad p in a balanced group with baseline p."""
    return (p**2 + (1 - p) ** 2) / (2 * p * (1 - p))


WEIGHTS = {
    "pool": released,
    "log_pool": lambda p: released(p) / p,
    "p": lambda p: 1.0,
    "log_p": lambda p: 1 / p,
}


@given(wrong=st.integers(0, 40), correct=st.integers(0, 40), size=st.integers(2, 20))
def test_half_and_half_filled_from_the_other_class(wrong, correct, size):
    """Of a pool min(n, pool) are kept, as near to n // 2 correct as the pool allows, both classes where it has."""
    kept_wrong, kept_correct = balanced_counts(np.array([[wrong, correct]]), size)[0]
    total = min(size, wrong + correct)
    possible = [k for k in range(correct + 1) if 0 <= total - k <= wrong]
    assert kept_wrong + kept_correct == total
    assert kept_correct == min(possible, key=lambda k: abs(k - size // 2))
    assert (kept_wrong > 0) == (wrong > 0)
    assert (kept_correct > 0) == (correct > 0)


def test_the_code_keeps_what_came_first_whatever_the_place_in_the_batch():
    one = scored([POOL, [1, 1, 1, 0]], numbers=[5, 6, 7, 8, 0, 1, 2, 3, 14, 13, 12, 11])
    selection = BalancedDownSampling().select(one)
    assert np.flatnonzero(selection.is_kept).tolist() == [0, 4, 5, 6, 8, 9, 10, 11]
    order = np.random.default_rng(0).permutation(12)
    again = BalancedDownSampling().select(permuted(one, order))
    np.testing.assert_array_equal(again.weights_N, selection.weights_N[order])
    np.testing.assert_array_equal(again.advantages_N, selection.advantages_N[order])


def test_a_random_subset_is_drawn_by_rollout_evenly_and_anew_at_each_step():
    selector = BalancedDownSampling(subset="random", seed=3)
    kept_S8 = np.array([selector.select(scored([POOL], step=step)).weights_N for step in range(1, 2001)])
    correct = np.array(POOL) == 1
    for share, expected in [(kept_S8[:, correct].mean(0), 2 / 3), (kept_S8[:, ~correct].mean(0), 2 / 5)]:
        np.testing.assert_allclose(share, expected, atol=4 * np.sqrt(expected * (1 - expected) / 2000))
    one = random_scored(np.random.default_rng(1))
    order = np.random.default_rng(2).permutation(len(one))
    np.testing.assert_array_equal(
        selector.select(permuted(one, order)).weights_N, selector.select(one).weights_N[order]
    )


@pytest.mark.parametrize(
    ("baseline", "correct", "wrong"),
    [
        ("pool", 5 / 8, -3 / 8),
        ("log_pool", 5 / 3, -1),
        ("p", 2 * 15 / 56, -2 * 15 / 56),
        ("log_p", 2 * 5 / 8, -2 * 5 / 8),
    ],
)
def test_advantages_by_hand(baseline, correct, wrong):
    """Three of eight correct, two and two kept, and the pool's own mean as baseline."""
    selection = BalancedDownSampling(baseline=baseline).select(scored([POOL]))
    assert kept_of(selection, scored([POOL])) == [[0, 0, 1, 1]]
    assert (selection.rewards_N, selection.denominator) == (None, "kept")
    np.testing.assert_allclose(selection.advantages_N, [correct, wrong, wrong, correct, 0, 0, 0, 0], rtol=1e-14)


@given(seed=st.integers(0, 200), size=st.integers(2, 12))
def test_kept_advantages_do_not_sum_to_zero(seed, size):
    """The sum is (kept correct) - (kept) m; in a balanced group n / 2 (1 - 2 m)."""
    one = random_scored(np.random.default_rng(seed))
    selection = BalancedDownSampling(group_size=size).select(one)
    for q, kept in enumerate(kept_of(selection, one)):
        mean = one.rewards_N[one.rows_N == q].mean()
        total = selection.advantages_N[one.rows_N == q].sum()
        assert total == pytest.approx((sum(kept) - len(kept) * mean) * (0 < mean < 1), abs=1e-12)


def weight_of(correct, wrong, size, baseline):
    """The weight of grad p in the group kept of a pool, at success probability p; the share of correct ones kept.

    By the mean score of each class: f A+ mu+ + (1 - f) A- mu-, where p mu+ + (1 - p) mu- = 0 and grad p = p mu+.
    """
    one = scored([[1] * correct + [0] * wrong])
    selection = BalancedDownSampling(group_size=size, baseline=baseline).select(one)
    kept_N = selection.is_kept
    advantages, rewards = selection.advantages_N[kept_N], one.rewards_N[kept_N]
    return lambda p: (advantages * np.where(rewards == 1, 1 / p, -1 / (1 - p))).mean(), rewards.mean()


@given(
    correct=st.integers(1, 30), wrong=st.integers(1, 30), size=st.integers(2, 12), baseline=st.sampled_from([*WEIGHTS])
)
def test_what_a_pool_whose_mean_is_p_optimises(correct, wrong, size, baseline):
    """For any kept share with "p" and "log_p"; the released weights in a balanced group."""
    pool = correct + wrong
    weight, share = weight_of(correct, wrong, size, baseline)
    if baseline in ("p", "log_p") or share == 0.5:
        expected = WEIGHTS[baseline](correct / pool) * (pool / (pool - 1) if baseline == "p" else 1)
        assert weight(correct / pool) == pytest.approx(expected, rel=1e-12)


@given(p=st.floats(0.01, 0.99), pool=st.integers(2, 24), size=st.integers(2, 12))
def test_p_is_unbiased_over_pools_of_fixed_size_and_log_p_up_to_pools_without_success(p, pool, size):
    """Over all pools of N rollouts: weights 1 and (1 - (1 - p)^(N - 1)) / p, however many are kept."""
    chances = binom.pmf(np.arange(pool + 1), pool, p)
    found = {
        baseline: sum(c * weight_of(k, pool - k, size, baseline)[0](p) for k, c in enumerate(chances))
        for baseline in ("p", "log_p")
    }
    assert found["p"] == pytest.approx(1, rel=1e-9)
    assert found["log_p"] == pytest.approx((1 - (1 - p) ** (pool - 1)) / p, rel=1e-9)


def test_golden_weights():
    """The weight of the released advantages at some p, and of "log_pool"."""
    assert released(0.5) == 1
    assert [released(p) for p in (0.2, 0.1, 0.9)] == pytest.approx([2.125, 4.556, 4.556], rel=1e-3)
    assert round(WEIGHTS["log_pool"](0.1), 1) == 45.6
    assert [released(p) for p in (0.05, 0.3)] == pytest.approx([1 / (2 * p * (1 - p)) - 1 for p in (0.05, 0.3)])


@pytest.mark.parametrize("baseline", WEIGHTS)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_measured_weight_on_a_toy_with_exact_gradients(baseline, p):
    """Pools of 400 rollouts of a softmax policy, so that their mean is close to p; half of 8 correct. Within 4 SE."""
    groups, pool, rng = 800, 400, np.random.default_rng(5)
    policy = Policy.of([p])
    answers_QN = policy.sample(np.zeros(groups * pool, dtype=np.int64), rng).reshape(groups, pool)
    one = scored((answers_QN == 0).astype(float))
    selection = BalancedDownSampling(group_size=8, baseline=baseline).select(one)
    rewards_N, rows_N = torch.from_numpy(one.rewards_N), torch.from_numpy(one.rows_N)
    advantages_N, weights_N1 = selected_advantages_and_weights(
        rewards_N, rows_N, torch.ones(len(one), 1, dtype=torch.bool), selection, length="sum", dtype=torch.float64
    )
    scores_NA = np.eye(policy.chances_QA.shape[1])[answers_QN.ravel()] - policy.chances_QA
    truth_A = policy.gradients()[0]
    terms_N = groups * (advantages_N * weights_N1[:, 0]).numpy() * (scores_NA @ truth_A) / (truth_A @ truth_A)
    weight_Q = np.bincount(one.rows_N, terms_N)
    bias = (1 - p) / (pool * p) if baseline == "log_pool" else 0.0  # of 1 / m, relative
    error = weight_Q.std(ddof=1) / np.sqrt(groups)
    assert error < 0.07 * WEIGHTS[baseline](p)
    assert weight_Q.mean() == pytest.approx(WEIGHTS[baseline](p), abs=4 * error + bias * WEIGHTS[baseline](p))


@pytest.mark.parametrize("baseline", WEIGHTS)
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_pool_of_one_class_stays_in_the_batch_without_advantage(baseline, reward):
    selection = BalancedDownSampling(baseline=baseline).select(scored([[reward] * 32, POOL]))
    assert selection.weights_N[:32].sum() == 4
    assert not selection.advantages_N[:32].any()
    assert selection.advantages_N[32:].any()


def test_rewards_count_as_correct_or_wrong():
    """The released statistics rebuild ones and zeros from counts; here other rewards are read the same way."""
    signs = scored([[2 * r - 1 for r in POOL]])
    selection = BalancedDownSampling().select(signs)
    np.testing.assert_array_equal(selection.advantages_N, BalancedDownSampling().select(scored([POOL])).advantages_N)


def test_a_selector_keeps_its_group_size():
    selector = BalancedDownSampling(group_size=6)
    other = BalancedDownSampling()
    other.load_state_dict(selector.state_dict())
    assert other.group_size == 6
    for damaged in ({"kind": "BalancedDownSampling", "group_size": 1}, {"kind": "Other"}, {}):
        with pytest.raises(StateError):
            other.load_state_dict(damaged)
    assert other.group_size == 6


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"group_size": 1}, "group_size.*\n.*1"),
        ({"baseline": "mean"}, "pool, log_pool, p, log_p"),
        ({"subset": "last"}, "first, random"),
    ],
)
def test_refused(settings, text):
    with pytest.raises(InvalidInputError, match=text):
        BalancedDownSampling(**settings)


@pytest.mark.parametrize("shares", ["rollouts", "prompts"])
def test_root_weighting_by_hand(shares):
    """v3, Est: A = (r - m) / sqrt(m + epsilon); every rollout of the step counts alike, or every prompt."""
    one = scored([[1, 0, 0, 0], [], [0, 0]])
    selection = RootWeighting(epsilon=0.11, shares=shares).select(one)
    np.testing.assert_allclose(selection.advantages_N, np.array([0.75, -0.25, -0.25, -0.25, 0, 0]) / 0.6, rtol=1e-14)
    expected = [4 / 3] * 4 + [2 / 3] * 2 if shares == "rollouts" else [1] * 6
    np.testing.assert_allclose(selection.weights_N, expected, rtol=1e-14)
    assert selection.denominator == "generated"


def test_root_weighting_refused():
    with pytest.raises(InvalidInputError, match="epsilon"):
        RootWeighting(epsilon=0)
    with pytest.raises(InvalidInputError, match="mean, deviation"):
        RootWeighting(divisor="variance")
    with pytest.raises(InvalidInputError, match="rollouts, prompts"):
        RootWeighting(shares="tokens")


def test_root_of_the_variance_is_grpos_advantage():
    """v3's appendix: with the samplings of least variance for log p and for p."""
    selection = RootWeighting(epsilon=1e-12, divisor="deviation").select(scored([[1, 0, 0, 0, 1, 0, 0, 0, 0, 0]]))
    np.testing.assert_allclose(selection.advantages_N[:2], [2.0, -0.5], rtol=1e-9)
