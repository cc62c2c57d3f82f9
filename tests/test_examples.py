"""The scripts that the documentation shows run as they stand."""

import os
import subprocess
import sys
from pathlib import Path

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
