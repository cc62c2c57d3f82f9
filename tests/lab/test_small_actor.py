import math

import pytest
import torch

from allotment.errors import ConfigError
from allotment.lab.actors import Learnt, SmallActor
from allotment.lab.checkpoint import load_lab, shipped_policy
from allotment.lab.config import TrainConfig
from allotment.lab.generation import Lab
from allotment.lab.regime import REGIMES
from allotment.lab.tokenizer import Tokenizer
from allotment.lab.train import Trainer
from allotment.run_logs.directory import RunDirectory


def config(settings=None, **changes):
    given = {"steps": 5, "prompts_per_step": 8, "evaluate_every": 5, "checkpoint_every": 2, "planner": "uniform"}
    return TrainConfig(**given | {"regime": "short", "actor": "small", "actor_settings": settings or {}} | changes)


def weights(lab):
    return torch.cat([p.detach().flatten() for p in lab.policy.parameters()])


def learnt_by(trainer):
    """A batch as it reaches the actor; the trained policy has not moved."""
    problems = trainer.batch(1)
    rollouts = trainer.generate(problems, [16] * 8, torch.Generator().manual_seed(0))
    return Learnt(problems, rollouts, trainer.advantages(rollouts), trainer.loss_weights(rollouts))


def divergence(trainer, learnt):
    rollouts = learnt.rollouts
    given = (learnt.problems, rollouts.group_N, rollouts.tokens_NT, rollouts.mask_NT)
    with torch.no_grad():
        log_p, log_q = (lab.outputs(*given).distribution_NTV for lab in (trainer.lab, trainer.actor.lab()))
    return (log_p.exp() * (log_p - log_q)).sum(-1)[rollouts.mask_NT].mean().item()


@pytest.mark.parametrize("regime", ["short", "scratchpad"])
def test_the_shipped_small_policies_are_small_and_have_learnt(mixture, regime):
    path = shipped_policy(regime, "small")
    assert path.stat().st_size < 150_000
    lab = load_lab(regime, path)
    assert (lab.policy.size.width, lab.policy.size.layers) == (32, 1)
    own, normal = (x.success_probability(mixture.pool).mean() for x in (lab, load_lab(regime)))
    assert 0.35 < own < normal


def test_rollouts_are_of_the_small_policy_and_carry_its_log_probabilities(small):
    trainer = Trainer(config(), mixture=small)
    rollouts, problems = learnt_by(trainer).rollouts, trainer.batch(1)
    given = (problems, rollouts.group_N, rollouts.tokens_NT, rollouts.mask_NT)
    with torch.no_grad():
        of_actor, of_trained = trainer.actor.lab().log_probs(*given), trainer.lab.log_probs(*given)
    logged_NT = torch.where(rollouts.mask_NT, rollouts.log_probs_NT, 0.0)
    torch.testing.assert_close(logged_NT, of_actor, atol=1e-4, rtol=0)
    assert (logged_NT - of_trained).abs().max() > 0.5


@pytest.mark.parametrize("distill", [0.0, 1.0, 7.0])
def test_its_gradient_is_that_of_both_terms(small, distill):
    """Direction of the gradient, computed here from log-probabilities; its length is cut to 1."""
    trainer = Trainer(config({"distill": distill}), mixture=small)
    learnt = learnt_by(trainer)
    rollouts = learnt.rollouts
    given = (learnt.problems, rollouts.group_N, rollouts.tokens_NT, rollouts.mask_NT)
    own, trained = trainer.actor.lab().outputs(*given), trainer.lab.outputs(*given).distribution_NTV.detach()
    cross_entropy_NT = -(trained.exp() * own.distribution_NTV).sum(-1)
    losses_NT = -learnt.advantages_N[:, None] * own.log_probs_NT + distill * cross_entropy_NT
    loss = (losses_NT * rollouts.mask_NT).sum() / 128
    parameters = list(trainer.actor.lab().policy.parameters())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    before, trained_before = divergence(trainer, learnt), weights(trainer.lab)
    metrics = trainer.actor.after_step(learnt)
    got = torch.cat([p.grad.flatten() for p in parameters])
    assert torch.cosine_similarity(got, expected, dim=0) > 0.9999
    assert metrics["actor_kl"] == pytest.approx(before, rel=1e-4)
    assert torch.equal(weights(trainer.lab), trained_before)
    assert all(p.grad is None for p in trainer.lab.policy.parameters())


