"""``planner="reward-variance"`` by name in TRL, without embeddings, on rewards of any size."""

from collections import Counter

from trl_cases import OURS, make, recording

WIDE = {8, 9, 10, 11}


def spread(completions, easy, **_):
    """A reward whose deviation within a prompt is 60 times as large for the last four prompts of the twelve."""
    scale = [3.0 if e // 2 in WIDE else 0.05 for e in easy]
    return [-2.0 + s * (sum(map(ord, c)) % 7) for c, s in zip(completions, scale, strict=True)]


def test_trl_allocates_by_the_variance_of_real_valued_rewards(tmp_path):
    trainer, config = OURS["grpo"]
    settings = {"planner": "reward-variance", "per_device_train_batch_size": 48, "scale_rewards": "none"}
    trainer = make(recording(trainer), config, tmp_path, rewards=spread, max_steps=3, **settings)
    trainer.train()
    counts = [Counter(row["easy"] // 2 for row in batch.inputs) for batch in trainer.batches]
    assert set(counts[0].values()) == {4}
    for later in counts[1:]:
        assert sum(later.values()) == 48
        wide, narrow = ([n for prompt, n in later.items() if (prompt in WIDE) == kind] for kind in (True, False))
        assert min(wide) > max(narrow) == 3
