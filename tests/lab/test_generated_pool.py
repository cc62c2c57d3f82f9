"""One pass over fresh prompts: ``TrainConfig(pool="generated")``."""

from collections import Counter

import numpy as np
import pytest
from lab_runs import run

from allotment.errors import ConfigError
from allotment.lab.config import TrainConfig
from allotment.lab.embeddings import standard_features
from allotment.lab.train import Trainer
from allotment.run_logs.files import read_log
from allotment.tasks.generated import LARGE_LEVELS, load_generated
from allotment.tasks.mixture import Mixture


@pytest.fixture(scope="module")
def generated():
    return load_generated()


@pytest.fixture(scope="module")
def few(generated):
    """640 prompts, 8 of them measured."""
    return Mixture(generated.pool[::43][:640], generated.held_out[::70], (), measured=generated.pool[::3500])


def config(**changes):
    return TrainConfig(**{"pool": "generated", "steps": 4, "prompts_per_step": 8, "checkpoint_every": 2, **changes})


def test_no_question_stands_twice_or_in_the_mixture(generated, mixture):
    known = {p.question for part in (mixture.pool, mixture.held_out, mixture.warm_start) for p in part}
    fresh = [p.question for p in (*generated.pool, *generated.held_out)]
    assert len(set(fresh)) == len(fresh)
    assert known.isdisjoint(fresh)
    assert len({p.id for p in (*generated.pool, *generated.held_out)}) == len(fresh)


def test_it_is_large_and_both_parts_have_the_same_levels_in_like_shares(generated):
    assert len(generated.pool) > 25_600  # a hundred steps of 256 candidates
    assert len(generated.held_out) > 400
    inside, outside = (Counter(p.level for p in part) for part in (generated.pool, generated.held_out))
    assert set(inside) == set(outside) == set(LARGE_LEVELS)
    for level in LARGE_LEVELS:
        assert inside[level] / len(generated.pool) == pytest.approx(outside[level] / len(generated.held_out), abs=0.01)
    assert set(generated.measured) < set(generated.pool)


def test_no_prompt_is_asked_for_twice(few):
    trainer = Trainer(config(planner="joint", candidate_prompts=128, steps=5), mixture=few)
    seen = [p.id for step in range(1, 6) for p in trainer.batch(step)]
    assert len(set(seen)) == len(seen) == 640


def test_batches_are_the_same_for_all_planners_and_others_for_another_seed(few):
    first, second, other = (
        [p.id for p in Trainer(config(planner=name, seed=seed), mixture=few).batch(3)]
        for name, seed in (("uniform", 0), ("vip", 0), ("vip", 1))
    )
    assert first == second
    assert set(first) != set(other)


def test_more_steps_than_one_pass_has_are_refused(few):
    Trainer(config(planner="uniform", steps=80), mixture=few)
    with pytest.raises(ConfigError, match="passed once") as caught:
        Trainer(config(planner="uniform", steps=81), mixture=few)
    assert "80 such steps" in str(caught.value)
    with pytest.raises(ConfigError, match="5 such steps"):
        Trainer(config(planner="joint", candidate_prompts=128, steps=6), mixture=few)


def test_the_mixture_may_be_passed_again(small):
    Trainer(TrainConfig(planner="uniform", prompts_per_step=8, steps=1000), mixture=small)


def test_it_is_not_of_countdown():
    with pytest.raises(ConfigError, match="scratchpad or short"):
        TrainConfig.from_values({"pool": "generated", "regime": "countdown"}, "the test")


@pytest.mark.parametrize("planner", ["joint", "vip"])
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, few, planner):
    settings = config(planner=planner, candidate_prompts=64 if planner == "joint" else None)
    run(tmp_path / "whole", settings, few)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", settings, few, 3)
    run(tmp_path / "killed", settings, few)
    for name in ("metrics.jsonl", "rollouts.jsonl", "checkpoint.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    visits = Counter(row["prompt_id"] for row in read_log(tmp_path / "whole" / "rollouts.jsonl"))
    assert max(visits.values()) == 1


def test_success_is_measured_on_a_part_of_the_pool(few, scratchpad):
    measured = Trainer(config(planner="uniform"), scratchpad, few).evaluate()
    assert measured["pool_success"] == pytest.approx(scratchpad.success_probability(few.measured).mean())
    assert measured["held_out_success"] == pytest.approx(scratchpad.success_probability(few.held_out).mean())


def test_texts_tell_the_levels_apart(generated):
    """The belief about a prompt never seen comes from what is counted in its text: levels must not look alike."""
    problems = generated.pool[::50]
    features_QF = standard_features(tuple(p.question for p in problems))
    np.testing.assert_allclose(features_QF.mean(axis=0), 0, atol=1e-12)
    levels = np.array([p.level for p in problems])
    squares_QQ = ((features_QF[:, None] - features_QF) ** 2).sum(-1)
    np.fill_diagonal(squares_QQ, np.inf)
    assert (levels[squares_QQ.argmin(axis=1)] == levels).mean() > 0.9
