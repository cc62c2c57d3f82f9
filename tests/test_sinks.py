"""Figures of a run in other people's trackers, and trackers that fail."""

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from allotment import sinks
from allotment.cli.main import main
from allotment.errors import MissingExtraError

ROWS = [{"step": 0, "pool_success": 0.5, "note": "a text"}, {"step": 1, "budget": 128, "loss": -0.25}]


def test_tensorboard_holds_every_figure_of_a_real_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["train", "--steps", "2", "--prompts-per-step", "2", "--rollouts-per-prompt", "3", "--planner", "uniform"]
    assert main([*words, "--evaluate-every", "2", "--sinks", "tensorboard", "--out", str(tmp_path / "run")]) == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("budget")] == [(1, 6.0), (2, 6.0)]
    assert [e.step for e in events.Scalars("held_out_success")] == [0, 2]


def test_wandb_offline(tmp_path):
    """In a process of its own, as wandb starts threads and a service."""
    script = f"""
from pathlib import Path
from allotment import sinks
with sinks.opened(["wandb"], Path("run"), {{"planner": "vip"}}) as together:
    for row in {ROWS!r}:
        together.write(row)
"""
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=tmp_path)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"pool_success" in file.read_bytes()


def test_a_failing_sink_is_named_once_and_left_out(caplog):
    class Failing:
        def write(self, row):
            raise ConnectionError("no network")

        def close(self):
            raise AssertionError("it was left out")

    got = []
    together = sinks.Sinks({"wandb": Failing(), "list": SimpleNamespace(write=got.append, close=lambda: None)})
    with caplog.at_level(logging.WARNING, "allotment"):
        for row in ROWS:
            together.write(row)
        together.close()
    assert got == ROWS
    assert [r.getMessage() for r in caplog.records] == ["wandb takes no more figures: ConnectionError: no network"]


def test_a_sink_that_cannot_be_opened_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with sinks.opened(["tensorboard"], tmp_path / "file", {}) as together:
        together.write(ROWS[0])
    assert "tensorboard cannot be opened" in caplog.text


def test_a_missing_package_is_an_error_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(MissingExtraError, match=r"allotment\[trackio\]"), sinks.opened(["trackio"], tmp_path, {}):
        pass
