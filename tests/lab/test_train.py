import json
from collections import Counter

import numpy as np
import pytest
import torch
from lab_runs import run

from allotment.errors import ConfigError, RunDirectoryError
from allotment.lab.config import TrainConfig
from allotment.lab.recent import Visit
from allotment.lab.train import Trainer
from allotment.learning import second_look_advantages
from allotment.run_logs.directory import RunDirectory
from allotment.run_logs.files import read_log
from allotment.tasks.mixture import Mixture

SAME_BYTES = ("metrics.jsonl", "rollouts.jsonl", "config.json", "checkpoint.safetensors")
PLANNERS = [
    "vip",
    "vip-moments",
    "vip-second-look",
    "uniform",
    "inverse-accuracy",
    "inverse-variance",
    "oracle",
    "vip-paper",
    "ridge",
]


def config(**changes):
    return TrainConfig(**{"steps": 6, "prompts_per_step": 8, "evaluate_every": 3, "checkpoint_every": 2, **changes})


def assert_same_bytes(first, second):
    for name in SAME_BYTES:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize("planner", PLANNERS)
def test_every_planner_trains_and_spends_its_budget(tmp_path, small, planner):
    settings = config(planner=planner)
    run(tmp_path / "run", settings, small)
    rows = read_log(tmp_path / "run" / "rollouts.jsonl")
    for step in range(1, 7):
        of_prompt = Counter()
        for row in rows:
            of_prompt[row["prompt_id"]] += row["n"] * (row["step"] == step)
        n = [count for count in of_prompt.values() if count]
        assert sum(n) == settings.budget
        assert min(n) >= settings.lower
        assert max(n) <= settings.upper
        assert len(n) == 8
    metrics = read_log(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(7))
    assert metrics[-1]["rollouts_total"] == 6 * settings.budget
    assert [row["step"] for row in metrics if "pool_success" in row] == [0, 3, 6]
    assert all(0 <= row["successes"] <= row["n"] for row in rows)


def test_a_second_look_generates_in_two_rounds_and_learns_as_one_visit(tmp_path, small):
    settings = config(planner="vip-second-look")
    run(tmp_path / "run", settings, small)
    rows = read_log(tmp_path / "run" / "rollouts.jsonl")
    assert {row["round"] for row in rows} == {0, 1}
    first = [row for row in rows if row["round"] == 0]
    assert len(first) == 6 * 8
    assert sum(row["n"] for row in first) < sum(row["n"] for row in rows) * 0.7
    for row in read_log(tmp_path / "run" / "metrics.jsonl")[1:]:
        mine = [line for line in rows if line["step"] == row["step"]]
        assert row["budget"] == settings.budget == sum(line["n"] for line in mine)
        assert 0 <= row["zero_variance_groups"] <= 1
    trainer = Trainer(settings, mixture=small)
    trainer.run(RunDirectory.resume(tmp_path / "run", settings))
    assert trainer.planner.predictor.state_dict()["step"] == 6


def test_a_second_look_uses_the_unbiased_advantages(tmp_path, small, monkeypatch):
    """The step's gradient is that of the two-round estimator, not of pooled groups."""
    seen = []

    def spy(rewards_N, group_N, rounds_N, expected_N):
        seen.append((rounds_N, expected_N, group_N))
        return second_look_advantages(rewards_N, group_N, rounds_N, expected_N)

    monkeypatch.setattr("allotment.lab.train.second_look_advantages", spy)
    Trainer(config(planner="vip-second-look"), mixture=small).step(1)
    ((rounds_N, expected_N, group_N),) = seen
    assert set(rounds_N.tolist()) == {0, 1}
    for row in range(8):  # before anything is known all prompts expect the same
        assert set(expected_N[group_N == row].tolist()) == {4.0}


def test_a_token_budget_is_met_in_expectation(tmp_path, small):
    settings = config(planner="vip-tokens", steps=12)
    run(tmp_path / "run", settings, small)
    rows = read_log(tmp_path / "run" / "metrics.jsonl")[1:]
    budget = int(settings.budget * settings.tokens_per_rollout)
    assert all(budget - 20 < row["expected_tokens"] <= budget for row in rows)
    assert sum(row["tokens"] for row in rows) == pytest.approx(sum(row["expected_tokens"] for row in rows), rel=0.1)
    assert len({row["budget"] for row in rows}) > 1  # rollouts follow from the tokens


