"""One process a run directory, and memory that runs out: with the real command, real signals, a real limit."""

import os
import signal
import subprocess
import sys
import time

import pytest

from allotment.cli.main import main
from allotment.compare import Comparison, running
from allotment.errors import OutOfMemoryError, RunDirectoryError, StateError, memory_explained
from allotment.lab.config import TrainConfig
from allotment.run_logs.directory import RunDirectory
from allotment.run_logs.one_writer import one_writer
from allotment.state import load_state, save_state

SETTINGS = {"steps": 5, "prompts_per_step": 8, "evaluate_every": 5, "checkpoint_every": 2}
FLAGS = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
FILES = ("config.json", "metrics.jsonl", "rollouts.jsonl", "checkpoint.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(["train", "--out", str(out), *FLAGS]) == 0
    assert {file.name for file in out.iterdir()} == {*FILES, "timing.jsonl"}
    return out


def assert_same_bytes(out, whole):
    for name in FILES:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_the_second_is_refused_and_a_killed_holder_frees_the_directory(tmp_path, capsys, monkeypatch, whole):
    out = tmp_path / "run"
    words = [sys.executable, "-m", "allotment.cli.main", "train", "--out", str(out), *FLAGS]
    holder = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        while not (out / "checkpoint.safetensors").exists():
            assert holder.poll() is None, holder.communicate()
            time.sleep(0.005)
        holder.send_signal(signal.SIGSTOP)  # alive, and at the same step for as long as the test takes
        before = {file: file.read_bytes() for file in out.iterdir()}
        for more in (["--resume"], FLAGS):
            assert main(["train", "--out", str(out), *more]) == 2
            said = capsys.readouterr().err
            if more == ["--resume"]:  # else: there is a run already
                assert "another process is at work in this directory" in said
                assert f"process {holder.pid} on " in said
                assert str(out) in said
                assert "choose another --out" in said
        monkeypatch.setattr(running, "DYING_S", 0.0)
        job = Comparison(tmp_path, TrainConfig(**SETTINGS), ("vip",), (8,), (0,)).jobs[0]
        os.symlink(out, job.path)
        with pytest.raises(RunDirectoryError, match="another process is at work"):
            running.train(job)
        assert {file: file.read_bytes() for file in out.iterdir()} == before
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert main(["train", "--out", str(out), "--resume"]) == 0
    assert_same_bytes(out, whole)
    assert not (out / ".lock").exists()


def test_a_directory_that_stays_empty_is_not_left_behind(tmp_path):
    def refuse(path):
        with one_writer(path):
            raise KeyError

    for path in (tmp_path / "a" / "run", tmp_path / "there"):
        (tmp_path / "there").mkdir(exist_ok=True)
        with pytest.raises(KeyError):
            refuse(path)
    assert not (tmp_path / "a" / "run").exists()
    assert (tmp_path / "there").exists()


SHORT_OF_MEMORY = """
import resource, sys
from allotment.cli.main import main
from allotment.run_logs.directory import RunDirectory

append = RunDirectory.append

def and_limit(self, log, rows):
    append(self, log, rows)
    if log == "metrics.jsonl" and rows[0]["step"] == 3:
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + 65536
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

RunDirectory.append = and_limit
sys.exit(main(sys.argv[1:]))
"""


def test_a_run_that_runs_out_of_memory_says_so_and_loses_nothing(tmp_path, whole):
    out = tmp_path / "run"
    words = [sys.executable, "-c", SHORT_OF_MEMORY, "train", "--out", str(out), *FLAGS]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "memory ran out" in done.stderr
    assert "--resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert load_state(out / "checkpoint.safetensors", kind="lab-checkpoint")["step"] in (2, 4)
    assert main(["train", "--out", str(out), "--resume"]) == 0
    assert_same_bytes(out, whole)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes."
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        OSError(12, "Cannot allocate memory"),
        ImportError("libtorch.so: failed to map segment from shared object"),
    ],
    ids=repr,
)
def test_no_memory_in_whatever_words(error):
    with pytest.raises(OutOfMemoryError, match=r"memory ran out(.|\n)*fix:"), memory_explained():
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(28, "No space"), StateError("out of memory")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, memory_explained():
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("step"),
        lambda state: state.update(step="2"),
        lambda state: state.update(step=-1),
        lambda state: state.pop("parameters"),
        lambda state: state["parameters"].popitem(),
        lambda state: state.update(parameters=3),
        lambda state: state.pop("planner"),
        lambda state: state.pop("rollouts"),
        lambda state: state.pop("tokens"),
    ],
)
def test_a_whole_checkpoint_of_something_else_is_refused(tmp_path, whole, capsys, spoil):
    """Its checksum is right; what it holds is not."""
    out = tmp_path / "run"
    out.mkdir()
    for file in whole.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    state = load_state(out / "checkpoint.safetensors", kind="lab-checkpoint")
    spoil(state)
    save_state(out / "checkpoint.safetensors", state, kind="lab-checkpoint")
    assert main(["train", "--out", str(out), "--resume"]) == 2
    said = capsys.readouterr().err
    assert "error: " in said
    assert "fix:" in said
    assert RunDirectory(out).path == out
