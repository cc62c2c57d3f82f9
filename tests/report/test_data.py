"""Reading run directories and grouping them."""

import pytest
from report_rows import evaluation

from allotment.errors import RunDirectoryError
from allotment.registry import PLANNERS
from allotment.report.data import read_run, read_study


def labels(study):
    return [arm.label for arm in study.arms]


def test_seeds_of_one_planner_make_one_arm_and_uniform_stands_first(write_run):
    study = read_study(
        [write_run("a", planner="vip", seed=1), write_run("b", seed=0), write_run("c", planner="uniform")]
    )
    assert labels(study) == ["uniform", "vip"]
    assert [run.config.seed for run in study.arms[1].runs] == [0, 1]
    assert study.differing == {}


def test_evaluating_more_often_is_the_same_arm(write_run):
    study = read_study([write_run("a", seed=0), write_run("b", seed=1, evaluate_every=5)])
    assert labels(study) == ["vip"]


def test_labels_name_the_settings_that_depart_from_most_runs(write_run):
    paths = [write_run("a", planner="uniform"), write_run("b", planner="uniform", rollouts_per_prompt=16, steps=10)]
    study = read_study([*reversed(paths), write_run("c", planner="uniform", seed=1)])
    assert labels(study) == ["uniform", "uniform, steps 10, rollouts per prompt 16"]
    assert study.differing == {"steps": [20, 10], "rollouts_per_prompt": [8, 16]}


def test_a_directory_without_a_run_says_what_to_do(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"no run to read[\s\S]*fix: +check the path"):
        read_study([tmp_path])


def test_no_directory_at_all_says_what_to_do():
    with pytest.raises(RunDirectoryError, match=r"fix: +name a run directory"):
        read_study([])


@pytest.mark.parametrize("log", ["metrics.jsonl", "rollouts.jsonl", "timing.jsonl"])
def test_a_truncated_last_line_is_left_out_and_named(write_run, log):
    path = write_run("a")
    before = read_run(path)
    with open(path / log, "a") as file:
        file.write('{"step": 21, "pool_succ')
    run = read_run(path)
    assert run.cut_logs == (log,)
    assert (run.metrics, run.rollouts, run.timing) == (before.metrics, before.rollouts, before.timing)


def test_damage_before_the_last_line_is_an_error_that_names_the_file(write_run):
    path = write_run("a")
    (path / "metrics.jsonl").write_text('{"step": 0\n{"step": 1}\n')
    with pytest.raises(RunDirectoryError, match=r"metrics.jsonl is damaged[\s\S]*fix: "):
        read_run(path)


def test_a_run_killed_before_its_first_evaluation_has_no_step(write_run):
    (arm,) = read_study([write_run("a", metrics=[])]).arms
    assert (arm.step, arm.counted, arm.runs[0].last_step) == (None, (), 0)


def test_missing_logs_read_as_empty(write_run):
    path = write_run("a")
    for log in ("metrics.jsonl", "rollouts.jsonl", "timing.jsonl"):
        (path / log).unlink()
    run = read_run(path)
    assert (run.metrics, run.rollouts, run.timing, run.cut_logs) == ([], [], [], ())


def test_the_same_directory_twice_counts_once(write_run):
    path = write_run("a")
    study = read_study([path, path.parent / "a" / ".." / "a", path])
    assert len(study.runs) == 1
    assert "more than once" in study.repeated[0]


def test_a_copy_of_a_run_is_no_second_seed_and_the_longer_one_stays(write_run):
    short, long = write_run("short", held_out=(0.1, 0.2)), write_run("long")
    study = read_study([short, long])
    assert [run.path for run in study.runs] == [long]
    assert f"{short} has the same configuration and seed as {long}" in study.repeated[0]


def test_finished_runs_alone_are_counted(write_run):
    (arm,) = read_study([write_run("a", seed=0), write_run("b", seed=1, held_out=(0.1, 0.2))]).arms
    assert [run.config.seed for run in arm.counted] == [0]
    assert arm.step == 20


def test_without_a_finished_run_the_last_common_step_is_taken(write_run):
    metrics = [evaluation(step, 0.5, 0.5) for step in (0, 5, 10, 15)]
    (arm,) = read_study([write_run("a", seed=0, held_out=(0.1, 0.2)), write_run("b", seed=1, metrics=metrics)]).arms
    assert arm.steps == [0, 10]


def test_every_planner_that_can_be_trained_has_its_place(write_run):
    names = PLANNERS.built_in
    study = read_study([write_run(name, planner=name) for name in reversed(names)])
    assert labels(study) == ["uniform", *(name for name in names if name != "uniform")]
