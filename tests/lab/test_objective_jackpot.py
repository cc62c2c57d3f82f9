import pytest
import torch
from lab_runs import run

from allotment.errors import ConfigError
from allotment.lab.checkpoint import load_lab
from allotment.lab.config import TrainConfig
from allotment.lab.generation import seeded_generator
from allotment.lab.train import Trainer


def config(settings=None, **changes):
    given = {"steps": 4, "prompts_per_step": 8, "evaluate_every": 4, "checkpoint_every": 2, "planner": "uniform"}
    objective = {} if settings is None else {"objective": ("jackpot",), "objective_settings": {"jackpot": settings}}
    return TrainConfig(**given | {"regime": "short", "learning_rate": 3e-4} | objective | changes)


def assert_same_run(first, second):
    (rows, weights), (expected_rows, expected_weights) = first, second
    torch.testing.assert_close(weights, expected_weights, atol=1e-6, rtol=0)
    for row, expected in zip(rows, expected_rows, strict=True):
        for name in set(row) & set(expected):
            assert row[name] == pytest.approx(expected[name], abs=1e-6), name


UNTRUNCATED = {"lam": 0, "c1": float("inf"), "c2": float("inf")}


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"lam": 0}, {}),
        ({"lam": 0, "normaliser": "exact", "average": "accepted"}, {}),
        ({"lam": 0.5}, {}),  # on-policy nothing is rejected up to 1
        (UNTRUNCATED, {"updates": 3}),  # q is the old policy: both weights together are 1
        (UNTRUNCATED | {"target": "old"}, {"updates": 3}),
    ],
)
def test_lambda_to_zero_is_the_surrogate_run(tmp_path, small, float64, settings, changes):
    """Same parameters, rollouts and metrics after every step."""
    ppo = run(tmp_path / "ppo", config(**changes), small)
    ours = run(tmp_path / "ours", config(settings, **changes), small)
    assert_same_run(ours, ppo)
    assert all(row["jackpot_rejected"] == 0 for row in ours[0][1:])


def test_lambda_zero_under_another_actor_is_truncated_importance_sampling(tmp_path, small, float64):
    """The run equals that of divergence PPO with its gate open, whose weights are ratios to the rollout policy."""
    actor = {"actor": "quantised", "actor_settings": {"bits": 3}}
    open_gate = {"divergence-ppo": {"delta": float("inf"), "ratio_cap": 1.3}}
    weighed = config(objective=("divergence-ppo",), objective_settings=open_gate, **actor)
    expected = run(tmp_path / "expected", weighed, small)
    rows, weights = run(tmp_path / "ours", config({"lam": 0, "c1": 1.3}, **actor), small)
    torch.testing.assert_close(weights, expected[1], atol=1e-6, rtol=0)
    for row, other in zip(rows[1:], expected[0][1:], strict=True):
        assert row["gradient_norm"] == pytest.approx(other["gradient_norm"], abs=1e-6)
        assert row["jackpot_truncated"] == pytest.approx(other["capped_fraction"], abs=1e-6)
        assert row["jackpot_truncated"] > 0


@pytest.mark.parametrize("actor", ["quantised", "small"])
@pytest.mark.parametrize("rate", [0.7, 0.95])
def test_the_rate_is_hit_and_the_divergence_falls(tmp_path, mixture, actor, rate):
    settings = config({"rate": rate, "normaliser": "exact"}, actor=actor, prompts_per_step=32, regime="scratchpad")
    rows = [Trainer(settings, load_lab("scratchpad"), mixture).step(step)[0] for step in (1, 2)]
    for row in rows:
        assert row["jackpot_acceptance"] == pytest.approx(rate, abs=1e-4)
        assert 1 - row["jackpot_rejected"] == pytest.approx(rate, abs=0.03)
        assert row["jackpot_kl_after"] < 0.8 * row["jackpot_kl_before"]
        assert row["jackpot_mean_factor"] == pytest.approx(1, abs=0.12)


