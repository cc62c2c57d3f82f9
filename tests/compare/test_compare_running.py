"""Runs in processes of their own: killed, locked, refused."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from allotment.compare import Comparison, running
from allotment.compare.running import Ended, locked, on_processes, train
from allotment.errors import RunDirectoryError
from allotment.lab.config import TrainConfig

TrainConfig(steps=6, prompts_per_step=4, evaluate_every=6, checkpoint_every=2)


@pytest.fixture
def job(tmp_path):
    return Comparison(tmp_path, TrainConfig(), ("vip",), (8,), (0,)).jobs[0]


def test_a_run_that_is_killed_again_and_again_is_given_up(monkeypatch, job):
    monkeypatch.setattr(running, "RESTARTS", 1)

    def kill_all():
        for n in range(2):
            while not (workers := {p.pid for p in multiprocessing.active_children()} - set(killed)):
                time.sleep(0.01)
            killed.extend(workers)
            os.kill(killed[n], signal.SIGKILL)

    killed = []
    threading.Thread(target=kill_all, daemon=True).start()
    assert list(on_processes([job], 1)) == [Ended(job, "its process was killed 2 times")]


def test_one_process_a_run_directory(monkeypatch, job):
    monkeypatch.setattr(running, "DYING_S", 0.05)
    lock = job.path.with_name(f".{job.path.name}.lock")
    with locked(lock), pytest.raises(RunDirectoryError, match="another process is at work"):
        train(job)
    assert not job.path.exists()


def test_the_lock_of_a_dead_process_is_free(tmp_path):
    script = f"""
import os, pathlib
from allotment.compare.running import locked
with locked(pathlib.Path({str(tmp_path / ".lock")!r})):
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path / ".lock"):
        pass
