import pytest
import torch
from lab_runs import run

from allotment.errors import ConfigError
from allotment.lab.checkpoint import load_lab
from allotment.lab.config import TrainConfig
from allotment.lab.train import Trainer
from allotment.methods.objectives.capo import CAPO, adam_displacement

INFINITE = {"tau_policy": float("inf"), "tau_objective": float("inf")}


def config(settings=None, **changes):
    given = {"steps": 4, "prompts_per_step": 8, "evaluate_every": 4, "checkpoint_every": 2, "planner": "uniform"}
    objective = {} if settings is None else {"objective": ("capo",), "objective_settings": {"capo": settings}}
    return TrainConfig(**given | {"regime": "short", "learning_rate": 1e-3} | objective | changes)


@pytest.mark.parametrize("changes", [{}, {"updates": 2, "planner": "vip", "regime": "scratchpad"}])
@pytest.mark.parametrize("settings", [INFINITE, {**INFINITE, "denominator": "kept"}])
def test_infinite_thresholds_are_the_plain_run(tmp_path, small, settings, changes):
    plain, plain_weights = run(tmp_path / "plain", config(**changes), small)
    ours, our_weights = run(tmp_path / "ours", config(settings, **changes), small)
    assert torch.equal(our_weights, plain_weights)
    for line, expected in zip(ours, plain, strict=True):
        assert {name: line[name] for name in expected} == expected
        assert line.get("capo_rejected", 0) == 0
    assert (tmp_path / "plain" / "rollouts.jsonl").read_bytes() == (tmp_path / "ours" / "rollouts.jsonl").read_bytes()


def test_the_predicted_step_is_the_one_the_optimiser_makes(small):
    """A batch of one token: the logits move as predicted, but for weight decay, which the model leaves out."""
    trainer = Trainer(config(INFINITE, clip_norm=1e9), load_lab("short"), small)
    for step in (1, 2, 3):
        trainer.step(step)
    problems = trainer.batch(4)
    rollouts = trainer.generate(problems, [1] * 8, torch.Generator().manual_seed(0))
    one = rollouts.take(torch.arange(8) == 5)
    record = trainer.learner._record(problems, one, torch.tensor([-0.7]), None)
    hidden_MH, token = record.hidden_NTH[:, 0], one.tokens_NT[:, 0]
    before_VH = record.head.weight_VH.clone()
    pi_V = (before_VH @ hidden_MH[0]).softmax(-1)
    v_V = torch.nn.functional.one_hot(token[0], len(pi_V)) - pi_V
    rows_V = torch.arange(len(pi_V))
    predicted_V = adam_displacement(-0.7 * v_V, rows_V, hidden_MH, torch.zeros_like(rows_V), record.head)
    weights_NT = torch.zeros_like(record.log_probs_NT.detach())
    weights_NT[0, 0] = 1.0
    trainer.update(problems, one, torch.tensor([-0.7]), weights_NT)
    decay = 1 - 1e-3 * trainer.learner.optimizer.param_groups[0]["weight_decay"]
    moved_V = (trainer.lab.policy.head.weight.detach() - decay * before_VH) @ hidden_MH[0]
    torch.testing.assert_close(moved_V, 1e-3 * predicted_V, atol=1e-6, rtol=1e-3)
    assert moved_V.abs().max() > 1e-3


def test_rejected_tokens_have_no_gradient_and_keep_their_place_in_the_denominator(small):
    trainer = Trainer(config({"tau_policy": 1e-4, "tau_objective": 1e-2}, clip_norm=1e9), load_lab("short"), small)
    for step in (1, 2):
        trainer.step(step)
    problems = trainer.batch(3)
    rollouts = trainer.generate(problems, [6] * 8, torch.Generator().manual_seed(0))
    advantages_N, weights_NT = trainer.advantages(rollouts), trainer.loss_weights(rollouts)
    live_N = advantages_N != 0
    record = trainer.learner._record(problems, rollouts.take(live_N), advantages_N[live_N], None)
    kept_NT = CAPO(1e-4, 1e-2).factors(record).values_NT
    assert 0.02 < (kept_NT == 0)[record.mask_NT].float().mean() < 0.98
    loss = -(weights_NT[live_N] * advantages_N[live_N, None] * kept_NT * record.log_probs_NT).sum()
    norm = sum(g.square().sum() for g in torch.autograd.grad(loss, list(trainer.lab.policy.parameters()))).sqrt()
    metrics = trainer.update(problems, rollouts, advantages_N, weights_NT)
    assert metrics["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert metrics["capo_rejected"] == pytest.approx((kept_NT == 0)[record.mask_NT].float().mean().item())


def test_a_run_that_rejects_everything_has_no_gradient(small):
    trainer = Trainer(config({"tau_policy": 0.0, "tau_objective": 0.0}), load_lab("short"), small)
    row, _ = trainer.step(1)
    assert row["capo_rejected"] > 0.5  # the others are certain but for a thousandth, and have hardly a gradient
    assert row["gradient_norm"] < 1e-3


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, small, stop_after):
    settings = config({"window": "one_sided"}, updates=2, planner="vip")
    run(tmp_path / "whole", settings, small)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", settings, small, stop_after)
    run(tmp_path / "killed", settings, small)
    for name in ("metrics.jsonl", "rollouts.jsonl", "checkpoint.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def test_beside_the_gate_of_divergence_ppo_both_shares_are_logged(small):
    settings = config({}, objective=("divergence-ppo", "capo"), updates=2, actor="stale")
    trainer = Trainer(settings, load_lab("short"), small)
    rows = [trainer.step(step)[0] for step in (1, 2)]
    assert all(0 <= row["gate_fraction"] <= 1 and 0 <= row["capo_rejected"] <= 1 for row in rows)
    assert all(row["capo_rejected"] >= row["capo_rejected_policy"] for row in rows)
    with pytest.raises(ConfigError, match="tau"):
        Trainer(config({"tau": 1.0}), load_lab("short"), small)
