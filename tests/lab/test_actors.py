import json

import pytest
import torch

from allotment.errors import ConfigError
from allotment.lab.actors import rounded
from allotment.lab.config import TrainConfig
from allotment.lab.train import Trainer
from allotment.run_logs.directory import RunDirectory


def config(**changes):
    given = {"steps": 5, "prompts_per_step": 8, "evaluate_every": 5, "checkpoint_every": 2, "planner": "uniform"}
    return TrainConfig(**given | {"regime": "short", "learning_rate": 1e-3} | changes)


def weights(lab):
    return torch.cat([p.detach().flatten() for p in lab.policy.parameters()])


def run(path, settings, mixture, stop_after=None):
    def on_step(row):
        if row["step"] == stop_after:
            raise KeyboardInterrupt

    directory = RunDirectory.resume(path, settings) if path.exists() else RunDirectory.create(path, settings)
    trainer = Trainer(settings, mixture=mixture)
    trainer.run(directory, on_step)
    return trainer


@pytest.mark.parametrize(
    ("actor", "settings"),
    [("stale", {"lag": 0}), ("quantised", {"bits": 32}), ("quantised", {"bits": 32, "per": "tensor"})],
)
def test_an_actor_that_does_not_lag_is_the_current_one_bit_for_bit(tmp_path, small, actor, settings):
    run(tmp_path / "current", config(), small)
    run(tmp_path / "actor", config(actor=actor, actor_settings=settings), small)
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        assert (tmp_path / "current" / name).read_bytes() == (tmp_path / "actor" / name).read_bytes()


def test_a_stale_actor_is_the_policy_of_that_many_steps_ago(small):
    trainer = Trainer(config(actor="stale", actor_settings={"lag": 3}), mixture=small)
    past = [weights(trainer.lab)]
    for step in range(1, 8):
        assert torch.equal(weights(trainer.actor.lab()), past[max(0, step - 4)])
        trainer.step(step)
        past.append(weights(trainer.lab))
    assert not torch.equal(past[0], past[-1])


def test_rollouts_carry_the_log_probabilities_of_the_actor(small):
    trainer = Trainer(config(actor="quantised", actor_settings={"bits": 3}), mixture=small)
    problems, counts_Q = trainer.batch(1), [4] * 8
    rollouts = trainer.generate(problems, counts_Q, torch.Generator().manual_seed(0))
    given = (problems, rollouts.group_N, rollouts.tokens_NT, rollouts.mask_NT)
    with torch.no_grad():
        of_actor, of_trained = trainer.actor.lab().log_probs(*given), trainer.lab.log_probs(*given)
    logged_NT = torch.where(rollouts.mask_NT, rollouts.log_probs_NT, 0.0)
    torch.testing.assert_close(logged_NT, of_actor, atol=1e-4, rtol=0)
    assert (logged_NT - of_trained).abs().max() > 0.05


@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_keeps_to_its_values_and_errs_by_half_a_spacing(bits, per_row):
    weight = torch.randn(7, 50, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    largest = weight.abs().amax(1, keepdim=True) if per_row else weight.abs().max()
    spacing = largest / (2 ** (bits - 1) - 1)
    got = rounded(weight, bits, per_row=per_row)
    assert ((got - weight).abs() <= spacing / 2 + 1e-12).all()
    for row in got if per_row else [got]:
        assert len(row.unique()) <= 2**bits - 1
    torch.testing.assert_close(got.abs().max(), weight.abs().max())  # the largest weight stays
    assert torch.equal(rounded(torch.zeros(2, 3), bits, per_row=per_row), torch.zeros(2, 3))


def test_a_round_is_drawn_by_the_policy_of_its_start(small):
    trainer = Trainer(config(actor="rounds", actor_settings={"steps": 2}), mixture=small)
    drawn, trained = [], []
    for step in range(1, 6):
        trained.append(trainer.lab.policy.head.weight.detach().clone())
        drawn.append(trainer.actor.lab().policy.head.weight.detach().clone())
        trainer.step(step)
    assert all(torch.equal(drawn[i], trained[i - i % 2]) for i in range(5))
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("stop_after", [1, 4])
@pytest.mark.parametrize(
    ("actor", "settings"), [("stale", {"lag": 2}), ("rounds", {"steps": 2}), ("quantised", {"bits": 4})]
)
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, small, actor, settings, stop_after):
    settings = config(actor=actor, actor_settings=settings, updates=2)
    run(tmp_path / "whole", settings, small)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", settings, small, stop_after)
    run(tmp_path / "killed", settings, small)
    for name in ("metrics.jsonl", "rollouts.jsonl", "checkpoint.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["actor"] == actor


@pytest.mark.parametrize(
    ("actor", "settings", "said"),
    [
        ("stale", {"lag": -1}, "lag >= 0"),
        ("stale", {"bits": 4}, "bits"),
        ("rounds", {"steps": 0}, "steps >= 1"),
        ("quantised", {"bits": 1}, "2 to 32"),
        ("quantised", {"per": "column"}, "row or tensor"),
    ],
)
def test_settings_that_no_actor_has_are_refused(small, actor, settings, said):
    with pytest.raises(ConfigError, match=said):
        Trainer(config(actor=actor, actor_settings=settings), mixture=small)
