"""Locks that die with their holder, and files that are replaced in one go: with real processes and real signals."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

import allotment.disk as disk
from allotment.disk import locked, replaced
from allotment.state import load_state, save_state

ALONE = f"""
import os, sys, time, pathlib
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("disk", {disk.__file__!r})
disk = module_from_spec(spec)
spec.loader.exec_module(disk)
locked, replaced = disk.locked, disk.replaced
"""
"""The module without the package: a process begins sooner."""
HOLD = """
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
WRITE = """
with replaced(pathlib.Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.readline()
"""


def start(script, path):
    """A process of its own, once it says that it has begun."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", ALONE + script, str(path)], **pipes)
    assert process.stdout.readline()
    return process


def kill(process):
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_a_lock_keeps_others_out_and_says_who_has_it(tmp_path):
    file = tmp_path / "lock"
    holder = start(HOLD, file)
    try:
        with pytest.raises(BlockingIOError, match=f"process {holder.pid} on "), locked(file):
            pass
        began = time.monotonic()
        with pytest.raises(BlockingIOError), locked(file, 0.2):
            pass
        assert time.monotonic() - began >= 0.2
    finally:
        kill(holder)
    assert file.exists()
    with locked(file):  # at once: the system freed it
        pass
    assert not file.exists()


def test_a_lock_is_waited_for(tmp_path):
    holder = start(HOLD, tmp_path / "lock")
    threading.Timer(0.2, kill, (holder,)).start()
    with locked(tmp_path / "lock", 60):
        assert holder.poll() is not None


def test_a_lock_holds_within_one_process_too(tmp_path):
    with locked(tmp_path / "lock"), pytest.raises(BlockingIOError), locked(tmp_path / "lock"):
        pass
    assert not list(tmp_path.iterdir())


def test_one_of_many_at_a_time(tmp_path, monkeypatch):
    """The file comes and goes all the while; two would meet if one could lock a file that has lost its name."""
    inside, met, done = [], [], []

    def work():
        for _ in range(60):
            with locked(tmp_path / "lock", 60):
                inside.append(1)
                met.append(len(inside))
                inside.pop()
        done.append(1)

    monkeypatch.setattr(disk, "POLL_S", 0.0)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(done), len(met), set(met)) == (4, 240, {1})


FORKED = """
with locked(pathlib.Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(600)
    print(child, flush=True)
    os.kill(os.getpid(), 9)
"""


def test_a_child_that_outlives_the_holder_does_not_keep_the_lock(tmp_path):
    words = [sys.executable, "-c", ALONE + FORKED, str(tmp_path / "lock")]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=False)
    child = int(done.stdout)
    try:
        os.kill(child, 0)  # it lives
        with locked(tmp_path / "lock", 5):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, caplog):
    def none(descriptor, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("allotment.disk.fcntl.flock", none)
    with locked(tmp_path / "lock"):
        assert "cannot be locked" in caplog.text
    left = tmp_path / ".state.0a1b2c3d.tmp"
    left.write_bytes(b"somebody's")
    with replaced(tmp_path / "state") as file:
        file.write(b"new")
    assert (tmp_path / "state").read_bytes() == b"new"
    assert left.exists()  # whose writer may live


def test_the_new_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "state"

    def fail(error):
        with replaced(path) as file:
            file.write(b"half")
            raise error

    for error in (OSError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)
        assert not list(tmp_path.iterdir())
    with replaced(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_what_dead_writers_left_is_removed_and_what_the_living_write_is_not(tmp_path):
    name = "st[a]t.e*"
    path = tmp_path / name
    dead, living = start(WRITE, path), start(WRITE, path)
    (of_living,) = (file for file in tmp_path.iterdir() if _written_by(living, file))
    kill(dead)
    former = [tmp_path / f".{name}.12345.tmp", tmp_path / f".{name}.tmp"]  # as earlier versions named them
    others = [tmp_path / f".{name}2.12345.tmp", tmp_path / f".{name}.notes.tmp", tmp_path / f"{name}.tmp"]
    for file in (*former, *others):
        file.write_bytes(b"old")
    with replaced(path) as file:
        file.write(b"new")
    assert {*tmp_path.iterdir()} == {path, of_living, *others}
    living.communicate("go on\n")
    assert path.read_bytes() == b"half"
    assert {*tmp_path.iterdir()} == {path, *others}


def _written_by(process, file):
    return any(os.path.samefile(f"/proc/{process.pid}/fd/{n}", file) for n in os.listdir(f"/proc/{process.pid}/fd"))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600), (0o000, 0o666)])
def test_the_umask_is_heeded(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with replaced(tmp_path / "state") as file:
            file.write(b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == mode


SAVE = """
import numpy as np
from allotment.state import save_state
state = {"a": np.arange(20_000.0), "n": 0}
print("saving", flush=True)
while True:
    state["n"] += 1
    save_state(sys.argv[1], state, kind="test")
"""


def test_a_saver_that_is_killed_again_and_again_leaves_one_whole_file(tmp_path):
    path, seen = tmp_path / "state", 0
    save_state(path, {"n": 0}, kind="test")
    for i in range(3):
        process = start(SAVE, path)
        time.sleep(0.02 + 0.007 * i)
        kill(process)
        seen += load_state(path, kind="test")["n"] > 0
        assert len(list(tmp_path.iterdir())) <= 2  # the file, and one that the newest of the dead left
    assert seen
    save_state(path, {"n": 0}, kind="test")
    assert list(tmp_path.iterdir()) == [path]
