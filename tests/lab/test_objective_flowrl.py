import dataclasses
import json

import numpy as np
import pytest
import torch

from allotment.cli.main import main
from allotment.errors import ConfigError
from allotment.lab.checkpoint import load_lab
from allotment.lab.config import TrainConfig
from allotment.lab.generation import expected_distinct, seeded_generator, solution_chances
from allotment.lab.objectives import make_objective
from allotment.lab.train import Trainer
from allotment.learning.losses import TokenLoss
from allotment.run_logs.directory import RunDirectory
from allotment.run_logs.files import read_log
from allotment.tasks.countdown import load_countdown, solutions_of
from allotment.tasks.mixture import Mixture


@pytest.fixture(scope="module")
def few():
    """Countdown, few prompts."""
    countdown = load_countdown()
    return Mixture(countdown.pool[::12], countdown.held_out[::20], ())


@pytest.fixture(scope="module")
def shipped():
    return load_lab("countdown")


def config(**changes):
    settings = {"steps": 4, "prompts_per_step": 8, "evaluate_every": 4, "checkpoint_every": 2, "planner": "uniform"}
    return TrainConfig(**{**settings, "objective": ("flowrl",), **changes})


def parameters(module):
    return {name: value.clone() for name, value in module.named_parameters()}


def assert_close(first, second, atol=1e-6):
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=atol, rtol=0)


@dataclasses.dataclass(frozen=True, eq=False)
class Pull:
    """The limit of equal rewards, written down a second time: (log Z + mean log-ratio to the reference) squared."""

    module: torch.nn.Module
    needs = ("reference", "prompt_hidden")
    needs_every_row = True

    def loss(self, record):
        lengths_N = record.mask_NT.sum(1)
        log_ratio_N = ((record.log_probs_NT - record.reference_log_probs_NT) * record.mask_NT).sum(1) / lengths_N
        squares_N = (self.module(record.prompt_hidden_NH) + log_ratio_N) ** 2
        return TokenLoss((squares_N / lengths_N)[:, None] * record.mask_NT, {})


def test_equal_rewards_are_the_pull_to_the_reference_alone(small):
    """Everybody is short enough, so nobody has an advantage; whatever beta is."""
    settings = config(rewards=("length",), length_target=100)
    flowrl, pull = Trainer(settings, mixture=small), Trainer(settings, mixture=small)
    objective = pull.learner.objective
    pull.learner.objective = dataclasses.replace(objective, loss=Pull(objective.module))
    for step in range(1, 5):
        rows = [trainer.step(step)[0] for trainer in (flowrl, pull)]
        assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], abs=1e-6)
        assert rows[0]["gradient_norm"] == pytest.approx(rows[1]["gradient_norm"], abs=1e-6)
    for module in ("policy", "head"):
        assert_close(
            *(parameters(t.lab.policy if module == "policy" else t.learner.objective.module) for t in (flowrl, pull))
        )


def test_policy_and_partition_function_are_both_trained_the_reference_is_not(small):
    trainer = Trainer(config(), mixture=small)
    head, policy, reference = trainer.learner.objective.module, trainer.lab.policy, trainer.learner._reference.policy
    before = [parameters(module) for module in (head, policy, reference)]
    metrics = trainer.step(1)[0]
    assert metrics["log_ratio_to_reference"] == 0
    assert metrics["mean_weight"] == 1
    after = [parameters(module) for module in (head, policy, reference)]
    for old, new in zip(before[:2], after[:2], strict=True):
        assert all(not torch.equal(old[name], new[name]) for name in old)
    assert_close(before[2], after[2], atol=0)
    assert abs(trainer.step(2)[0]["log_ratio_to_reference"]) > 0


