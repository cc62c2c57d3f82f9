import numpy as np
import pytest
import torch
from pydantic import ValidationError

from allotment.errors import ConfigError
from allotment.lab.config import GradientVarianceConfig
from allotment.lab.gradient_measurement import Measured, of_prompt
from allotment.lab.gradient_variance import measure


def test_the_measurement_orders_the_yardsticks():
    """A small measurement: twice the budget is worth more than half, the oracle beats uniform; in a whole step more
    prompts are worth more than more rollouts, and choosing them more still.
    """
    config = GradientVarianceConfig(
        history=0,
        planners=("uniform", "uniform-2x", "uniform-32x4", "oracle", "neyman", "vip", "joint"),
        batches=2,
        prompts=32,
        rollouts=96,
        steps=16,
    )
    found = measure(config)
    assert found["uniform"].ratio == 1.0
    assert found["uniform"].se == 0.0
    assert 0.4 < found["uniform-2x"].ratio < 0.5
    assert found["oracle"].ratio < 0.9
    assert found["neyman"].ratio < 0.9
    assert found["vip"].ratio == pytest.approx(1.0)  # no history: the first plan is uniform
    assert found["joint"].ratio is found["joint"].se is found["uniform-32x4"].ratio is None
    assert found["uniform"].total == pytest.approx(1.0)
    assert found["uniform"].total_se < 1e-9
    assert found["uniform-2x"].between == found["oracle"].between == found["uniform"].between
    assert found["uniform-2x"].within == pytest.approx(found["uniform"].within / 2, rel=0.1)
    assert found["oracle"].within < 0.9 * found["uniform"].within
    assert found["uniform-32x4"].total < found["uniform-2x"].total < 1
    assert found["joint"].total < found["uniform-32x4"].total
    assert found["joint"].total_se > 0
    for figures in found.values():
        assert figures.total == pytest.approx(figures.between + figures.within)


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
        ({"candidates": 0}, "greater than or equal to 1"),
        ({"batches": 2, "prompts": 8}, "the 16 prompts that are measured"),
        ({"sketch": "magic"}, "last-layer"),
        ({"sketches": 17}, "16"),
    ],
)
def test_impossible_measurements_are_refused_before_they_start(change, text):
    with pytest.raises(ValidationError, match=text):
        GradientVarianceConfig(**change)


def no_rollout_differs(lab, problems, config, batch):
    return Measured.joined([of_prompt(p.id, 0.0, np.zeros(16), torch.ones(16, 1)) for p in problems])


def test_batches_without_variance_are_no_ratio():
    config = GradientVarianceConfig(planners=("uniform",), history=0)
    with pytest.raises(ConfigError, match="batch 1 has no gradient variance"):
        measure(config, measure_batch=no_rollout_differs)


def test_neyman_is_judged_by_rollouts_that_it_has_not_seen():
    """Half the prompts have all their variance in the first half of the rollouts, the others in the second.

    Knowing the half it is judged by, neyman would gain; knowing the other one, it spends where there is nothing.
    """
    q, n = 8, 64

    def opposite_halves(lab, problems, config, batch):
        random = np.random.default_rng(batch)
        rewards = (random.random((q, n)) < np.linspace(0.1, 0.9, q)[:, None]).astype(float)
        rewards[: q // 2, n // 2 :] = 0
        rewards[q // 2 :, : n // 2] = 0
        scores = torch.from_numpy(random.normal(size=(q, n, 1)))
        made = zip(problems, rewards, scores, strict=True)
        return Measured.joined([of_prompt(problem.id, r.mean(), r, s) for problem, r, s in made])

    config = GradientVarianceConfig(planners=("neyman",), history=0, batches=2, prompts=q, rollouts=n)
    found = measure(config, measure_batch=opposite_halves)["neyman"]
    assert found.ratio == pytest.approx(7 / 2, rel=0.05)  # 3 rollouts where there is variance
    assert found.within > 1.5 * (1 - found.between)  # uniform's
