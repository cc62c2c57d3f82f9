"""The methods of docs/methods.md through the lab's real loop: they train, resume bit for bit, refuse what is wrong."""

from collections import Counter

import pytest
from lab_runs import run, trained_and_resumed

from allotment.errors import ConfigError
from allotment.lab.config import TrainConfig
from allotment.lab.train import Trainer
from allotment.registry import PLANNERS, SELECTORS
from allotment.run_logs.files import read_log
from allotment.tasks.mixture import Mixture

METHODS = ("dynamic-pruning", "optpo", "reinforce-ada", "reinforce-ada-est", "dapo", "greso", "mopps")
CHOOSE_PROMPTS = [name for name, entry in PLANNERS if entry.candidates > 1]
SAME_BYTES = ("metrics.jsonl", "rollouts.jsonl", "checkpoint.safetensors")
GLOBAL = {"select_settings": {"mode": "global", "window": 3, "keep": 40}}
ARMS = [
    *({"planner": name} for name in (*METHODS, "coba-rl", "knapsack", "gvm")),
    *({"planner": "vip", "select": name} for name in SELECTORS.names),
    {"planner": "dynamic-pruning", "select": "completion-pruning"},
    {"planner": "dynamic-pruning", "select": "pods"},
    {"planner": "reinforce-ada", "planner_settings": {"predictor": "hierarchical", "exit": "positive"}},
    {"planner": "vip", "select": "contextual-bandit", **GLOBAL},
]


@pytest.fixture(scope="module")
def small(mixture):
    return Mixture(mixture.pool[::18], mixture.held_out[::40], ())


def config(**changes):
    return TrainConfig(**{"steps": 6, "prompts_per_step": 8, "evaluate_every": 6, "checkpoint_every": 2, **changes})


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: "+".join(map(str, list(arm.values())[:2])))
def test_a_method_trains_and_resumes_bit_for_bit(tmp_path, small, arm):
    metrics = trained_and_resumed(tmp_path, config(**arm), small, 3, SAME_BYTES)
    assert any(row.get("gradient_norm", 0.0) > 0 for row in metrics)
    for row in metrics[1:]:
        assert row.get("trained_rollouts", 0) <= row["rollouts_total"]


@pytest.mark.parametrize("planner", CHOOSE_PROMPTS)
def test_who_chooses_among_prompts_is_offered_more_than_it_takes(tmp_path, small, planner):
    settings = config(planner=planner, candidate_prompts=24)
    run(tmp_path / "run", settings, small)
    rows = read_log(tmp_path / "run" / "rollouts.jsonl")
    per_step = Counter(step for step, _ in {(row["step"], row["prompt_id"]) for row in rows})  # whatever the rounds
    assert settings.asked_prompts == 24
    if planner == "mopps":
        assert set(per_step.values()) == {8}
    else:
        assert min(per_step.values()) >= 8
        assert max(per_step.values()) <= 24


def test_dapo_trains_on_mixed_groups_alone(tmp_path, small):
    run(tmp_path / "run", config(planner="dapo"), small)
    mixed = Counter()
    for row in read_log(tmp_path / "run" / "rollouts.jsonl"):
        mixed[row["step"]] += row["n"] * (0 < row["successes"] < row["n"])
    for row in read_log(tmp_path / "run" / "metrics.jsonl")[1:]:
        assert row["trained_rollouts"] == min(mixed[row["step"]], 64)


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"planner": "reinforce-ada", "select": "pods"}, "says itself which rollouts"),
        ({"planner": "optpo", "select": "random"}, "says itself which rollouts"),
        ({"planner": "vip-second-look", "select": "pods"}, "every rollout of both"),
        ({"planner": "dynamic-pruning", "select": "contextual-bandit", **GLOBAL}, "says itself"),
        ({"planner": "coba-rl", "planner_settings": {"kapa": 3}}, "kapa"),
        ({"select": "pods", "select_settings": {"kep": 3}}, "kep"),
        (
            {"planner": "reinforce-ada", "planner_settings": {"predictor": "tarot"}},
            "hierarchical, .*discounted-counts",
        ),
    ],
)
def test_what_is_refused_before_anything_is_generated(small, arm, said):
    with pytest.raises(ConfigError, match=said):
        Trainer(config(**arm), mixture=small)
