import pytest
from pydantic import ValidationError

from allotment.lab.config import GradientVarianceConfig


def design(name, **settings):
    return GradientVarianceConfig(planners=(name,), **settings).designs[0]


@pytest.mark.parametrize(
    ("name", "planner", "prompts", "rollouts", "candidates", "bounds", "estimator", "predictor"),
    [
        ("uniform", "uniform", 16, 8, 16, (3, 32), "rloo", None),
        ("uniform-2x", "uniform", 16, 16, 16, (3, 32), "rloo", "global-mean"),
        ("uniform-32x8", "uniform", 32, 8, 32, (3, 32), "rloo", "global-mean"),
        ("uniform-64x2", "uniform", 64, 2, 64, (2, 32), "rloo", "global-mean"),
        ("uniform-128x1", "uniform", 128, 1, 128, (1, 32), "shrinkage", "global-mean"),
        ("uniform-128x1-shrinkage", "uniform", 128, 1, 128, (1, 32), "shrinkage", "hierarchical"),
        ("vip", "vip", 16, 8, 16, (3, 32), "rloo", None),
        ("vip-64x2-shrinkage", "vip", 64, 2, 64, (1, 32), "shrinkage", None),
        ("vip_moments", "vip-moments", 16, 8, 16, (3, 32), "rloo", None),
        ("neyman", "neyman", 16, 8, 16, (3, 32), "rloo", None),
        ("joint", "joint", 16, 8, 256, (1, 32), "shrinkage", None),
        ("joint-32x4-rloo-of-64", "joint", 32, 4, 64, (3, 32), "rloo", None),
    ],
)
def test_a_name_is_a_planner_and_what_differs(
    name, planner, prompts, rollouts, candidates, bounds, estimator, predictor
):
    found = design(name)
    assert (found.planner, found.prompts, found.rollouts, found.candidates) == (planner, prompts, rollouts, candidates)
    assert (found.bounds, found.estimator, found.predictor) == (bounds, estimator, predictor)
    assert found.name == name.replace("_", "-")
    assert found.budget == prompts * rollouts


def test_settings_are_those_of_names_that_do_not_say():
    assert design("joint", candidates=100).candidates == 100
    assert design("joint-of-64", candidates=100).candidates == 64
    assert design("joint", batches=3).candidates == 192  # all that are measured
    assert design("vip", prompts_per_step=32, rollouts_per_prompt=4).budget == 128


def test_fixed_batches_measure_splits_alone():
    config = GradientVarianceConfig()
    splitting = {found.name for found in config.designs if found.splits}
    assert splitting == {"uniform", "uniform-2x", "oracle", "neyman", "vip", "vip-moments", "vip-paper"}
    assert {"joint", "uniform-64x2", "uniform-128x1"} == set(config.planners) - splitting
    assert not design("vip-shrinkage").splits


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("uniform-64x2-of-128", {}, "takes every prompt"),
        ("uniform-1024x1", {}, "768 prompts"),
        ("joint-of-200", {"batches": 2}, "128 prompts"),
        ("uniform-128x1-rloo", {}, "2 to 32 with rloo"),
        ("uniform-2x", {"bounds": (3, 12)}, "3 to 12"),
        ("uniform-0x4", {}, "unknown planner"),
        ("uniform-2x-64x2", {}, "unknown planner"),
        ("vip-second-look", {}, "several rounds"),
        ("dapo-64x2", {}, "several rounds"),
        ("reinforce-ada-est", {}, "selection"),
        ("vip-tokens", {}, "in tokens"),
        ("dynamic-pruning", {}, "exactly"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(name, settings, text):
    with pytest.raises(ValidationError, match=text):
        design(name, **settings)
