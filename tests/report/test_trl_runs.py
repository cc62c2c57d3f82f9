"""Folders of TRL runs that were started from Python: real ones, cut short, resumed, without checkpoints."""

import json
import shutil

import numpy as np
import pytest
from trl_folders import STATE, cut, trained

from allotment.errors import RunDirectoryError
from allotment.planning.making import make_planner
from allotment.registry import PLANNERS
from allotment.report import write_report
from allotment.report.data import read_run, read_study
from allotment.report.health import health
from allotment.report.summary import summarise
from allotment.run_logs.trl_folder import is_trl_folder, planner_name, read_trl_folder
from allotment.state import load_state, save_state


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder and the trainer of each planner, seed 42."""
    folder = tmp_path_factory.mktemp("trl")
    return {name: trained(folder / name, planner=name) for name in ("vip", "uniform")}


@pytest.fixture
def folder(made, tmp_path):
    """A copy of the folder of vip, to be spoiled."""
    return shutil.copytree(made["vip"][0], tmp_path / "run")


def test_figures_are_those_that_were_logged(made):
    path, trainer = made["vip"]
    run = read_run(path)
    rows = {row["step"]: row for row in run.metrics}
    assert list(rows) == list(range(7))
    for logged in (row for row in trainer.state.log_history if "loss" in row):
        row = rows[logged["step"]]
        for name in ("budget", "min_count", "max_count", "success", "realised_variance_ratio", "unscored"):
            assert row[name] == pytest.approx(logged[f"allotment/{name}"], abs=1e-5), name
        assert row["predicted_success"] == pytest.approx(logged["allotment/predicted_success"], abs=1e-5)
        assert row["loss"] == logged["loss"]
    assert rows[6]["rollouts_total"] == 96
    assert rows[6]["tokens_total"] == sum(row["tokens"] for row in run.rollouts)
    evaluated = {row["step"]: row["eval_reward"] for row in trainer.state.log_history if "eval_reward" in row}
    assert {step: row["held_out_success"] for step, row in run.evaluations.items()} == evaluated
    last = [row["successes"] / row["n"] for row in run.rollouts if row["step"] > 3]
    assert rows[6]["pool_success"] == pytest.approx(np.mean(last))
    assert len(run.timing) == 6


def test_settings_are_those_of_the_trainer(made):
    path, trainer = made["vip"]
    run = read_run(path)
    config, planner = run.config, trainer.planner
    assert (config.planner, config.estimator, config.seed) == ("vip", planner.estimator, planner.seed)
    assert (config.budget, config.limits, config.steps) == (16, planner.bounds, 6)
    assert (config.prompts_per_step, config.rollouts_per_prompt, config.learning_rate) == (4, 4, 1e-2)
    assert config.not_recorded == ()
    assert run.finished


def test_a_page_of_two_planners(made, tmp_path):
    runs = [path for path, _ in made.values()]
    text = write_report(runs, tmp_path / "report.html", tmp_path / "figures.json").read_text()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [run["planner"] for run in figures["runs"]] == ["uniform", "vip"]
    findings = {(check, arm): verdict for check, arm, verdict, _ in figures["health"]["rows"]}
    for check in ("Logs complete", "Budget conserved", "Counts within their bounds"):
        assert findings[check, "vip"] == findings[check, "uniform"] == "good"
    assert findings["Resumed or not", "vip"] == "unknown"
    assert "the mean reward of TRL" in text
    (row,) = [row for row in summarise(read_study(runs)) if row.arm.label == "vip"]
    ends = [read_run(made[name][0]).evaluations[6] for name in ("vip", "uniform")]
    for measure in ("pool_success", "held_out_success"):
        assert row.difference[measure].mean == pytest.approx(ends[0][measure] - ends[1][measure])


def test_without_a_checkpoint_what_is_not_known_is_said(folder, tmp_path):
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    run = read_run(folder)
    assert run.config.not_recorded == ("planner", "steps", "budget", "bounds", "estimator", "seed", "learning_rate")
    assert not run.finished
    assert [row["step"] for row in run.metrics] == list(range(7))
    assert "pool_success" in run.metrics[-1]
    verdicts = {check.title: check.verdict for check in health(read_study([folder]))}
    for title in ("Logs complete", "Budget conserved", "Counts within their bounds", "Steps of even time"):
        assert verdicts[title] == "unknown"
    text = write_report([folder], tmp_path / "report.html").read_text()
    assert "No run of run (planner not recorded) is known to have finished" in text
    assert "seed 0" not in text
    assert "not recorded: planner, steps, budget, bounds, estimator, seed, learning rate (no checkpoint says)" in text
    assert "no evaluation is logged" in text


def test_runs_of_which_nothing_is_known_are_no_pairs(made, folder, tmp_path):
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    rows = summarise(read_study([folder, made["uniform"][0]]))
    (row,) = [row for row in rows if not row.arm.is_uniform]
    assert row.difference == {"pool_success": None, "held_out_success": None}
    assert "no file says its planner, seed, learning rate" in row.reference.missing


@pytest.mark.parametrize("file", [STATE, "planner.safetensors"])
def test_a_checkpoint_that_is_cut_short_is_left_out_and_said(folder, file):
    cut(folder / "checkpoint-6" / file)
    read = read_trl_folder(folder)
    assert read.checkpoint.path.name == "checkpoint-4"
    notes = " ".join(read_run(folder).from_python.notes)
    assert f"damaged and left out: checkpoint-6/{STATE}" in notes
    assert "what TRL logged after step 4 is known at the next checkpoint" in notes
    assert read_run(folder).finished  # the rollouts say so


def test_only_whole_lines_count(folder):
    cut(folder / "rollouts.jsonl", 0.99)
    run = read_run(folder)
    assert run.cut_logs == ("rollouts.jsonl",)
    assert len(run.rollouts) == 23
    lines = (folder / "rollouts.jsonl").read_text().splitlines()
    (folder / "rollouts.jsonl").write_text("\n".join([lines[0], "{", *lines[1:]]) + "\n")
    with pytest.raises(RunDirectoryError, match="damaged"):
        read_run(folder)


def test_a_checkpoint_beyond_the_rollouts_is_of_a_run_that_was_given_up(folder):
    """As a run that was resumed from checkpoint-2 stands at its third step."""
    rows = [row for row in map(json.loads, (folder / "rollouts.jsonl").read_text().splitlines()) if row["step"] < 4]
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_trl_folder(folder).checkpoint.path.name == "checkpoint-2"
    assert not read_run(folder).finished


def test_a_run_that_was_really_resumed(folder):
    _, trainer = trained(folder, resume=str(folder / "checkpoint-2"), max_steps=8)
    run = read_run(folder)
    assert [row["step"] for row in run.metrics] == list(range(9))
    assert run.config.steps == trainer.state.max_steps == 8
    assert run.finished
    assert [row["loss"] for row in run.metrics[1:]] == [r["loss"] for r in trainer.state.log_history if "loss" in r]


def test_several_updates_to_a_generation(tmp_path):
    path, trainer = trained(tmp_path / "run", num_iterations=2, eval_steps=2)
    assert trainer.state.global_step == 6
    run = read_run(path)
    assert (run.last_step, run.config.steps, run.finished) == (3, 3, True)
    assert sorted(step for step, row in run.evaluations.items() if "held_out_success" in row) == [1, 2, 3]
    assert run.timing == []  # times of updates are none of steps


def test_rounds_of_preferences_have_a_planner_file_of_another_kind(folder):
    file = folder / "checkpoint-6" / "planner.safetensors"
    state = load_state(file, kind="trl-planner")
    save_state(file, {"rounds": 3, "planner": state["planner"]}, kind="trl-preferences")
    read = read_trl_folder(folder)
    assert (read.checkpoint.told, read.steps, read.planner) == (3, 3, "vip")


def test_without_evaluation_the_pool_has_a_course(tmp_path):
    path, _ = trained(tmp_path / "run", evaluated=False, max_steps=4)
    run = read_run(path)
    assert sorted(run.evaluations) == [1, 2, 3, 4]
    text = write_report([path], tmp_path / "report.html").read_text()
    assert "success on the pool" in text
    assert "no evaluation is logged: success is that of the training rollouts alone" in text


def test_a_model_saved_into_the_folder_does_not_hide_the_run(made, folder):
    made["vip"][1].save_model(str(folder))
    assert (folder / "config.json").exists()
    assert is_trl_folder(folder)
    assert read_run(folder).config.planner == "vip"


def test_rewards_that_are_no_share_of_successes_are_left_out(folder):
    state = json.loads((folder / "checkpoint-6" / STATE).read_text())
    for row in state["log_history"]:
        if "eval_reward" in row:
            row["eval_reward"] = 7.5
    (folder / "checkpoint-6" / STATE).write_text(json.dumps(state))
    run = read_run(folder)
    assert all("held_out_success" not in row for row in run.metrics)
    assert any("leave 0 to 1" in note for note in run.from_python.notes)


def test_a_copy_counts_once_and_equal_settings_with_other_rewards_twice(made, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    rows = [json.loads(line) for line in (other / "rollouts.jsonl").read_text().splitlines()]
    rows[0]["successes"] = rows[0]["n"] - rows[0]["successes"] + 1
    (other / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    study = read_study([made["vip"][0], folder])
    assert (len(study.runs), len(study.repeated)) == (1, 1)
    study = read_study([made["vip"][0], other])
    assert (len(study.runs), len(study.arms)) == (2, 1)


def test_other_prompts_are_no_pair_whatever_the_seed(made, folder):
    renamed = (folder / "rollouts.jsonl").read_text().replace('"prompt_id": "p', '"prompt_id": "q')
    (folder / "rollouts.jsonl").write_text(renamed)
    (row,) = [row for row in summarise(read_study([folder, made["uniform"][0]])) if row.arm.label == "vip"]
    assert row.difference["held_out_success"] is None


def test_nothing_there(tmp_path):
    with pytest.raises(RunDirectoryError, match="there is no run to read") as caught:
        read_run(tmp_path)
    assert "rollouts.jsonl" in str(caught.value)


def test_a_checkpoint_is_no_run(folder):
    with pytest.raises(RunDirectoryError, match="name the folder above this checkpoint"):
        read_run(folder / "checkpoint-6")


def test_a_stock_run_is_refused_with_the_reason(folder):
    (folder / "rollouts.jsonl").unlink()
    with pytest.raises(RunDirectoryError, match="TRL's own trainers do not write this log"):
        read_run(folder)


@pytest.mark.parametrize("name", [name for name in PLANNERS.built_in if name != "oracle"])
def test_a_planner_is_known_by_its_state(name):
    offered = {"embeddings": np.eye(2), "ids": ["a", "b"], "success_threshold": 0.7, "tokens_per_rollout": 5}
    estimator = PLANNERS[name].estimator or "rloo"
    planner = make_planner(name, offered=offered, budget=64, seed=3, estimator=estimator, bounds=(3, 40))
    assert planner_name(planner.state_dict()) == name
