"""What a selection makes of advantages and weights: the present path where all is kept, its scopes, its expectation."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allotment.errors import ConfigError, InvalidInputError
from allotment.learning import advantage_estimator, rollout_weights
from allotment.learning.selected import selected_advantages_and_weights
from allotment.selection import Selection
from allotment.types import Plan

ESTIMATORS = ["rloo", "dr_grpo", "grpo"]
AGGREGATIONS = ["prompt_mean", "sequence_mean", "token_mean"]
SCOPES = ["generated", "kept"]
LENGTHS = {"prompt_mean": ["mean", "sum", 7.0], "sequence_mean": ["sum"], "token_mean": ["mean"]}
COMBINATIONS = [(a, length) for a in AGGREGATIONS for length in LENGTHS[a]]


def batch(seed=0, n=17, dtype=torch.float32):
    """Ragged interleaved groups, one of them of a single rollout, and a rollout without tokens."""
    rng = np.random.default_rng(seed)
    group_ids_N = torch.tensor([*rng.choice([-4, 3, 90], n - 1), 1000])
    mask_NT = torch.from_numpy(np.arange(5) < rng.integers(1, 6, n)[:, None])
    mask_NT[0] = False
    return torch.from_numpy(rng.normal(size=n)).to(dtype), group_ids_N, mask_NT


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("aggregation", "length"), COMBINATIONS)
@pytest.mark.parametrize("baseline", SCOPES)
@pytest.mark.parametrize("denominator", SCOPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_kept_at_weight_one_is_the_present_path_to_the_last_bit(
    estimator, aggregation, length, baseline, denominator, dtype
):
    rewards_N, ids_N, mask_NT = batch(dtype=dtype)
    selection = Selection(np.ones(len(ids_N)), baseline=baseline, denominator=denominator)
    advantages_N, weights_NT = selected_advantages_and_weights(
        rewards_N, ids_N, mask_NT, selection, estimator, aggregation, length=length, dtype=dtype
    )
    expected_N = advantage_estimator(estimator)(rewards_N, ids_N)
    expected_NT = rollout_weights(ids_N, mask_NT, aggregation, length=length, dtype=dtype)
    assert advantages_N.dtype == expected_N.dtype
    assert weights_NT.dtype == dtype
    assert torch.equal(advantages_N, expected_N)
    assert torch.equal(weights_NT, expected_NT)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 99),
    factors=st.lists(st.sampled_from([0.0, 0.0, 1.0, 0.25, 4.0]), min_size=17, max_size=17),
    estimator=st.sampled_from(ESTIMATORS),
    combination=st.sampled_from(COMBINATIONS),
    baseline=st.sampled_from(SCOPES),
    denominator=st.sampled_from(SCOPES),
)
def test_against_loops_over_groups(seed, factors, estimator, combination, baseline, denominator):
    """Every entry by its definition, a group and a rollout at a time."""
    rewards_N, ids_N, mask_NT = batch(seed, dtype=torch.float64)
    selection = Selection(np.array(factors), baseline=baseline, denominator=denominator)
    aggregation, length = combination
    advantages_N, weights_NT = selected_advantages_and_weights(
        rewards_N, ids_N, mask_NT, selection, estimator, aggregation, length=length, dtype=torch.float64
    )
    kept = [i for i, factor in enumerate(factors) if factor > 0]
    compared = range(17) if baseline == "generated" else kept
    counted = range(17) if denominator == "generated" else kept
    groups, tokens_N = ids_N.tolist(), mask_NT.sum(1).tolist()
    for i in range(17):
        if i not in kept:
            assert advantages_N[i] == 0
            assert not weights_NT[i].any()
            continue
        mates = [j for j in compared if groups[j] == groups[i]]
        rewards = [float(rewards_N[j]) for j in mates]
        assert float(advantages_N[i]) == pytest.approx(by_hand(float(rewards_N[i]), rewards, estimator), abs=1e-12)
        size = sum(groups[j] == groups[i] for j in counted)
        share = {
            "prompt_mean": 1 / (len({groups[j] for j in counted}) * size),
            "sequence_mean": 1 / len(counted),
            "token_mean": 1 / max(sum(tokens_N[j] for j in counted), 1),
        }[aggregation]
        if aggregation != "token_mean":
            share /= {"mean": max(tokens_N[i], 1), "sum": 1}.get(length, length)
        np.testing.assert_allclose(weights_NT[i], mask_NT[i].double() * share * factors[i], rtol=1e-12)


def by_hand(reward, group_rewards, estimator):
    n, mean = len(group_rewards), sum(group_rewards) / len(group_rewards)
    if n == 1:
        return 0.0
    if estimator == "rloo":
        return (reward - mean) * n / (n - 1)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in group_rewards) / (n - 1))
    return reward - mean if estimator == "dr_grpo" else (reward - mean) / (deviation + 1e-4)


def test_pods_by_hand():
    """By hand: four of six kept, normalised among themselves, each a quarter of the prompt."""
    rewards_N = torch.tensor([0.1, 0.9, 0.5, 0.4, 0.6, 1.0])
    selection = Selection(np.array([1.0, 1, 0, 1, 0, 1]), baseline="kept", denominator="kept")
    ids_N, mask_NT = torch.zeros(6, dtype=torch.int64), torch.ones(6, 2, dtype=torch.bool)
    advantages_N, weights_NT = selected_advantages_and_weights(rewards_N, ids_N, mask_NT, selection, "grpo")
    np.testing.assert_allclose(advantages_N, [-1.1782, 0.7069, 0, -0.4713, 0, 0.9426], atol=6e-5)
    np.testing.assert_allclose(weights_NT[:, 0], [1 / 8, 1 / 8, 0, 1 / 8, 0, 1 / 8])
    assert weights_NT.sum() == pytest.approx(1)


def test_a_group_of_which_nothing_is_kept_counts_only_among_the_generated():
    rewards_N, ids_N = torch.tensor([1.0, 0, 1, 0, 1, 1]), torch.tensor([0, 0, 0, 0, 1, 1])
    mask_NT = torch.ones(6, 1, dtype=torch.bool)
    weights = {
        scope: selected_advantages_and_weights(
            rewards_N, ids_N, mask_NT, Selection(np.array([1.0, 1, 0, 0, 0, 0]), denominator=scope)
        )[1][:, 0].tolist()
        for scope in SCOPES
    }
    assert weights == {"generated": [1 / 8, 1 / 8, 0, 0, 0, 0], "kept": [1 / 2, 1 / 2, 0, 0, 0, 0]}


@pytest.mark.parametrize("baseline", SCOPES)
@pytest.mark.parametrize("denominator", SCOPES)
def test_nothing_kept_is_no_step(baseline, denominator):
    rewards_N, ids_N, mask_NT = batch()
    selection = Selection(np.zeros(17), baseline=baseline, denominator=denominator)
    advantages_N, weights_NT = selected_advantages_and_weights(rewards_N, ids_N, mask_NT, selection)
    assert not advantages_N.any()
    assert not weights_NT.any()
    assert weights_NT.shape == mask_NT.shape


def test_advantages_and_rewards_of_the_selection_take_the_place_of_the_runs():
    rewards_N, ids_N, mask_NT = batch()
    own_N, kept_N = np.arange(17.0), np.arange(17) % 3 != 0
    given = Selection(kept_N.astype(float), advantages_N=own_N)
    np.testing.assert_array_equal(
        selected_advantages_and_weights(rewards_N, ids_N, mask_NT, given)[0], np.where(kept_N, own_N, 0)
    )
    pseudo = Selection(np.ones(17), rewards_N=own_N)
    expected_N = advantage_estimator("rloo")(torch.from_numpy(own_N).float(), ids_N)
    assert torch.equal(selected_advantages_and_weights(rewards_N, ids_N, mask_NT, pseudo)[0], expected_N)


def steps_of(selection, rewards_N, ids_N, values_N):
    """The step of the batch: the sum of weight, advantage and a fixed number for each rollout."""
    mask_NT = torch.ones(len(ids_N), 1, dtype=torch.bool)
    advantages_N, weights_NT = selected_advantages_and_weights(
        rewards_N, ids_N, mask_NT, selection, dtype=torch.float64
    )
    return float((weights_NT[:, 0] * advantages_N * values_N).sum())


def test_pruned_completions_with_inverse_probabilities_have_the_expectation_of_the_whole_batch():
    """Over every outcome of the draws; the baseline and the denominators are those before pruning."""
    rewards_N, ids_N = torch.tensor([1.0, 0, 0, 1, 0], dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1])
    values_N, keep_N = (
        torch.tensor([0.7, -1.2, 0.4, 1.9, -0.3], dtype=torch.float64),
        np.array([0.3, 0.5, 1.0, 0.9, 0.25]),
    )
    steps = {(b, d): 0.0 for b in SCOPES for d in SCOPES}
    for draw in itertools.product([0, 1], repeat=5):
        chance = np.prod(np.where(draw, keep_N, 1 - keep_N))
        for baseline, denominator in steps:
            selection = Selection(np.array(draw) / keep_N, baseline=baseline, denominator=denominator)
            steps[baseline, denominator] += chance * steps_of(selection, rewards_N, ids_N, values_N)
    whole = steps_of(Selection(np.ones(5)), rewards_N, ids_N, values_N)
    assert steps.pop(("generated", "generated")) == pytest.approx(whole, rel=1e-12)
    assert all(abs(biased - whole) > 1e-3 for biased in steps.values())


def test_prompts_left_out_at_random_with_the_weights_of_their_plan():
    """Over every outcome of the draws: the mean over the groups that came is that over all prompts asked."""
    groups = [torch.tensor([1.0, 0, 1]), torch.tensor([0.0, 1]), torch.tensor([1.0, 1, 0, 0])]
    values = [torch.arange(len(rewards)).double().sin() for rewards in groups]
    keep_Q = np.array([0.4, 1.0, 0.7])

    def step(asked):
        rewards_N = torch.cat([groups[q] for q in asked]).double()
        rows_N = np.repeat(np.arange(len(asked)), [len(groups[q]) for q in asked])
        counts_Q = np.array([len(rewards) if q in asked else 0 for q, rewards in enumerate(groups)])
        factors_Q = Plan((0, 1, 2), counts_Q, 0, weights=1 / keep_Q).loss_factors(len(asked))
        return steps_of(
            Selection(factors_Q[asked][rows_N]),
            rewards_N,
            torch.from_numpy(rows_N),
            torch.cat([values[q] for q in asked]),
        )

    expected = 0.0
    for draw in itertools.product([False, True], repeat=3):
        if any(draw):
            expected += np.prod(np.where(draw, keep_Q, 1 - keep_Q)) * step(np.flatnonzero(draw))
    whole = steps_of(
        Selection(np.ones(9)),
        torch.cat(groups).double(),
        torch.arange(3).repeat_interleave(torch.tensor([3, 2, 4])),
        torch.cat(values),
    )
    assert expected == pytest.approx(whole, rel=1e-12)


def test_refusals():
    rewards_N, ids_N, mask_NT = batch()
    with pytest.raises(InvalidInputError, match=r"other rollouts(.|\n)*16 weights, 17 rewards"):
        selected_advantages_and_weights(rewards_N, ids_N, mask_NT, Selection(np.ones(16)))
    with pytest.raises(ConfigError, match="advantage"):
        selected_advantages_and_weights(rewards_N, ids_N, mask_NT, Selection(np.ones(17)), "reinforce")
    with pytest.raises(ConfigError):
        selected_advantages_and_weights(rewards_N, ids_N, mask_NT, Selection(np.ones(17)), "rloo", "mean")
