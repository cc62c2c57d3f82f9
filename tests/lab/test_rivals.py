"""SPO, Pilot-Commit, JSPO and KRPO through the lab's real loop: what is generated and what is learnt from it."""

import dataclasses

import numpy as np
import pytest
import torch
from lab_runs import run, trained_and_resumed

from allotment.errors import ConfigError
from allotment.lab.beliefs import Beliefs
from allotment.lab.config import TrainConfig
from allotment.lab.generation import seeded_generator
from allotment.lab.train import Trainer
from allotment.methods.objectives.jspo import JSPO
from allotment.methods.objectives.krpo import KRPO
from allotment.run_logs.files import read_log
from allotment.tasks.mixture import Mixture

SAME_BYTES = ("metrics.jsonl", "rollouts.jsonl", "checkpoint.safetensors")
ARMS = [
    {"planner": "spo", "candidate_prompts": 40, "rollouts_per_prompt": 3},
    {"planner": "pilot-commit", "candidate_prompts": 24},
    {"planner": "vip", "objective": ("jspo",)},
]


@pytest.fixture(scope="module")
def small(mixture):
    return Mixture(mixture.pool[::18], mixture.held_out[::40], ())


def config(**changes):
    return TrainConfig(**{"steps": 4, "prompts_per_step": 8, "evaluate_every": 4, "checkpoint_every": 2, **changes})


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: "+".join([arm["planner"], *arm.get("objective", ())]))
def test_a_rival_trains_and_resumes_bit_for_bit(tmp_path, small, arm):
    metrics = trained_and_resumed(tmp_path, config(**arm), small, 2, SAME_BYTES)
    assert any(row.get("gradient_norm", 0.0) > 0 for row in metrics)


def seen_update(trainer, monkeypatch):
    """Rollouts and advantages of the first update."""
    kept = []
    monkeypatch.setattr(
        trainer,
        "update",
        lambda problems, rollouts, advantages_N, weights_NT: kept.append((rollouts, advantages_N)) or {},
    )
    trainer.step(1)
    return kept[0]


def test_spo_learns_from_rewards_less_its_belief_whitened_over_groups_of_one(small, monkeypatch):
    trainer = Trainer(config(**ARMS[0]), mixture=small)
    rollouts, advantages_N = seen_update(trainer, monkeypatch)
    assert len(rollouts) == len(set(rollouts.group_N.tolist())) == 24
    values_N = torch.from_numpy(rollouts.rewards_N).float() - 0.5
    torch.testing.assert_close(advantages_N, (values_N - values_N.mean()) / values_N.std())


def test_pilot_commit_trains_on_those_it_committed_to(tmp_path, small):
    run(tmp_path / "run", config(planner="pilot-commit", candidate_prompts=24), small)
    rows = read_log(tmp_path / "run" / "rollouts.jsonl")
    for line in read_log(tmp_path / "run" / "metrics.jsonl")[1:]:
        here = [row for row in rows if row["step"] == line["step"]]
        last = max(row["round"] for row in here)
        pilots = {row["prompt_id"]: row["successes"] for row in here if row["n"] == 3}
        committed = [row["prompt_id"] for row in here if row["round"] == last and row["n"] == 5]
        assert {pilots[prompt] for prompt in committed} <= {1, 2}
        assert line["trained_rollouts"] == 8 * len(committed)


@pytest.mark.parametrize("method", [JSPO(), KRPO()])
def test_an_objective_of_the_batch_is_the_advantage_of_the_update(small, monkeypatch, method):
    name = type(method).__name__.lower()
    trainer = Trainer(config(planner="uniform", objective=(name,)), mixture=small)
    rollouts, advantages_N = seen_update(trainer, monkeypatch)
    rewards = {"correctness": torch.from_numpy(rollouts.rewards_N).float()}
    torch.testing.assert_close(advantages_N, method.advantages(rewards, rollouts.group_N))
    assert advantages_N.any()


def test_jspo_takes_a_learnt_reward_too(small):
    trainer = Trainer(config(objective=("jspo",)), mixture=small)
    rollouts = trainer.generate(list(small.pool[:4]), np.array([2, 2, 2, 2]), seeded_generator(0, 1, 0))
    judged = dataclasses.replace(rollouts, judged_N=np.arange(8.0))
    expected_N = JSPO().advantages({"judge": torch.arange(8.0)}, rollouts.group_N)
    torch.testing.assert_close(trainer.advantages(judged, Beliefs()), expected_N)


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"planner": "spo", "objective": ("jspo",), "candidate_prompts": 40}, "spo has its own advantages"),
        ({"planner": "spo", "select": "pods", "candidate_prompts": 40}, "says itself which rollouts"),
        ({"planner": "spo", "aggregation": "token_mean", "candidate_prompts": 40}, "A belief as baseline is biased"),
        ({"planner": "pilot-commit", "select": "pods"}, "says itself which rollouts"),
        ({"planner": "vip-second-look", "objective": ("krpo",)}, "has its own advantages, not krpo"),
        ({"objective": ("jspo", "krpo")}, "jspo and krpo both say advantages"),
        ({"objective": ("jspo", "flowrl")}, "jspo is made for policy gradients"),
        ({"planner": "optpo", "objective": ("krpo",)}, "optpo says itself what the rewards are"),
        ({"objective": ("krpo",), "objective_settings": {"krpo": {"measurement": 0.0}}}, "krpo cannot have this"),
    ],
)
def test_what_is_refused_before_anything_is_generated(small, arm, said):
    with pytest.raises(ConfigError, match=said):
        Trainer(config(**arm), mixture=small)
