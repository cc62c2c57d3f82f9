"""On-policy preference learning through the trainer and the command line."""

import json

import numpy as np
import pytest
import torch
from lab_runs import run

from allotment.cli.main import main
from allotment.errors import ConfigError
from allotment.lab.checkpoint import load_lab
from allotment.lab.config import TrainConfig
from allotment.lab.objectives import make_objective
from allotment.lab.train import Trainer
from allotment.run_logs.files import read_log

DPO = "on-policy-dpo"


def config(**changes):
    settings = {"steps": 4, "prompts_per_step": 8, "evaluate_every": 4, "checkpoint_every": 2, "planner": "uniform"}
    return TrainConfig(**{**settings, "regime": "short", "objective": (DPO,), "clip_norm": 1e9, **changes})


def of(**settings):
    return {"objective_settings": {DPO: settings}}


def gradient_of_step(settings, mixture, step=1):
    """Gradient of every parameter at a step, and its metrics."""
    trainer = Trainer(settings, load_lab("short"), mixture)
    for earlier in range(1, step + 1):
        metrics = trainer.step(earlier)[0]
    return torch.cat([p.grad.flatten() for p in trainer.lab.policy.parameters()]), metrics


@pytest.mark.parametrize("planner", ["uniform", "vip"])
@pytest.mark.parametrize("loss_name", ["dpo", "distillation"])
def test_at_the_reference_the_gradient_is_beta_times_that_of_rloo(float64, small, planner, loss_name):
    rloo, yardstick = gradient_of_step(config(planner=planner, objective=()), small)
    found, metrics = gradient_of_step(config(planner=planner, **of(beta=0.3, loss_name=loss_name)), small)
    assert rloo.abs().max() > 0.01
    factor = 0.3 if loss_name == "dpo" else 4 * 0.3
    torch.testing.assert_close(found, factor * rloo, atol=3e-8, rtol=0)  # rewards and weights are of float32
    assert metrics["gradient_norm"] == pytest.approx(factor * yardstick["gradient_norm"])
    assert metrics["coverage_number"] == pytest.approx(1)


def test_away_from_the_reference_it_is_not(float64, small):
    changes = ({"objective": ()}, of(beta=1.0))
    rloo, found = (gradient_of_step(config(learning_rate=3e-3, **c), small, 3)[0] for c in changes)
    assert torch.nn.functional.cosine_similarity(found, rloo, dim=0) < 0.99


class Tilted:
    """A reference of which the policy is the tilt by the rewards: ``log pi - r / beta``, shifted in each prompt."""

    def __init__(self, trainer, beta):
        self.lab, self.beta = trainer.lab, beta
        self.rewards_N = None

    def log_probs(self, problems, group_N, tokens_NT, mask_NT):
        own_NT = self.lab.log_probs(problems, group_N, tokens_NT, mask_NT).clone()
        own_NT[:, 0] -= self.rewards_N / self.beta + group_N.double()
        return own_NT


@pytest.mark.parametrize(("beta", "solved"), [(0.3, True), (0.1, False)])
def test_distillation_has_nothing_to_learn_at_the_tilted_reference(float64, small, beta, solved):
    trainer = Trainer(config(**of(beta=beta, loss_name="distillation")), load_lab("short"), small)
    reference = trainer.learner._reference = Tilted(trainer, 0.3)
    update = trainer.learner.update

    def with_rewards(problems, rollouts, *rest):
        reference.rewards_N = torch.from_numpy(rollouts.rewards_N)
        return update(problems, rollouts, *rest)

    trainer.learner.update = with_rewards
    metrics = trainer.step(1)[0]
    assert metrics["pairs"] > 0
    assert (metrics["loss"] < 1e-20, metrics["gradient_norm"] < 1e-9) == (solved, solved)


def test_groups_whose_rewards_are_all_equal_have_no_gradient(small):
    settings = config(rewards=("length",), length_target=20, **of(design=0.5))
    found, metrics = gradient_of_step(settings, small, 2)
    assert found.abs().max() == 0
    assert (metrics["pairs"], metrics["without_pair"], metrics["loss"]) == (0, 1, 0)


def test_pairs_are_those_of_successes_and_failures(small):
    trainer = Trainer(config(), load_lab("short"), small)
    metrics, rows = trainer.step(1)
    assert metrics["pairs"] == sum(row["successes"] * (row["n"] - row["successes"]) for row in rows)
    assert metrics["without_pair"] == np.mean([row["successes"] in (0, row["n"]) for row in rows])


