"""The scripts that the documentation shows run as they stand."""

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from allotment.compare import finished_runs
from allotment.run_logs.directory import RunDirectory

ROOT = Path(__file__).parents[1]


def test_the_trl_script(tmp_path):
    script = ROOT / "examples" / "trl_grpo.py"
    assert script.read_text() in (ROOT / "docs" / "trl.md").read_text()
    settings = tmp_path / "settings.yaml"
    settings.write_text("planner: uniform\nmax_steps: 2\nper_device_train_batch_size: 32\n")
    words = [
        sys.executable,
        script,
        "--config",
        settings,
        "--output_dir",
        tmp_path / "out",
        "--logging_strategy",
        "steps",
    ]
    ended = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "realised_variance_ratio: 1.000" in ended.stdout
    assert (tmp_path / "out" / "rollouts.jsonl").read_text().count("\n") == 8


@pytest.fixture(scope="module")
def demo():
    spec = spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finish(job, ends, *, prompts=16):
    """A finished run of a job, as its logs have it: success on fresh prompts at steps 0, 20, ..., 100."""
    directory = RunDirectory.create(job.path, job.config)
    rows = [
        {"step": 20 * k, "rollouts_total": 20 * k * 8 * prompts, "pool_success": success, "held_out_success": success}
        for k, success in enumerate(ends)
    ]
    directory.append("metrics.jsonl", rows)


def test_the_demo_compares_equal_rollouts_each_arm_at_its_own_rate(demo, tmp_path):
    configs = {arm: demo.job(tmp_path, arm, 3).config for arm in demo.SHAPES}
    budgets = {arm: config.budget for arm, config in configs.items()}
    assert budgets == {"uniform": 128, "uniform-2x": 256, "joint": 128}
    assert {arm: config.learning_rate for arm, config in configs.items()} == demo.RATES
    assert all((config.pool, config.seed) == ("generated", 3) for config in configs.values())


def test_the_summary_of_the_demo(demo, tmp_path):
    """Joint goes up .01 in 20 steps, uniform .005 in 20: joint is at uniform's end after half of the rollouts."""
    jobs = {arm: [demo.job(tmp_path, arm, seed) for seed in demo.SEEDS] for arm in demo.SHAPES}
    for arm, slope, prompts in (("uniform", 0.005, 16), ("uniform-2x", 0.006, 32), ("joint", 0.01, 16)):
        for seed, each in enumerate(jobs[arm]):
            finish(each, [0.4 + slope * k + 0.001 * seed * (k == 5) for k in range(6)], prompts=prompts)
    runs = finished_runs([each for of_arm in jobs.values() for each in of_arm])
    found = demo.summary({arm: [runs[each.path] for each in of_arm] for arm, of_arm in jobs.items()})
    json.dumps(found)
    assert found["start"] == 0.4
    assert found["success"]["uniform"]["mean"] == pytest.approx(0.425 + 0.002)
    assert found["success"]["uniform"]["se"] == pytest.approx(0.001 * (2.5 / 5) ** 0.5)
    assert found["difference"]["joint"] == pytest.approx({"mean": 0.025, "se": 0.0}, abs=1e-12)
    assert found["rollouts"] == {"uniform": 12800, "uniform-2x": 25600, "joint": 12800}
    assert found["rollouts_to_uniform"] == pytest.approx(0.54)  # .427 lies between steps 40 and 60