@pytest.mark.parametrize("updates", [1, 3])
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, small, updates):
    settings = config(updates=updates, steps=5)

    def train(path, stop_after=None):
        def on_step(row):
            if row["step"] == stop_after:
                raise KeyboardInterrupt

        directory = RunDirectory.resume(path, settings) if path.exists() else RunDirectory.create(path, settings)
        Trainer(settings, mixture=small).run(directory, on_step)

    train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", 3)
    train(tmp_path / "killed")
    for name in ("metrics.jsonl", "rollouts.jsonl", "checkpoint.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    weights = [row["mean_weight"] for row in read_log(tmp_path / "whole" / "metrics.jsonl")[1:]]
    assert all((weight == 1) == (updates == 1) for weight in weights)


@pytest.mark.parametrize(
    ("changes", "advantage"),
    [
        ({}, "grpo"),
        ({"estimator": "dr_grpo"}, "grpo"),
        ({"objective": ("flowrl", "rloo")}, "rloo"),
        ({"objective": ()}, "rloo"),
    ],
)
def test_the_reward_is_standardised_unless_another_advantage_is_named(scratchpad, changes, advantage):
    assert make_objective(config(**changes), scratchpad).advantage == advantage


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"aggregation": "token_mean"}, "token_mean divides it by tokens"),
        ({"objective": ("flowrl", "gdpo")}, "whole trajectories"),
        ({"objective": ("flowrl", "divergence-ppo")}, "both say the loss"),
        ({"objective_settings": {"flowrl": {"temperature": 1}}}, "temperature"),
        ({"objective_settings": {"flowrl": {"beta": -1}}}, "cannot have this beta"),
    ],
)
def test_what_cannot_stand_together_is_refused(scratchpad, changes, said):
    with pytest.raises(ConfigError, match=said):
        make_objective(config(**changes), scratchpad)


def test_success_with_many_answers_is_what_sampling_gives(shipped, few):
    problems, n = list(few.pool), 300
    p = shipped.success_probability(problems)
    rollouts = shipped.rollouts(problems, np.full(len(problems), n), seeded_generator(1))
    observed = np.bincount(rollouts.group_N, rollouts.rewards_N) / n
    assert np.all(np.abs(observed - p) < 4.5 * np.sqrt(p * (1 - p) / n + 1e-5))
    assert 0.05 < p.mean() < 0.5
    assert np.count_nonzero(observed) > 15


def test_the_number_of_different_answers_is_what_sampling_gives(shipped, few):
    problems, n, repeats = list(few.pool[-6:]), 16, 100
    expected = np.array([expected_distinct(chances, n) for chances in solution_chances(shipped, problems)])
    rollouts = shipped.rollouts(problems, np.full(len(problems), n * repeats), seeded_generator(2))
    found = np.empty((len(problems), repeats))
    for q, problem in enumerate(problems):
        answers = [rollouts.answers_N[i] for i in (rollouts.group_N == q).nonzero().squeeze(1).tolist()]
        forms = [solutions_of(problem).get(answer) for answer in answers]
        for r in range(repeats):
            found[q, r] = len({form for form in forms[r * n : (r + 1) * n] if form is not None})
    assert np.all(np.abs(found.mean(1) - expected) < 4.5 * found.std(1) / np.sqrt(repeats) + 1e-3)
    assert expected.max() > 1


@pytest.mark.parametrize("planner", ["vip", "oracle"])
def test_countdown_trains_like_the_other_regimes(tmp_path, planner):
    words = ["--steps", "2", "--prompts-per-step", "4", "--evaluate-every", "2", "--regime", "countdown"]
    words += ["--objective", "flowrl", "--objective-settings", json.dumps({"flowrl": {"beta": 1.0}})]
    assert main(["train", "--planner", planner, *words, "--out", str(tmp_path / "run")]) == 0
    rows = read_log(tmp_path / "run" / "metrics.jsonl")
    for row in (rows[0], rows[-1]):
        assert 0.1 < row["pool_success"] < 0.3
        assert 1 < row["held_out_distinct"] < 2
    assert rows[0]["pool_success"] != rows[-1]["pool_success"]
    assert rows[1]["squared_residual"] > 0
