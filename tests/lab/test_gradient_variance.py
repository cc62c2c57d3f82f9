import numpy as np
import pytest
from pydantic import ValidationError

from allotment.errors import ConfigError
from allotment.lab.config import GradientVarianceConfig
from allotment.lab.gradient_variance import Moments, measure


def sample(n_prompts, n_rollouts, dependence, seed):
    """Rewards and scores whose dependence is known; [Q, N] and [Q, N, 1]."""
    random = np.random.default_rng(seed)
    p = np.linspace(0.1, 0.9, n_prompts)[:, None]
    rewards = (random.random((n_prompts, n_rollouts)) < p).astype(float)
    scores = random.normal(size=rewards.shape) * (1 + dependence * rewards) + 2 * dependence * rewards
    return rewards, scores[:, :, None]


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


def test_where_reward_and_score_are_independent_it_is_the_model_of_vip():
    rewards, scores = sample(4, 200_000, dependence=0.0, seed=3)
    moments = Moments.of(rewards, scores)
    for n in (3, 8, 32):
        model = rewards.var(1) * scores[:, :, 0].var(1) / (n - 1)
        np.testing.assert_allclose(moments.variance(np.full(4, n)), model, rtol=0.02)


def test_the_measurement_orders_the_yardsticks():
    """A small measurement: twice the budget is worth more than half, the oracle beats uniform."""
    config = GradientVarianceConfig(
        history=0,
        planners=("uniform", "uniform-2x", "oracle", "neyman", "vip"),
        batches=2,
        prompts=32,
        rollouts=96,
    )
    ratios = measure(config)
    assert ratios["uniform"].ratio == 1.0
    assert ratios["uniform"].se == 0.0
    assert 0.4 < ratios["uniform-2x"].ratio < 0.5
    assert ratios["oracle"].ratio < 0.9
    assert ratios["neyman"].ratio < 0.9
    assert ratios["vip"].ratio == pytest.approx(1.0)  # no history: the first plan is uniform


def test_moments_need_a_history_and_change_the_allocation():
    small = {"planners": ("vip", "vip-moments"), "batches": 2, "prompts": 16, "rollouts": 16, "directions": 1}
    without = measure(GradientVarianceConfig(history=0, **small))
    assert without["vip-moments"] == without["vip"]
    few = measure(GradientVarianceConfig(history=2, sketch="last-layer", sketches=2, **small))
    assert few["vip-moments"] != few["vip"]


def test_more_prompts_than_the_pool_are_refused():
    with pytest.raises(ConfigError, match="99 batches"):
        measure(GradientVarianceConfig(batches=99))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"planners": ("magic",)}, "uniform-2x"),
        ({"planners": ()}, "at least 1"),
        ({"planners": ("vip", "vip")}, "each planner once"),
        ({"bounds": (3, 7)}, "lower <= rollouts_per_prompt <= upper"),
        ({"bounds": (9, 32)}, "lower <= rollouts_per_prompt <= upper"),
        ({"sketch": "magic"}, "last-layer"),
        ({"sketches": 17}, "16"),
    ],
)
def test_impossible_measurements_are_refused_before_they_start(change, text):
    with pytest.raises(ValidationError, match=text):
        GradientVarianceConfig(**change)


def no_rollout_differs(lab, problems, config, batch):
    nothing = Moments(*np.zeros((3, config.prompts)))
    return nothing, nothing


def test_batches_without_variance_are_no_ratio(monkeypatch):
    monkeypatch.setattr("allotment.lab.gradient_variance.moments_of_halves", no_rollout_differs)
    with pytest.raises(ConfigError, match="batch 1 has no gradient variance"):
        measure(GradientVarianceConfig(planners=("uniform",), history=0))


def test_neyman_is_judged_by_rollouts_that_it_has_not_seen(monkeypatch):
    """Half the prompts have all their variance in the first half of the rollouts, the others in the second.

    Knowing the half it is judged by, neyman would gain; knowing the other one, it spends where there is nothing.
    """
    q, n = 8, 64

    def opposite_halves(lab, problems, config, batch):
        rewards, scores = sample(q, n, dependence=0.0, seed=batch)
        rewards[: q // 2, n // 2 :] = 0
        rewards[q // 2 :, : n // 2] = 0
        return Moments.of(rewards[:, : n // 2], scores[:, : n // 2]), Moments.of(
            rewards[:, n // 2 :], scores[:, n // 2 :]
        )

    monkeypatch.setattr("allotment.lab.gradient_variance.moments_of_halves", opposite_halves)
    config = GradientVarianceConfig(planners=("neyman",), history=0, batches=2, prompts=q, rollouts=n)
    assert measure(config)["neyman"].ratio == pytest.approx(7 / 2, rel=0.05)  # 3 rollouts where there is variance