@pytest.mark.parametrize("sketch", ["last-layer", "last-block", "exact"])
def test_moments_come_from_the_sketches_of_the_step(small, sketch):
    trainer = Trainer(config(planner="vip-moments", sketch=sketch, sketches=3), mixture=small)
    told = []
    trainer.sketch = lambda problems, rollouts, made=trainer.sketch: told.append(made(problems, rollouts)) or told[-1]
    trainer.step(1)
    assert told[0].shape == (64, 3)
    assert np.isfinite(told[0]).all()
    assert trainer.planner.moments.is_informed
    moments = trainer.planner.moments.predict(tuple(p.id for p in trainer.batch(1)))
    assert 0.1 < moments.within_Q2.mean() / told[0].var() < 2


@pytest.mark.parametrize("stop_after", [1, 3, 4])
@pytest.mark.parametrize("planner", ["vip", "vip-moments", "vip-second-look", "vip-tokens", "vip-paper"])
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, small, planner, stop_after):
    settings = config(planner=planner)
    run(tmp_path / "whole", settings, small)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", settings, small, stop_after)
    with open(tmp_path / "killed" / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "rollo')  # killed while writing
    (tmp_path / "killed" / ".checkpoint.safetensors.1.tmp").write_bytes(b"part")
    run(tmp_path / "killed", settings, small)
    assert_same_bytes(tmp_path / "whole", tmp_path / "killed")
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {*SAME_BYTES, "timing.jsonl"}
    timing = read_log(tmp_path / "killed" / "timing.jsonl")
    checkpoint = stop_after - stop_after % settings.checkpoint_every
    assert [row for row in timing if "seconds" not in row] == [{"step": checkpoint, "resumed": True}] * (checkpoint > 0)
    assert [row["step"] for row in timing if "seconds" in row] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_can_be_prolonged(tmp_path, small):
    run(tmp_path / "long", config(steps=6), small)
    run(tmp_path / "short", config(steps=4), small)
    run(tmp_path / "short", config(steps=6), small)
    long, short = (read_log(tmp_path / name / "rollouts.jsonl") for name in ("long", "short"))
    assert long == short


def test_runs_of_one_seed_see_the_same_prompts(small):
    batches = [[p.id for p in Trainer(config(planner=name), mixture=small).batch(4)] for name in ("vip", "uniform")]
    assert batches[0] == batches[1]
    assert len(set(batches[0])) == 8


def test_an_epoch_shows_every_prompt_once(small):
    trainer = Trainer(config(), mixture=small)
    per_epoch = len(small.pool) // 8
    seen = [p.id for step in range(1, per_epoch + 1) for p in trainer.batch(step)]
    assert len(set(seen)) == len(seen) == per_epoch * 8


def test_learning_raises_success(mixture, tmp_path):
    """Not a benchmark: 30 steps on eight prompts of middling difficulty must help on them."""
    trainer = Trainer(config(planner="uniform", learning_rate=1e-3), mixture=mixture)
    p = trainer.lab.success_probability(mixture.pool)
    middling = [mixture.pool[i] for i in np.flatnonzero((p > 0.15) & (p < 0.5))[:8]]
    trainer.mixture = Mixture(tuple(middling), (), ())
    before = trainer.lab.success_probability(middling).mean()
    for step in range(1, 31):
        trainer.step(step)
    assert trainer.lab.success_probability(middling).mean() > before + 0.1


def test_plain_gradient_descent_steps_along_the_gradient(small, tmp_path):
    """One step is the clipped gradient times the learning rate; a resumed run is the same to the byte."""
    settings = config(planner="uniform", optimizer="sgd", learning_rate=0.5, clip_norm=0.1)
    trainer = Trainer(settings, mixture=small)
    before = [p.detach().clone() for p in trainer.lab.policy.parameters()]
    assert trainer.step(1)[0]["gradient_norm"] > 0.1
    moved = [(new - old).detach() for new, old in zip(trainer.lab.policy.parameters(), before, strict=True)]
    assert torch.sqrt(sum((m**2).sum() for m in moved)).item() == pytest.approx(0.5 * 0.1, rel=1e-4)
    run(tmp_path / "whole", settings, small)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", settings, small, 3)
    run(tmp_path / "killed", settings, small)
    assert_same_bytes(tmp_path / "whole", tmp_path / "killed")


def test_an_objective_that_foresees_adams_step_refuses_another(small):
    with pytest.raises(ConfigError, match="foresees the step of AdamW"):
        Trainer(config(planner="uniform", objective=("capo",), optimizer="sgd"), mixture=small)


def test_rows_without_advantage_do_not_change_the_gradient(small):
    """The update leaves groups with equal rewards out; the gradient equals that of the loss on all rows."""
    trainer = Trainer(config(planner="uniform"), mixture=small)
    problems = trainer.batch(1)
    rollouts = trainer.lab.rollouts(problems, np.full(8, 6), torch.Generator().manual_seed(0))
    rewards = torch.from_numpy(rollouts.rewards_N)
    groups = [rewards[rollouts.group_N == q] for q in range(8)]
    assert any(g.std() == 0 for g in groups)
    log_probs = trainer.lab.log_probs(problems, rollouts.group_N, rollouts.tokens_NT, rollouts.mask_NT).sum(1)
    expected_loss = torch.zeros(())
    for q, g in enumerate(groups):
        advantages = (g - g.mean()) * 6 / 5
        expected_loss = expected_loss - (advantages * log_probs[rollouts.group_N == q]).mean() / 8
    expected = torch.autograd.grad(expected_loss, list(trainer.lab.policy.parameters()))
    norm = torch.sqrt(sum((g**2).sum() for g in expected)).item()
    visit = Visit(1, tuple(problems), rollouts, 0)
    assert trainer.learn(visit, trainer.planner.ask([p.id for p in problems]))["gradient_norm"] == pytest.approx(
        norm, rel=1e-4
    )


def test_a_directory_is_never_overwritten(tmp_path):
    RunDirectory.create(tmp_path, config())
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        RunDirectory.create(tmp_path, config())


def test_resuming_needs_a_run_and_keeps_its_settings(tmp_path):
    with pytest.raises(RunDirectoryError, match="no run"):
        RunDirectory.resume(tmp_path, config())
    RunDirectory.create(tmp_path, config(seed=1))
    with pytest.raises(ConfigError, match="seed"):
        RunDirectory.resume(tmp_path, config(seed=2))
    assert RunDirectory.resume(tmp_path, config(seed=1, steps=9)).path == tmp_path
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 9


def test_a_finished_run_is_not_shortened(tmp_path, small):
    run(tmp_path / "run", config(steps=4), small)
    with pytest.raises(ConfigError, match="already past"):
        RunDirectory.resume(tmp_path / "run", config(steps=3))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 4


def test_a_batch_larger_than_the_pool_is_refused(small):
    with pytest.raises(ConfigError, match=f"at most {len(small.pool)}"):
        Trainer(config(prompts_per_step=len(small.pool) + 1), mixture=small)


@pytest.fixture
def finished(tmp_path, small):
    run(tmp_path / "run", config(steps=2, planner="uniform"), small)
    return tmp_path / "run"


def test_a_truncated_checkpoint_is_named_and_the_logs_are_left_alone(finished):
    before = (finished / "metrics.jsonl").read_bytes()
    checkpoint = finished / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(RunDirectoryError, match=r"checkpoint\.safetensors is damaged"):
        RunDirectory.resume(finished, config(steps=2, planner="uniform"))
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_deleted_checkpoint_repeats_the_run(finished, small):
    before = (finished / "metrics.jsonl").read_bytes()
    (finished / "checkpoint.safetensors").unlink()
    run(finished, config(steps=2, planner="uniform"), small)
    assert (finished / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: None, "no line of step 2"),
        (lambda text: text[: text.index(b'"step": 2')], "no line of step 2"),
        (lambda text: b"\0\0\n" + text, "line 1"),
        (lambda text: b'{"stop": 1}\n' + text, "line 1: KeyError"),
    ],
)
@pytest.mark.parametrize("log", ["metrics.jsonl", "rollouts.jsonl"])
def test_a_lost_or_damaged_log_is_named(finished, log, damage, said):
    damaged = damage((finished / log).read_bytes())
    if damaged is None:
        (finished / log).unlink()
    else:
        (finished / log).write_bytes(damaged)
    with pytest.raises(RunDirectoryError, match=said):
        RunDirectory(finished).load_checkpoint()


def test_a_kill_may_cut_a_character_in_two(tmp_path):
    (tmp_path / "log").write_bytes('{"step": 1, "x": "\u2028ä"}\n'.encode() + '{"x": "ä'.encode()[:-1])
    assert read_log(tmp_path / "log") == [{"step": 1, "x": "\u2028ä"}]


def test_a_belief_beside_a_token_mean_is_refused(small):
    with pytest.raises(ConfigError, match="biased where the loss divides"):
        Trainer(
            TrainConfig(planner="joint", prompts_per_step=4, candidate_prompts=16, aggregation="token_mean"),
            mixture=small,
        )
