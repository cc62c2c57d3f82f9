"""Coverage (arXiv 2601.08421) where everything is known: the fact sheet's invariants and simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import check_grad
from scipy.special import expit

from allotment.errors import InvalidInputError
from allotment.methods.objectives.optimal_design import coverage_number
from theory.preference_bandit import (
    PreferenceBandit,
    distillation_loss,
    dpo_loss_and_gradient,
    fit_distillation,
    fit_dpo,
    rare_action_bandit,
)
from theory.tabular_preferences import distil_rewards, hybrid_dpo, offline_dpo, on_policy_dpo

SEEDS = 12


@pytest.fixture(scope="module")
def bandits():
    return [rare_action_bandit(seed) for seed in range(SEEDS)]


def median(learner, bandits, figure="total_variation_T", **settings):
    return np.median([getattr(learner(b, seed=s, **settings), figure) for s, b in enumerate(bandits)], axis=0)


def pairs(seed, size=30, dimensions=3):
    rng = np.random.default_rng(seed)
    return rng, rng.normal(size=(size, dimensions)), rng.normal(size=dimensions)


@given(st.integers(0, 100), st.floats(0.05, 3), st.floats(0, 2))
def test_gradient_of_dpo_is_the_derivative_of_its_loss(seed, beta, penalty):
    rng, z, theta = pairs(seed)
    labels = rng.random(30)
    loss, gradient = (lambda t, k=k: dpo_loss_and_gradient(t, z, labels, beta, penalty)[k] for k in (0, 1))
    assert check_grad(loss, gradient, theta) < 1e-5


@given(st.integers(0, 100), st.floats(0.05, 3))
def test_gradient_is_zero_where_the_labels_are_the_models_own_probabilities(seed, beta):
    rng, z, theta = pairs(seed)
    own = expit(beta * z @ theta)
    np.testing.assert_allclose(dpo_loss_and_gradient(theta, z, own, beta)[1], 0, atol=1e-12)
    np.testing.assert_allclose(fit_dpo(z, own, beta=beta, penalty=0), theta, atol=1e-3)
    other = np.abs(dpo_loss_and_gradient(theta + rng.normal(size=3), z, own, beta)[1]).max()
    assert other > 1e-6


@given(st.integers(0, 100), st.data())
def test_swapping_the_two_of_a_pair_changes_nothing(seed, data):
    rng, z, theta = pairs(seed)
    labels = (rng.random(30) < 0.5).astype(float)
    swapped = np.array(data.draw(st.lists(st.booleans(), min_size=30, max_size=30)))
    sign = np.where(swapped, -1.0, 1.0)
    other = np.where(swapped, 1 - labels, labels)
    first, second = dpo_loss_and_gradient(theta, z, labels), dpo_loss_and_gradient(theta, sign[:, None] * z, other)
    assert first[0] == pytest.approx(second[0])
    np.testing.assert_allclose(first[1], second[1], atol=1e-12)
    gaps = rng.normal(size=30)
    assert distillation_loss(theta, z, gaps) == pytest.approx(distillation_loss(theta, sign[:, None] * z, sign * gaps))


@given(st.integers(0, 100), st.floats(0.05, 3), st.floats(-50, 50))
def test_distillation_loss_is_zero_at_the_target_and_knows_no_shift_of_a_prompt(seed, beta, shift):
    rng = np.random.default_rng(seed)
    bandit = PreferenceBandit(rng.normal(size=(9, 3)), np.full(9, 1 / 9), rng.normal(size=3), beta)
    rewards = beta * bandit.features_AD @ bandit.theta_D + shift
    chosen = rng.integers(9, size=(40, 2))
    z, gaps = bandit.differences(chosen), rewards[chosen[:, 0]] - rewards[chosen[:, 1]]
    assert distillation_loss(bandit.theta_D, z, gaps, beta=beta) == pytest.approx(0, abs=1e-20)
    assert distillation_loss(bandit.theta_D + 0.1, z, gaps, beta=beta) > 1e-9
    fitted = fit_distillation(z, gaps, beta=beta)
    np.testing.assert_allclose(bandit.policy(fitted), bandit.target, atol=1e-8)
    implied = bandit.reference_A * np.exp(rewards / beta - (rewards / beta).max())
    np.testing.assert_allclose(bandit.policy(fitted), implied / implied.sum(), atol=1e-8)


def test_labels_are_bradley_terrys():
    bandit = PreferenceBandit(np.array([[0.0], [1.0]]), np.full(2, 0.5), np.array([1.2]), beta=0.5)
    z = np.ones((20_000, 1))
    share, chance = bandit.labels(z, np.random.default_rng(0)).mean(), expit(0.6)
    assert abs(share - chance) < 4 * np.sqrt(chance * (1 - chance) / 20_000)


def test_the_bandit_is_that_of_the_fact_sheet(bandits):
    for bandit in bandits:
        assert bandit.features_AD.shape == (400, 6)
        assert bandit.target[:8].sum() == pytest.approx(0.8)
        assert bandit.reference_A[:8].sum() == pytest.approx(8 / 400)
    uncovered = [coverage_number(b.covariance(b.reference_A), b.covariance(b.target)) for b in bandits]
    assert 40 < np.median(uncovered) < 100  # 66.6


def test_one_round_of_on_policy_labels_brings_coverage(bandits):
    coverage = median(on_policy_dpo, bandits, "coverage_T")
    assert coverage[1] < coverage[0] / 8
    assert (coverage[1:] < 10).all()
    np.testing.assert_array_less(1, coverage[:1])
    assert np.ptp(median(offline_dpo, bandits, "coverage_T")) == pytest.approx(0)


def test_on_policy_dpo_ends_below_offline_at_equal_labels_and_meets_a_floor(bandits):
    on_policy, offline = median(on_policy_dpo, bandits), median(offline_dpo, bandits)
    assert on_policy[0] == offline[0]  # the same labels
    assert 0.3 < on_policy[0] < 0.6
    assert (on_policy[1:] < offline[1:]).all()
    assert on_policy[1] < offline[1] / 1.5
    assert on_policy[1:].min() > 0.05  # fresh labels alone: no decay to 0
    assert on_policy[1:].max() < 0.3
    more = median(on_policy_dpo, bandits, labels=6400)
    assert more[-1] < on_policy[-1] / 2  # the floor is that of the labels


def test_a_design_needs_no_coverage(bandits):
    hybrid = median(hybrid_dpo, bandits)
    assert len(hybrid) == 2
    assert hybrid[0] < median(on_policy_dpo, bandits, rounds=1)[0] / 2
    assert hybrid[1] < median(offline_dpo, bandits)[-1]
    assert median(hybrid_dpo, bandits, "coverage_T")[0] < 10


def test_rewards_without_noise_are_distilled_in_a_round(bandits):
    assert median(distil_rewards, bandits, rounds=2).max() < 1e-8
    assert median(distil_rewards, bandits, "coverage_T", rounds=2)[1] == pytest.approx(1)


def test_a_seed_says_everything(bandits):
    first, second, other = (on_policy_dpo(bandits[0], rounds=2, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.theta_D, second.theta_D)
    assert not np.array_equal(first.theta_D, other.theta_D)
    np.testing.assert_array_equal(rare_action_bandit(0).features_AD, bandits[0].features_AD)


@pytest.mark.parametrize("settings", [{"rare": 1}, {"rare": 400}, {"dimensions": 1}, {"mass": 0.01}, {"mass": 1.0}])
def test_a_bandit_that_cannot_be_is_refused(settings):
    with pytest.raises(InvalidInputError, match="no bandit with rare actions"):
        rare_action_bandit(0, **settings)


@pytest.mark.parametrize("settings", [{"rounds": 0}, {"labels": 1}])
def test_nothing_to_learn_from_is_refused(bandits, settings):
    for learner in (on_policy_dpo, offline_dpo, hybrid_dpo, distil_rewards):
        with pytest.raises(InvalidInputError, match="nothing can be learnt"):
            learner(bandits[0], **settings)


@pytest.mark.parametrize(
    ("z", "targets"),
    [
        (np.zeros((0, 2)), []),
        ([[1.0, np.nan]], [1.0]),
        ([[1.0, 2.0]], [np.nan]),
        ([[1.0, 2.0]], [1.0, 0.0]),
        ([1.0, 2.0], [1.0, 0.0]),
    ],
)
def test_pairs_that_cannot_be_fitted_are_refused(z, targets):
    for fit, name in ((fit_dpo, "labels"), (fit_distillation, "reward gaps")):
        with pytest.raises(InvalidInputError, match=f"{name} cannot be fitted"):
            fit(z, targets)


@pytest.mark.parametrize("label", [-0.1, 1.5])
def test_a_label_outside_its_range_is_refused(label):
    with pytest.raises(InvalidInputError, match=f"from {label} to {label}"):
        fit_dpo([[1.0]], [label])
