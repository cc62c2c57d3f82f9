"""Runs in processes of their own: killed, locked, refused."""

import multiprocessing
import os
import signal
import threading
import time

import pytest

from allotment.compare import Comparison, running
from allotment.compare.running import Ended, on_processes, train
from allotment.errors import RunDirectoryError
from allotment.lab.config import TrainConfig
from allotment.run_logs.one_writer import one_writer

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
    with one_writer(job.path), pytest.raises(RunDirectoryError, match="another process is at work"):
        train(job)
    assert not job.path.exists()
