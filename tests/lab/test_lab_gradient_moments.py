"""The variance of a prompt's gradient estimate against resampling, and what limits it has."""

import numpy as np
import pytest
import torch

from allotment.lab.gradient_measurement import Measured, of_prompt
from allotment.lab.gradient_moments import BaselineMoments, Moments
from allotment.learning import baseline_advantages


def sample(n_prompts, n_rollouts, dependence, seed):
    """Rewards and scores whose dependence is known; [Q, N] and [Q, N, 1]."""
    random = np.random.default_rng(seed)
    p = np.linspace(0.1, 0.9, n_prompts)[:, None]
    rewards = (random.random((n_prompts, n_rollouts)) < p).astype(float)
    scores = random.normal(size=rewards.shape) * (1 + dependence * rewards) + 2 * dependence * rewards
    return rewards, scores[:, :, None]


def centred_population(seed, n_rollouts=4_000, directions=3):
    """One prompt whose rollouts are all there is: p and the mean score, zero, are exact."""
    random = np.random.default_rng(seed)
    rewards = (random.random(n_rollouts) < 0.3).astype(float)
    scores = random.normal(size=(n_rollouts, directions)) * (1 + rewards)[:, None] + rewards[:, None]
    scores -= scores.mean(0)
    gradient = ((rewards - rewards.mean())[:, None] * scores).mean(0)
    return rewards, scores, BaselineMoments.of(rewards.mean(), rewards, scores, float(gradient @ gradient))


@pytest.mark.parametrize("dependence", [0.0, 0.7])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_closed_form_is_the_variance_of_the_rloo_estimator(dependence, n):
    """Resampling: draw n pairs, compute RLOO's gradient with the advantages, take the variance of many draws."""
    rewards, scores = sample(3, 20_000, dependence, seed=1)
    moments = Moments.of(rewards, scores)
    random, draws = np.random.default_rng(2), 60_000
    for q in range(3):
        chosen = random.integers(rewards.shape[1], size=(draws, n))
        r, s = rewards[q][chosen], scores[q, :, 0][chosen]
        advantages = (r - r.mean(1, keepdims=True)) * n / (n - 1)
        estimates = (advantages * s).mean(1)
        assert estimates.var() == pytest.approx(moments.variance(np.full(3, n))[q], rel=0.05)


def test_moments_are_averages_over_directions():
    rewards, scores = sample(3, 50, dependence=0.5, seed=1)
    more = np.concatenate([scores, 3 - 2 * scores, scores**2], axis=2)
    together = Moments.of(rewards, more)
    apart = [Moments.of(rewards, more[:, :, d : d + 1]) for d in range(3)]
    for name in ("mu22", "squared_covariance", "variances"):
        np.testing.assert_allclose(getattr(together, name), np.mean([getattr(m, name) for m in apart], axis=0))
    halves = Moments.joined([Moments.of(rewards[:1], scores[:1]), Moments.of(rewards[1:], scores[1:])])
    np.testing.assert_array_equal(halves.mu22, Moments.of(rewards, scores).mu22)
    np.testing.assert_array_equal(halves.take(np.array([2, 0])).mu22, halves.mu22[[2, 0]])


def test_where_reward_and_score_are_independent_it_is_the_model_of_vip():
    rewards, scores = sample(4, 200_000, dependence=0.0, seed=3)
    moments = Moments.of(rewards, scores)
    for n in (3, 8, 32):
        model = rewards.var(1) * scores[:, :, 0].var(1) / (n - 1)
        np.testing.assert_allclose(moments.variance(np.full(4, n)), model, rtol=0.02)


@pytest.mark.parametrize(("baseline", "share"), [(0.7, 1.0), (0.1, 0.4), (0.3, 0.0)])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_variance_with_a_baseline_is_that_of_the_advantages_that_are_trained_with(baseline, share, n):
    rewards, scores, moments = centred_population(seed=1)
    draws = 20_000
    chosen = np.random.default_rng(2).integers(len(rewards), size=(draws, n))
    groups = torch.arange(draws).repeat_interleave(n)
    given = (torch.full((draws * n,), value, dtype=torch.float64) for value in (baseline, share))
    advantages = baseline_advantages(torch.from_numpy(rewards[chosen].ravel()), groups, *given)
    estimates = (advantages.numpy().reshape(draws, n, 1) * scores[chosen]).mean(1)
    errors = ((estimates - ((rewards - rewards.mean())[:, None] * scores).mean(0)) ** 2).sum(1)
    expected = moments.variance(np.array([n]), np.array([baseline]), np.array([share]))[0]
    assert abs(errors.mean() - expected) < 4 * errors.std() / np.sqrt(draws)


def test_without_belief_it_is_the_closed_form_of_rloo():
    rewards, scores, moments = centred_population(seed=3)
    together = Moments.of(rewards[None], scores[None])
    for n in (2, 3, 32):
        expected = together.variance(np.array([n])) * scores.shape[1]  # a sum over directions here, a mean there
        np.testing.assert_allclose(moments.variance(np.array([n]), None, None), expected)
        no_share = moments.variance(np.array([n]), np.array([0.9]), np.zeros(1))
        np.testing.assert_allclose(no_share, expected)


def test_a_missing_share_and_a_group_of_one_mean_the_belief_alone():
    _, _, moments = centred_population(seed=4)
    belief, n = np.array([0.5]), np.array([3])
    np.testing.assert_array_equal(moments.variance(n, belief, None), moments.variance(n, belief, np.ones(1)))
    alone = np.array([1])
    np.testing.assert_array_equal(moments.variance(alone, belief, np.zeros(1)), moments.variance(alone, belief, None))


def test_what_is_measured_of_a_few_rollouts_is_right_on_average():
    """Squares and products of gradients are too large by their noise where the same rollouts are used twice."""
    rewards, scores, truth = centred_population(seed=5)
    random, parts = np.random.default_rng(6), []
    for number in range(1_500):
        chosen = random.integers(len(rewards), size=16)
        parts.append(of_prompt(str(number), rewards.mean(), rewards[chosen], torch.from_numpy(scores[chosen])))
    pool = Measured.joined(parts)
    for name in ("successes", "failures", "squared_gradient"):
        for half in pool.baseline_halves:
            found = getattr(half, name)
            assert abs(found.mean() - getattr(truth, name)[0]) < 4 * found.std() / np.sqrt(len(found)), name
    products = pool.products()
    assert np.trace(products) / len(products) == pytest.approx(pool.baseline_halves[0].squared_gradient.mean())
    off = products[~np.eye(len(products), dtype=bool)].mean()
    assert off == pytest.approx(truth.squared_gradient[0], rel=0.1)
    twice = (pool.gradients_QD**2).sum(1)
    assert twice.mean() - truth.squared_gradient[0] > 8 * twice.std() / np.sqrt(len(twice))
