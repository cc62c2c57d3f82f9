import pytest
import torch
from lab_runs import run

from allotment.errors import ConfigError
from allotment.lab.checkpoint import load_lab
from allotment.lab.config import TrainConfig
from allotment.lab.train import Trainer


def config(settings=None, **changes):
    given = {"steps": 4, "prompts_per_step": 8, "evaluate_every": 4, "checkpoint_every": 2, "planner": "uniform"}
    objective = {} if settings is None else {"objective": ("divergence-ppo",)}
    objective |= {"objective_settings": {"divergence-ppo": settings}} if settings else {}
    return TrainConfig(**given | {"regime": "short", "learning_rate": 3e-4} | objective | changes)


INFINITE = {"delta": float("inf")}


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        (INFINITE, {}),  # one update on-policy: no weight, no gate
        ({"gate": "topk_kl"}, {}),
        ({"gate": "ratio", "anchor": "old", "ratio_cap": float("inf")}, {"updates": 3}),  # PPO, its clip at work
        ({"gate": "ratio", "ratio_cap": float("inf")}, {"updates": 3, "learning_rate": 1e-3}),
    ],
)
def test_limits_are_the_surrogate_run(tmp_path, small, float64, settings, changes):
    """Same parameters and same rollouts after every step; the ratio's loss has another value where it is clipped."""
    ppo, ppo_weights = run(tmp_path / "ppo", config(**changes), small)
    ours, our_weights = run(tmp_path / "ours", config(settings, **changes), small)
    torch.testing.assert_close(our_weights, ppo_weights, atol=1e-6, rtol=0)
    for line, expected in zip(ours, ppo, strict=True):
        for name, value in expected.items():
            if name != "clip_fraction" and (name != "loss" or "updates" not in changes):
                assert line[name] == pytest.approx(value, abs=1e-6), name
    if "updates" in changes:
        assert any(line["clip_fraction"] > 0 for line in ppo[1:])
        shares = [line["gate_fraction"] for line in ours[1:]]
        assert shares == pytest.approx([line["clip_fraction"] for line in ppo[1:]], abs=1e-6)


@pytest.mark.parametrize("gate", ["binary_tv", "binary_kl", "topk_tv", "topk_kl", "ratio"])
def test_the_gate_opens_as_the_rollout_policy_nears_the_trained_one(small, gate):
    shares = []
    for bits in (2, 3, 4, 6, 8, 32):
        settings = config({"gate": gate}, actor="quantised", actor_settings={"bits": bits})
        row, _ = Trainer(settings, load_lab("short"), small).step(1)
        shares.append(row["gate_fraction"])
    assert shares[0] > 0.1
    assert shares[-2:] == [0, 0]
    assert min(shares[:2]) > shares[2] >= shares[3] >= shares[4]


def test_a_gate_of_infinite_width_weighs_by_the_ratio_to_the_actor(small):
    """The gradient of a mismatched batch is importance sampling against who drew it, not against the trainer's old."""
    settings = config({"delta": 1e9, "ratio_cap": 2.0}, actor="quantised", actor_settings={"bits": 3})
    trainer = Trainer(settings, load_lab("short"), small)
    problems = trainer.batch(1)
    rollouts = trainer.generate(problems, [6] * 8, torch.Generator().manual_seed(0))
    advantages_N, weights_NT = trainer.advantages(rollouts), trainer.loss_weights(rollouts)
    log_pi_NT = trainer.lab.log_probs(problems, rollouts.group_N, rollouts.tokens_NT, rollouts.mask_NT)
    ratio_NT = (log_pi_NT.detach() - torch.where(rollouts.mask_NT, rollouts.log_probs_NT, 0.0)).exp().clamp(max=2.0)
    loss = -(weights_NT * advantages_N[:, None] * ratio_NT * log_pi_NT).sum()
    norm = sum(g.square().sum() for g in torch.autograd.grad(loss, list(trainer.lab.policy.parameters()))).sqrt()
    metrics = trainer.update(problems, rollouts, advantages_N, weights_NT)
    assert metrics["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert metrics["capped_fraction"] > 0


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, small, stop_after):
    settings = config(
        {"gate": "topk_tv", "ratio_cap": float("inf")},
        updates=2,
        actor="stale",
        actor_settings={"lag": 2},
        planner="vip",
    )
    run(tmp_path / "whole", settings, small)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", settings, small, stop_after)
    run(tmp_path / "killed", settings, small)
    for name in ("metrics.jsonl", "rollouts.jsonl", "checkpoint.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def test_vip_gdpo_and_the_gate_in_one_run(tmp_path, small):
    settings = config(
        {},
        objective=("gdpo", "divergence-ppo"),
        rewards=("correctness", "length", "format"),
        length_target=4,
        planner="vip",
        updates=2,
        actor="quantised",
    )
    rows, _ = run(tmp_path / "run", settings, small)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert {row["budget"] for row in rows[1:]} == {settings.budget}
    assert 0 < max(row["gate_fraction"] for row in rows[1:]) < 0.5
    parts = [row["gate_fraction_positive"] + row["gate_fraction_negative"] for row in rows[1:]]
    assert parts == pytest.approx([row["gate_fraction"] for row in rows[1:]])


def test_settings_that_it_does_not_have_are_refused(small):
    for settings, said in (({"delt": 0.1}, "delt"), ({"gate": "topk_tv", "anchor": "old"}, "rollout policy alone")):
        with pytest.raises(ConfigError, match=said):
            Trainer(config(settings), load_lab("short"), small)
