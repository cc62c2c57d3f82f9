"""With equal counts the trainers are TRL's: to the last bit for GRPO, to rounding for RLOO."""

import pytest
from packaging.version import Version
from trl_cases import (
    NONE_IS_LEFT_OUT,
    OURS,
    STOCK,
    TRL,
    figures,
    largest_difference,
    model,
    real_valued,
    sometimes_none,
    success,
    tokenizer,
    train,
)

TWO = {"rewards": [success, real_valued], "reward_weights": [1.0, 0.3]}
GRPO = {
    "plain": {},
    "accumulation": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
    "iterations": {"num_iterations": 2},
    "steps_per_generation": {
        "per_device_train_batch_size": 4,
        "steps_per_generation": 4,
        "gradient_accumulation_steps": 2,
    },
    "kl": {
        "saved": True,
        "per_device_train_batch_size": 8,
        "beta": 0.1,
        "gradient_accumulation_steps": 2,
        "num_iterations": 2,
    },
    "scale_batch": {"scale_rewards": "batch"},
    "scale_none": {"scale_rewards": "none"},
    "two_rewards": TWO,
    "gdpo": {**TWO, "multi_objective_aggregation": "normalize_then_sum"},
    "gdpo_none": {
        "rewards": [sometimes_none, real_valued],
        "reward_weights": [1.0, 0.3],
        "multi_objective_aggregation": "normalize_then_sum",
    },
    "none": {"rewards": sometimes_none},
    "none_batch": {"rewards": sometimes_none, "scale_rewards": "batch"},
    "real": {"rewards": real_valued},
    "pairs": {"num_generations": 2},
    "short_epoch": {"per_device_train_batch_size": 20, "num_generations": 4},
    "logging_steps": {"logging_steps": 2, "max_steps": 4, "rewards": sometimes_none},
}
RLOO = {
    "plain": {},
    "accumulation": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_iterations": 2},
    "normalize": {"normalize_advantages": True},
    "normalize_none": {"normalize_advantages": True, "rewards": sometimes_none},
    "clip": {"reward_clip_range": (0.1, 0.6), "rewards": real_valued},
    "none": {"rewards": sometimes_none},
}


def cases(settings):
    """The names; marked where a rollout may go without any reward."""
    nones = [name for name, own in settings.items() if own.get("rewards") is sometimes_none]
    return [pytest.param(name, marks=NONE_IS_LEFT_OUT) if name in nones else name for name in settings]


def both(kind, folder, **settings):
    stock, ours = STOCK[kind], OURS[kind]
    of = {}
    if settings.pop("saved", False):  # TRL loads the reference model by its name
        model().save_pretrained(folder / "model")
        tokenizer().save_pretrained(folder / "model")
        of = {"model": str(folder / "model")}
    runs = [
        train(*ours, folder, planner="uniform", of=of, **settings),
        train(*stock, folder / "stock", of=of, **settings),
    ]
    assert any(row.get("grad_norm", 0) > 0 for row in runs[1].state.log_history)
    return runs


def assert_identical(ours, stock):
    if Version("1.6.0") > TRL:  # rounds some means and deviations otherwise
        assert largest_difference(figures(ours), figures(stock)) < 3e-6
        return
    assert figures(ours) == figures(stock)
    for mine, theirs in zip(ours.model.parameters(), stock.model.parameters(), strict=True):
        assert mine.equal(theirs)


@pytest.mark.parametrize("name", cases(GRPO))
def test_grpo_is_trls_to_the_last_bit(name, tmp_path):
    assert_identical(*both("grpo", tmp_path, **GRPO[name]))


@pytest.mark.parametrize("name", cases(RLOO))
def test_rloo_without_kl_is_trls_to_the_last_bit(name, tmp_path):
    assert_identical(*both("rloo", tmp_path, beta=0.0, **RLOO[name]))


KL = [{}, {"rewards": real_valued, "reward_clip_range": (0.1, 0.6)}, {"normalize_advantages": True}]


@pytest.mark.parametrize("settings", KL)
def test_rloo_with_kl_is_trls_but_for_rounding(settings, tmp_path):
    ours, stock = both("rloo", tmp_path, beta=0.05, saved=True, **settings)
    but = ["frac_reward_zero_std"]  # TRL takes it on the penalised reward, which it keeps to itself
    assert largest_difference(figures(ours, but), figures(stock, but)) < 3e-6


def test_counts_are_equal_and_both_variance_ratios_one(tmp_path):
    ours = train(*OURS["grpo"], tmp_path, planner="uniform", max_steps=4)
    steps = ours.state.log_history[:-1]
    assert len(steps) == 4
    for step in steps:
        assert step["allotment/min_count"] == step["allotment/max_count"] == 4
        assert step["allotment/budget"] == 16
        assert step["allotment/zero_count"] == step["allotment/unscored"] == 0
        assert step["allotment/predicted_variance_ratio"] == 1
        assert step.get("allotment/realised_variance_ratio", 1) == 1
        assert step["allotment/dead_rollouts"] == step["frac_reward_zero_std"]
        assert step["allotment/success"] == pytest.approx(step["reward"])
    assert any("allotment/realised_variance_ratio" in step for step in steps)
