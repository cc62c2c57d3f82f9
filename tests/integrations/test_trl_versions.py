"""What must not depend on the version of TRL: ``make test-trl VERSION=...`` runs these tests with an older one."""

import math

import pytest
from trl_cases import OURS, expected_advantages, model, recording, sometimes_none, tokenizer, train


@pytest.mark.parametrize(("kind", "beta"), [("grpo", 0.0), ("rloo", 0.0), ("rloo", 1e-7)])
def test_a_rollout_without_a_reward_is_left_out(kind, beta, tmp_path):
    """With KL, RLOO's advantages come from TRL's own, which before 1.6 count a missing reward as 0."""
    model().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    trainer, config = OURS[kind]
    of = {"model": str(tmp_path / "model")}
    made = train(recording(trainer), config, tmp_path, of=of, beta=beta, rewards=sometimes_none)
    for batch in made.batches:
        rewards = [reward for (reward,) in batch.rewards]
        assert any(map(math.isnan, rewards))
        assert batch.advantages == pytest.approx(expected_advantages(rewards, batch.prompts, kind=kind), abs=2e-5)
