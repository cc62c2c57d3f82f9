"""Completion pruning (Dynamic Pruning, arXiv 2603.04135): who is left out within a group, and that it is unbiased."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from selection_cases import kept_of, permuted, random_scored, scored

from allotment.errors import InvalidInputError
from allotment.learning.selected import selected_advantages_and_weights
from allotment.methods.selectors.completion_pruning import CompletionPruning, prune
from allotment.selection import Selector, check_selection

SCORED = scored([[1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 1, 1], [1, 0], [0, 0, 0], [1]])
AT_RISK = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13]  # the majority of a mixed group; groups of equal |A| have none
SCORES_N = np.random.default_rng(1).normal(size=len(SCORED))  # of each rollout, along some direction


def gradient(selection, one=SCORED):
    """The policy gradient of the step along that direction, as a trainer computes it from a selection."""
    advantages_N, weights_N1 = selected_advantages_and_weights(
        torch.from_numpy(one.rewards_N),
        torch.from_numpy(one.rows_N),
        torch.ones(len(one), 1, dtype=torch.bool),
        selection,
        dtype=torch.float64,
    )
    return float((advantages_N * weights_N1[:, 0] * torch.from_numpy(SCORES_N)).sum())


def over_steps(selector, steps=2000):
    """The gradient at each of many steps, that is for many draws; and what was kept."""
    selections = [selector.select(replace(SCORED, step=step)) for step in range(steps)]
    return np.array([gradient(s) for s in selections]), np.array([s.is_kept for s in selections]), selections


WHOLE = gradient(CompletionPruning(rate=0).select(SCORED))


def is_unbiased(gradients):
    return abs(gradients.mean() - WHOLE) < 4 * gradients.std() / len(gradients) ** 0.5 + 1e-12


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.9])
def test_the_gradient_is_unbiased_with_the_variance_of_bernoulli_pruning(rate):
    """Mean, variance and sum of weights, through the advantages and weights of the trainer."""
    gradients, kept, selections = over_steps(CompletionPruning(rate=rate))
    assert is_unbiased(gradients)
    sizes_N = np.bincount(SCORED.rows_N)[SCORED.rows_N]
    g_N = SCORED.advantages_N * SCORES_N / sizes_N / 5
    P_N = np.where(np.isin(np.arange(len(SCORED)), AT_RISK), rate, 0)
    assert gradients.var() == pytest.approx((P_N / (1 - P_N) * g_N**2).sum(), rel=0.2)
    assert kept.sum(1).mean() == pytest.approx((1 - P_N).sum(), abs=4 * kept.sum(1).std() / 2000**0.5)
    weights = np.array([s.weights_N.sum() for s in selections])
    assert weights.mean() == pytest.approx(len(SCORED), abs=4 * weights.std() / 2000**0.5)


def test_the_deterministic_variant_is_biased():
    """It drops the floor(r n_low) smallest; of equal ones some at random, so rewards must differ in size."""
    one = scored([[0.0, 0.1, 0.2, 0.3, 0.4, 2.3]])  # mean 0.55: the first five are at risk, 0.4 nearest to the mean
    selection = CompletionPruning(rate=0.5, random=False).select(one)
    assert kept_of(selection, one) == [[0.0, 0.1, 0.2, 2.3]]
    np.testing.assert_array_equal(selection.weights_N, [2, 2, 2, 0, 0, 1])
    terms_N = one.advantages_N * np.array([1.0, 1, 1, -1, -1, 1])
    assert (selection.weights_N * terms_N).sum() != pytest.approx(terms_N.sum(), abs=0.5)
    random = [CompletionPruning(rate=0.5).select(replace(one, step=s)).weights_N @ terms_N for s in range(2000)]
    assert np.mean(random) == pytest.approx(terms_N.sum(), abs=4 * np.std(random) / 2000**0.5)


@pytest.mark.parametrize("broken", ["baseline", "denominator", "weights"])
def test_what_unbiasedness_needs(broken):
    """The baseline of the whole group, the denominators of what was generated, the weights: without one it fails."""
    _, kept, selections = over_steps(CompletionPruning(rate=0.5))
    wrong = {"baseline": "kept", "denominator": "kept"}
    gradients = np.array(
        [
            gradient(
                replace(s, weights_N=kept_N.astype(float))
                if broken == "weights"
                else replace(s, **{broken: wrong[broken]})
            )
            for s, kept_N in zip(selections, kept, strict=True)
        ]
    )
    assert not is_unbiased(gradients)


def test_rate_zero_is_training_without_it():
    selection = CompletionPruning(rate=0.0).select(SCORED)
    assert (selection.weights_N == 1).all()
    assert (selection.baseline, selection.denominator) == ("generated", "generated")
    assert (selection.advantages_N, selection.rewards_N) == (None, None)


@given(seed=st.integers(0, 999), rate=st.sampled_from([0.3, 0.5, 0.99]), random=st.booleans(), real=st.booleans())
def test_no_group_is_emptied_and_the_order_does_not_matter(seed, rate, random, real):
    rng = np.random.default_rng(seed)
    one = random_scored(rng, rewards=(lambda rng, n: rng.normal(size=n).round(1)) if real else None)
    selector = CompletionPruning(rate=rate, random=random, seed=seed)
    assert isinstance(selector, Selector)
    selection = check_selection(selector.select(one), one)
    assert len(np.unique(one.rows_N[selection.is_kept])) == len(one.prompt_ids)
    order = rng.permutation(len(one))
    np.testing.assert_array_equal(selector.select(permuted(one, order)).weights_N, selection.weights_N[order])
    if not random:
        mean_Q = np.bincount(one.rows_N, np.abs(one.advantages_N)) / np.bincount(one.rows_N)
        low_N = np.abs(one.advantages_N) < mean_Q[one.rows_N] - 1e-9
        low_Q = np.bincount(one.rows_N, low_N).astype(int)
        dropped_Q = np.bincount(one.rows_N, ~selection.is_kept)
        np.testing.assert_array_equal(dropped_Q, np.floor(rate * low_Q))


def test_the_lots_change_with_step_and_seed_and_an_empty_step_is_fine():
    picks = {
        tuple(CompletionPruning(seed=seed).select(replace(SCORED, step=step)).is_kept)
        for seed in range(3)
        for step in range(3)
    }
    assert len(picks) == 9
    assert len(CompletionPruning().select(scored([])).weights_N) == 0


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan")])
def test_a_rate_that_keeps_nothing_is_refused(rate):
    with pytest.raises(InvalidInputError, match="0 <= rate < 1"):
        CompletionPruning(rate=rate)


def test_equal_values_are_not_below_their_mean():
    """The mean of three times 0.1 is above 0.1 in floating point."""
    is_kept_N, keep_probability_N = prune(np.full(3, 0.1), np.zeros(3, dtype=np.int64), np.zeros(3), 0.5)
    assert is_kept_N.all()
    assert (keep_probability_N == 1).all()


def test_the_deterministic_variant_drops_whole_numbers_in_spite_of_rounding():
    """0.29 * 100 is a little below 29 in floating point."""
    values_N = np.array([*[1.0] * 100, 9.0])
    is_kept_N, _ = prune(values_N, np.zeros(101, dtype=np.int64), np.arange(101) / 101, 0.29, random=False)
    assert (~is_kept_N).sum() == 29
