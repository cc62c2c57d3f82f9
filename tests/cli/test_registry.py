"""A method of each kind from another package: its own file and one line, then the command line runs it by name.

The files are those of the guides (docs/guides). The package is installed as pip installs one: modules, and a
``dist-info`` whose entry points the registry reads.
"""

import json
import os
import subprocess
import sys

import pytest

from pages import toys


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder on the path with another package's files, and a line for each."""
    folder = tmp_path_factory.mktemp("site")
    files = toys()
    for name, text in files.items():
        (folder / name).write_text(text)
    info = folder / "toys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    names = [name.removesuffix(".py") for name in files]
    (info / "entry_points.txt").write_text("[allotment]\n" + "".join(f"{name} = {name}\n" for name in names))
    return folder


def run(package, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "allotment.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_toy_planner_predictor_selector_and_objective_train_in_the_lab(package, tmp_path):
    few = ("--steps", 2, "--prompts-per-step", 4, "--evaluate-every", 2, "--objective", "toy-objective")
    halves = ("--planner", "toy-planner", "--planner-settings", '{"share": 0.25}', "--candidate-prompts", 8)
    result = run(package, "train", *few, *halves, "--select", "toy-selector", "--out", tmp_path / "a")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("toy objective") >= 2
    generated = rows(tmp_path / "a" / "rollouts.jsonl")
    assert [(row["step"], row["n"]) for row in generated] == [(1, 16), (1, 16), (2, 16), (2, 16)]
    assert [row["trained_rollouts"] for row in rows(tmp_path / "a" / "metrics.jsonl") if "budget" in row] == [16, 16]
    predicting = ("--planner", "vip", "--planner-settings", '{"predictor": "toy-predictor"}')
    result = run(package, "train", *few, *predicting, "--out", tmp_path / "b")
    assert result.returncode == 0, result.stderr
    learnt = [row["predicted_mean"] for row in rows(tmp_path / "b" / "rollouts.jsonl")]
    assert len(learnt) == 8


def test_a_toy_predictor_is_audited_on_a_log_of_a_toy_format(package, tmp_path):
    (tmp_path / "log.jsonl").write_text("".join(json.dumps({"toy": [k, 8]}) + "\n" for k in (0, 3, 5, 8)))
    result = run(package, "audit", tmp_path / "log.jsonl", "--predictor", "toy-predictor", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["prompts"], found["visits"], found["budget_per_prompt"]) == (4, 4, 8)
    assert "toy-predictor" in found["predictors"]


def test_a_toy_trainer_has_its_flags(package, tmp_path):
    result = run(
        package, "train", "toy-trainer", "--colour", "blue", "--planner", "toy-planner", "--out", tmp_path / "r"
    )
    assert result.returncode == 0, result.stderr
    assert "trained in blue by toy-planner" in result.stdout
    assert "--colour" in run(package, "train", "toy-trainer", "--help").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "trl", "--model", "m", "--dataset", "d.jsonl", "--planner", "toys"),
        ("train", "--select", "toys"),
        ("train", "--objective", "toys"),
        ("train", "toys"),
        ("audit", "log.jsonl", "--predictor", "toys"),
        ("audit", "log.jsonl", "--format", "toys"),
    ],
    ids=["planner", "selector", "objective", "trainer", "predictor", "format"],
)
def test_texts_name_what_was_registered(package, tmp_path, arguments):
    (tmp_path / "log.jsonl").write_text(json.dumps({"toy": [1, 8]}) + "\n")
    result = run(package, *(str(tmp_path / word) if word == "log.jsonl" else word for word in arguments))
    assert result.returncode != 0
    assert "toy-" in result.stderr, result.stderr + result.stdout
