"""Which runs a comparison is made of, and which of them are there."""

import pytest

from allotment.compare import Comparison, finished_runs
from allotment.errors import ConfigError
from allotment.lab.config import TrainConfig
from allotment.trainers.trl.config import TRLTrainConfig

SETTINGS = TrainConfig(steps=4, prompts_per_step=4)


def comparison(out, settings=SETTINGS, planners=("uniform", "vip"), budgets=(8,), seeds=(3, 4), yardsticks=True):
    return Comparison(out, settings, planners, budgets, seeds, yardsticks)


def test_names_and_settings(tmp_path):
    jobs = {job.path.name: job.config for job in comparison(tmp_path).jobs}
    each = ("uniform", "vip", "oracle", "uniform-b16")
    assert list(jobs) == [f"{name}-s{seed}" for seed in (3, 4) for name in each]
    assert jobs["vip-s4"] == SETTINGS.model_copy(update={"planner": "vip", "seed": 4})
    assert jobs["uniform-b16-s3"].rollouts_per_prompt == 16


def test_a_planner_with_a_selector(tmp_path):
    jobs = {job.path.name: job.config for job in comparison(tmp_path, planners=("vip", "vip+pods")).jobs}
    assert (jobs["vip-s3"].select, jobs["vip+pods-s3"].select) == (None, "pods")
    assert jobs["vip+pods-s3"].planner == "vip"


def test_a_run_that_two_blocks_share_is_made_once(tmp_path):
    names = [job.path.name for job in comparison(tmp_path, budgets=(8, 16), seeds=(0,)).jobs]
    each = ("uniform", "uniform-b16", "uniform-b32", "vip", "vip-b16", "oracle", "oracle-b16")
    assert sorted(names) == sorted(f"{name}-s0" for name in each)


def test_without_yardsticks_and_with_an_oracle_that_is_asked_for(tmp_path):
    names = [j.path.name for j in comparison(tmp_path, planners=("oracle",), seeds=(0,), yardsticks=False).jobs]
    assert names == ["uniform-s0", "oracle-s0"]
    roles = [(e.label, e.role) for e in comparison(tmp_path, planners=("oracle",)).block(8)]
    assert roles == [("uniform", "reference"), ("oracle", "planner"), ("uniform, 2x budget", "yardstick")]


def test_trl_has_no_oracle(tmp_path):
    settings = TRLTrainConfig(model="m", dataset="d")
    assert [e.label for e in comparison(tmp_path, settings).block(8)] == ["uniform", "vip", "uniform, 2x budget"]


def test_twice_the_budget_may_pass_the_upper_bound(tmp_path):
    jobs = {
        job.path.name: job.config for job in comparison(tmp_path, SETTINGS.model_copy(update={"bounds": (3, 10)})).jobs
    }
    assert (jobs["uniform-b16-s3"].upper, jobs["vip-s3"].upper) == (16, 10)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"planners": ()}, "none"),
        ({"planners": ("vip", "vip")}, "vip vip"),
        ({"budgets": (8, 8)}, "--budgets"),
        ({"budgets": (64,)}, "64"),
        ({"planners": ("vipp",)}, "planner"),
        ({"planners": ("vip+pod",)}, "select"),
    ],
)
def test_what_cannot_be_compared(tmp_path, changed, said):
    with pytest.raises(ConfigError, match=said):
        _ = comparison(tmp_path, **changed).jobs


def test_a_run_with_other_settings_is_refused_and_one_with_fewer_steps_continued(tmp_path):
    jobs = comparison(tmp_path, seeds=(0,)).jobs
    for job in jobs:
        job.path.mkdir()
        (job.path / "config.json").write_text(job.config.to_json())
    assert finished_runs(jobs) == {}
    assert finished_runs(comparison(tmp_path, SETTINGS.model_copy(update={"steps": 5}), seeds=(0,)).jobs) == {}
    for changed in ({"learning_rate": 1e-3}, {"steps": 3}):
        other = comparison(tmp_path, SETTINGS.model_copy(update=changed), seeds=(0,)).jobs
        with pytest.raises(ConfigError, match=next(iter(changed))) as raised:
            finished_runs(other)
        assert str(jobs[0].path) in str(raised.value)
