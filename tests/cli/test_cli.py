"""The command line as a person uses it: a process of its own where imports matter, else ``main`` itself."""

import io
import json
import subprocess
import sys

import pytest

from allotment.allocation import allocate
from allotment.cli.main import main


def run(capsys, *arguments):
    status = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def probabilities(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps([0.0, 0.1, 0.5, 0.9]))
    return path


@pytest.mark.parametrize("code", ["import allotment", "from allotment.cli.main import main; main(['--help'])"])
def test_no_torch_is_loaded(code):
    heavy = "import sys; print([m for m in ('torch', 'transformers', 'reasoning_gym', 'plotly') if m in sys.modules])"
    script = f"try:\n    {code}\nexcept SystemExit:\n    pass\n{heavy}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith("[]")


def test_help_names_every_command():
    result = subprocess.run(
        [sys.executable, "-m", "allotment.cli.main", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("allocate", "train", "gradient-variance", "report"):
        assert command in result.stdout


@pytest.mark.parametrize("method", ["exact", "relaxed", "uniform", "inverse-accuracy", "inverse-variance"])
@pytest.mark.parametrize("estimator", ["rloo", "dr_grpo"])
def test_allocate_prints_what_the_library_computes(capsys, probabilities, method, estimator):
    arguments = ("--budget", 32, "--min", 3, "--max", 16, "--estimator", estimator, "--method", method)
    status, out, _ = run(capsys, "allocate", probabilities, *arguments)
    expected = allocate([0.0, 0.1, 0.5, 0.9], 32, lower=3, upper=16, estimator=estimator, method=method)
    result = json.loads(out)
    assert status == 0
    assert result == {
        "counts": expected.counts.tolist(),
        "budget": 32,
        "objective": expected.objective,
        "uniform_objective": expected.uniform_objective,
        "multiplier": list(expected.multiplier),
    }


def test_allocate_reads_standard_input_and_writes_valid_json_at_the_bounds(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("[0.5, 0.5]"))
    status, out, _ = run(capsys, "allocate", "-", "--budget", 6)
    assert status == 0
    assert json.loads(out)["multiplier"][1] is None
    assert "Infinity" not in out


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ("[0.1, NaN]", (), "nan at index 1"),
        ("[0.1, 1.5]", (), "1.5 at index 1"),
        ("[]", (), "empty"),
        ("[0.1", (), "cannot read"),
        ('{"p": 1}', (), "JSON array of numbers"),
        ('[0.1, "a"]', (), "JSON array of numbers"),
        ("[0.1, true]", (), "JSON array of numbers"),
        ("[0.1, 0.2]", ("--budget", 5), "6 (sum of the lower bounds) to 64"),
        ("[0.1, 0.2]", ("--budget", 65), "6 (sum of the lower bounds) to 64"),
        ("[0.1, 0.2]", ("--min", 2, "--estimator", "dr_grpo"), "convex"),
        ("[0.1, 0.2]", ("--min", 9, "--max", 8), "8"),
    ],
)
def test_allocate_explains_bad_input(capsys, tmp_path, text, arguments, said):
    path = tmp_path / "p.json"
    path.write_text(text)
    status, out, err = run(
        capsys, "allocate", path, *(arguments if "--budget" in arguments else ("--budget", 16, *arguments))
    )
    assert status == 2
    assert out == ""
    assert said in err
    assert "fix:" in err


def test_a_missing_file_is_named(capsys, tmp_path):
    status, _, err = run(capsys, "allocate", tmp_path / "none.json", "--budget", 16)
    assert status == 2
    assert "none.json" in err


def test_dry_run_prints_the_resolved_configuration_and_touches_nothing(capsys, tmp_path):
    toml = tmp_path / "c.toml"
    toml.write_text('planner = "uniform"\nsteps = 7\n')
    out = tmp_path / "run"
    status, printed, _ = run(capsys, "train", "--config", toml, "--steps", 9, "--out", out, "--dry-run")
    resolved = json.loads(printed)
    assert status == 0
    assert (resolved["planner"], resolved["steps"], resolved["seed"]) == ("uniform", 9, 0)
    assert not out.exists()


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('plannr = "vip"', "did you mean 'planner'"),
        ('planner = "vipp"', "planner"),
        ("steps = 0", "steps"),
        ("lower = 20", "lower <= rollouts_per_prompt"),
        ("steps = ", "cannot read"),
        ('estimator = "dr_grpo"\nlower = 2', "3 <= lower"),
    ],
)
def test_a_bad_configuration_is_explained(capsys, tmp_path, toml, said):
    path = tmp_path / "c.toml"
    path.write_text(toml)
    status, _, err = run(capsys, "train", "--config", path, "--dry-run")
    assert status == 2
    assert said in err


def test_train_resume_and_report_end_to_end(capsys, tmp_path):
    """Two steps by the real command, refusal to overwrite, resuming to four, and the report on it."""
    out = tmp_path / "run"
    quick = ("--prompts-per-step", 4, "--evaluate-every", 2, "--checkpoint-every", 1)
    status, printed, _ = run(capsys, "train", "--steps", 2, "--seed", 3, "--out", out, *quick)
    assert status == 0
    assert "step 2" in printed
    lines = (out / "rollouts.jsonl").read_text().splitlines()
    assert {"prompt_id", "step", "n", "successes", "predicted_mean", "predicted_sd"} <= json.loads(lines[0]).keys()
    assert sum(json.loads(line)["n"] for line in lines) == 2 * 4 * 8

    status, _, err = run(capsys, "train", "--steps", 2, "--out", out)
    assert status == 2
    assert "already holds a run" in err
    status, _, err = run(capsys, "train", "--resume", "--out", out, "--seed", 4)
    assert status == 2
    assert "seed" in err
    status, _, _ = run(capsys, "train", "--resume", "--out", out, "--steps", 4)
    assert status == 0
    assert len((out / "rollouts.jsonl").read_text().splitlines()) == 4 * 4
    assert (out / "rollouts.jsonl").read_text().splitlines()[: len(lines)] == lines

    page = tmp_path / "report.html"
    status, printed, _ = run(capsys, "report", out, "--out", page)
    assert status == 0
    assert str(page) in printed
    assert "<html" in page.read_text()


def test_resume_needs_a_run(capsys, tmp_path):
    status, _, err = run(capsys, "train", "--resume", "--out", tmp_path / "none")
    assert status == 2
    assert "no run" in err
    status, _, err = run(capsys, "train", "--resume")
    assert status == 2
    assert "--out" in err


def test_gradient_variance_prints_the_documented_json(capsys):
    small = ("--batches", 2, "--prompts", 8, "--rollouts", 16, "--directions", 1, "--history", 8)
    status, out, _ = run(
        capsys, "gradient-variance", "--regime", "short", *small, "--planners", "uniform", "vip", "--json"
    )
    result = json.loads(out)
    assert status == 0
    assert (result["regime"], result["history"]) == ("short", 8)
    assert result["planners"].keys() == {"uniform", "vip"}
    assert result["planners"]["uniform"] == {"ratio": 1.0, "se": 0.0}
    assert result["planners"]["vip"]["ratio"] > 0