def test_random_numbers_are_of_seed_and_step_and_do_not_disturb_the_rollouts(small):
    trainer, plain = Trainer(config({}), load_lab("short"), small), Trainer(config(), load_lab("short"), small)
    problems, counts_Q = trainer.batch(1), [4] * 8
    first, again, other = (trainer.generate(problems, counts_Q, seeded_generator(0, step)) for step in (1, 1, 2))
    assert torch.equal(first.uniforms_NT, again.uniforms_NT)
    assert not torch.equal(first.uniforms_NT, other.uniforms_NT)
    without = plain.generate(problems, counts_Q, seeded_generator(0, 1))
    assert torch.equal(first.tokens_NT, without.tokens_NT)
    assert without.uniforms_NT is None
    kept_N = torch.arange(32) % 3 == 0
    assert torch.equal(first.take(kept_N).uniforms_NT, first.uniforms_NT[kept_N])  # they stay with their tokens


def test_every_update_of_a_step_decides_by_the_same_numbers(small, monkeypatch):
    trainer, seen = Trainer(config({}, updates=3, actor="quantised"), load_lab("short"), small), []
    made = trainer.learner._record

    def spy(*given):
        seen.append(made(*given))
        return seen[-1]

    monkeypatch.setattr(trainer.learner, "_record", spy)
    trainer.step(1)
    assert len(seen) == 3
    assert all(torch.equal(record.uniforms_NT, seen[0].uniforms_NT) for record in seen)
    assert not torch.equal(seen[0].log_probs_NT, seen[2].log_probs_NT)


def test_a_rejected_token_keeps_its_place_in_the_denominator(small):
    """The gradient is that of the sum of weights 1 / (Q n) over all tokens, times the factors."""
    trainer = Trainer(config({"rate": 0.6}, actor="quantised", actor_settings={"bits": 3}), load_lab("short"), small)
    problems = trainer.batch(1)
    rollouts = trainer.generate(problems, [6] * 8, torch.Generator().manual_seed(0))
    advantages_N, weights_NT = trainer.advantages(rollouts), trainer.loss_weights(rollouts)
    live_N = advantages_N != 0
    kept, advantages = rollouts.take(live_N), advantages_N[live_N]
    log_p_NT = trainer.lab.log_probs(problems, kept.group_N, kept.tokens_NT, kept.mask_NT)
    factors = trainer.learner.objective.gates["jackpot"].factors(
        trainer.learner._record(problems, kept, advantages, None)
    )
    assert (factors.values_NT[kept.mask_NT] == 0).float().mean() == pytest.approx(0.4, abs=0.12)
    assert torch.equal(weights_NT, rollouts.mask_NT / 48)
    loss = -(advantages[:, None] * factors.values_NT * log_p_NT / 48).sum()
    norm = sum(g.square().sum() for g in torch.autograd.grad(loss, list(trainer.lab.policy.parameters()))).sqrt()
    metrics = trainer.update(problems, rollouts, advantages_N, weights_NT)
    assert metrics["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, small, stop_after):
    settings = config({"rate": 0.8, "normaliser": "top_k"}, updates=2, actor="small", planner="vip")
    run(tmp_path / "whole", settings, small)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", settings, small, stop_after)
    run(tmp_path / "killed", settings, small)
    for name in ("metrics.jsonl", "rollouts.jsonl", "checkpoint.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def test_two_corrections_for_the_actor_are_refused_and_one_stands_beside_a_gate(tmp_path, small):
    both = {"objective": ("gdpo", "divergence-ppo", "jackpot"), "actor": "small", "planner": "vip"}
    with pytest.raises(ConfigError, match=r"both weigh[\s\S]*anchor"):
        Trainer(config(**both), load_lab("short"), small)
    settings = {"divergence-ppo": {"anchor": "old"}, "jackpot": {"rate": 0.9}}
    rewards = {"rewards": ("correctness", "length", "format"), "length_target": 4}
    rows, _ = run(tmp_path / "run", config(**both, **rewards, objective_settings=settings, updates=2), small)
    assert all(row["jackpot_acceptance"] == pytest.approx(0.9, abs=1e-4) for row in rows[1:])
    assert all(0 <= row["gate_fraction"] < 0.5 for row in rows[1:])


def test_settings_that_it_does_not_have_are_refused(small):
    for settings, said in (({"lambda": 1}, "lambda"), ({"rate": 0}, "rate"), ({"average": "accepted"}, "normaliser")):
        with pytest.raises(ConfigError, match=said):
            Trainer(config(settings), load_lab("short"), small)