def test_distillation_brings_it_nearer_to_the_trained_policy(small):
    trainer = Trainer(config({"distill": 10.0, "learning_rate": 3e-3}), mixture=small)
    learnt = learnt_by(trainer)
    before = divergence(trainer, learnt)
    for _ in range(20):
        trainer.actor.after_step(learnt)
    assert divergence(trainer, learnt) < 0.7 * before


def test_policy_gradient_raises_its_own_success(small):
    trainer = Trainer(config({"distill": 0.0, "learning_rate": 1e-3}), mixture=small)
    before = trainer.actor.lab().success_probability(trainer.batch(1)).mean()
    for _ in range(15):
        trainer.actor.after_step(learnt_by(trainer))
    assert trainer.actor.lab().success_probability(trainer.batch(1)).mean() > before + 0.03


def test_the_weight_for_late_rollouts_is_capped(small):
    """Rollouts logged by a policy that gave them less: each counts by its ratio, at most the cap."""
    losses = []
    for shift in (0.0, 0.5, 3.0):
        trainer = Trainer(config({"distill": 0.0, "weight_cap": 2.0}), mixture=small)
        learnt = learnt_by(trainer)
        learnt.rollouts.log_probs_NT.sub_(shift)
        losses.append(trainer.actor.after_step(learnt)["actor_loss"])
    assert abs(losses[0]) > 1e-3
    assert losses[1] / losses[0] == pytest.approx(math.exp(0.5), rel=1e-3)
    assert losses[2] / losses[0] == pytest.approx(2.0, rel=1e-3)


def test_without_a_learning_rate_it_stays_as_shipped(small):
    trainer = Trainer(config({"learning_rate": 0.0}), mixture=small)
    before = weights(trainer.actor.lab())
    trainer.step(1)
    assert torch.equal(weights(trainer.actor.lab()), before)
    learning = Trainer(config(), mixture=small)
    learning.step(1)
    assert not torch.equal(weights(learning.actor.lab()), before)
    assert torch.equal(weights(learning.lab), weights(trainer.lab))  # the trained policy does not see it in step 1


def run(path, settings, mixture, stop_after=None):
    def on_step(row):
        if row["step"] == stop_after:
            raise KeyboardInterrupt

    directory = RunDirectory.resume(path, settings) if path.exists() else RunDirectory.create(path, settings)
    Trainer(settings, mixture=mixture).run(directory, on_step)


@pytest.mark.parametrize("stop_after", [1, 4])
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, small, stop_after):
    settings = config({"learning_rate": 1e-3})
    run(tmp_path / "whole", settings, small)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", settings, small, stop_after)
    run(tmp_path / "killed", settings, small)
    for name in ("metrics.jsonl", "rollouts.jsonl", "checkpoint.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


@pytest.mark.parametrize("settings", [{"distill": -1}, {"learning_rate": -1e-3}, {"weight_cap": 0}, {"width": 32}])
def test_settings_that_it_does_not_have_are_refused(small, settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Trainer(config(settings), mixture=small)


def test_a_regime_without_a_small_policy_is_refused(short):
    other = Lab(short.policy, short.tokenizer, REGIMES["countdown"])
    with pytest.raises(ConfigError, match="scratchpad, short"):
        SmallActor(other)


def test_another_vocabulary_is_refused(short):
    other = Lab(short.policy, Tokenizer([*short.tokenizer.vocabulary, "€"]), short.regime)
    with pytest.raises(ConfigError, match="another vocabulary"):
        SmallActor(other)