def test_the_reference_stands_still_and_the_policy_moves(small):
    trainer = Trainer(config(), load_lab("short"), small)
    start = [p.clone() for p in trainer.lab.policy.parameters()]
    for step in (1, 2):
        margin = trainer.step(step)[0]["margin"]
    reference = trainer.learner._reference.policy.parameters()
    assert all(torch.equal(a, b) for a, b in zip(start, reference, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(start, trainer.lab.policy.parameters(), strict=True))
    assert margin != 0


@pytest.mark.parametrize(
    ("actor", "settings", "covered"),
    [("current", {}, True), ("rounds", {"steps": 2}, False), ("stale", {"lag": 99}, False)],
)
def test_coverage_is_one_on_policy_and_grows_where_the_sampler_stays_behind(small, actor, settings, covered):
    changes = {"actor": actor, "actor_settings": settings, "learning_rate": 3e-3, "steps": 9}
    trainer = Trainer(config(**changes), load_lab("short"), small)
    numbers = {step: trainer.step(step)[0] for step in range(1, 9)}
    assert numbers[1]["coverage_number"] == pytest.approx(1, abs=1e-4)
    assert numbers[1]["coverage_sample"] == pytest.approx(1, abs=1e-4)
    later = [numbers[step]["coverage_number"] for step in (4, 6, 8)]  # second step of a round
    if covered:
        assert later == pytest.approx([1, 1, 1], abs=1e-4)
    else:
        assert min(later) > 1.01
        assert max(numbers[step]["coverage_sample"] for step in (4, 6, 8)) < 0.999
    if actor == "rounds":
        assert numbers[7]["coverage_number"] == pytest.approx(1, abs=1e-4)


def test_a_design_changes_what_is_learnt_and_its_share_is_a_mixture(float64, small):
    plain, half, whole = (
        gradient_of_step(config(**of(loss_name="distillation", design=share)), small)[0] for share in (0.0, 0.5, 1.0)
    )
    assert torch.nn.functional.cosine_similarity(plain, whole, dim=0) < 0.999
    torch.testing.assert_close(half, (plain + whole) / 2)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"updates": 3, "planner": "vip", **of(design=0.5, loss_name="distillation")},
        {"actor": "rounds", "actor_settings": {"steps": 3}, "select": "pods", **of(design=1.0)},
    ],
)
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, small, changes):
    settings = config(steps=5, **changes)
    run(tmp_path / "whole", settings, small)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", settings, small, 3)
    run(tmp_path / "killed", settings, small)
    for name in ("metrics.jsonl", "rollouts.jsonl", "checkpoint.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


@pytest.mark.parametrize("planner", ["vip", "uniform", "vip-tokens", "mopps", "optpo"])
def test_any_planner_without_a_loss_of_its_own(small, planner):
    trainer = Trainer(config(planner=planner, prompts_per_step=4), load_lab("short"), small)
    metrics = [trainer.step(step)[0] for step in (1, 2)]
    assert max(row["pairs"] for row in metrics) > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"planner": "reinforce-ada"}, "its own advantages"),
        ({"planner": "vip-second-look"}, "its own advantages"),
        ({"aggregation": "token_mean"}, "token_mean divides it by tokens"),
        ({"objective": (DPO, "capo")}, "whole trajectories"),
        ({"objective": (DPO, "grpo")}, "made of rewards"),
        ({"objective": (DPO, "flowrl")}, "both say the loss"),
        ({"select": "completion-pruning"}, "a preference is of two"),
        (of(beta=0), "cannot have this beta"),
        (of(design=2), "cannot have this design"),
        (of(design=0.5, pairs="extreme"), "looks at rewards first"),
        (of(temperature=1), "temperature"),
    ],
)
def test_what_cannot_stand_together_is_refused(short, changes, said):
    with pytest.raises(ConfigError, match=said):
        make_objective(config(**changes), short)


def test_the_command_line_and_its_resume_to_the_same_bytes(tmp_path, capsys):
    words = ["train", "--objective", DPO, "--planner", "vip", "--regime", "short", "--prompts-per-step", "4"]
    words += ["--actor", "rounds", "--actor-settings", '{"steps": 3}', "--evaluate-every", "4"]
    words += ["--objective-settings", json.dumps({DPO: {"design": 0.5, "beta": 0.2}})]
    whole, parts = (str(tmp_path / name) for name in ("whole", "parts"))
    assert main([*words, "--steps", "4", "--out", whole]) == 0
    assert main([*words, "--steps", "2", "--out", parts]) == 0
    assert main(["train", "--resume", "--out", parts, "--steps", "4"]) == 0
    rows = {name: read_log(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")}
    assert {"pairs", "without_pair", "margin", "coverage_number", "coverage_sample"} <= set(rows["whole"][1])
    assert rows["whole"][3]["coverage_number"] > 1 + 1e-5
    assert rows["whole"][4]["coverage_number"] == pytest.approx(1, abs=1e-5)  # a new round
    saved = [(tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("whole", "parts")]
    assert [row for row in rows["parts"] if row["step"] in (3, 4)] == rows["whole"][3:]
    assert saved[0] == saved[1]


def test_a_bad_setting_is_named_on_the_command_line(tmp_path, capsys):
    words = ["train", "--objective", DPO, "--objective-settings", json.dumps({DPO: {"design": 3}})]
    assert main([*words, "--out", str(tmp_path / "run")]) != 0
    assert "cannot have this design" in capsys.readouterr().err
