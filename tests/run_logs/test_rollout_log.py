"""A log that keeps other processes out of its folder: real processes, a real signal."""

import subprocess
import sys

import pytest

from allotment.errors import RunDirectoryError
from allotment.run_logs.one_writer import TRAINER_LOCK
from allotment.run_logs.rollout_log import RolloutLog

HOLDER = """
import sys
from pathlib import Path
from allotment.run_logs.rollout_log import RolloutLog
log = RolloutLog(Path(sys.argv[1]), alone=True)
log.append([{"step": 1, "of": "first"}])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("first_call", [lambda log: log.append([{"step": 1}]), lambda log: log.resume(1)])
def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path, first_call):
    path = tmp_path / "run" / "rollouts.jsonl"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        before = path.read_bytes()
        with pytest.raises(RunDirectoryError, match=rf"process {holder.pid} on"):
            first_call(RolloutLog(path, alone=True))
        assert path.read_bytes() == before
        assert [file.name for file in path.parent.iterdir() if file.name != TRAINER_LOCK] == [path.name]
        holder.kill()
    first_call(RolloutLog(path, alone=True))


def test_an_earlier_log_of_the_same_process_hands_its_lock_on(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    earlier, log = RolloutLog(path, alone=True), RolloutLog(path, alone=True)
    earlier.append([{"step": 1}])
    log.resume(1)
    del earlier
    assert not (tmp_path / TRAINER_LOCK).exists()
    log.append([{"step": 2}])
    assert (tmp_path / TRAINER_LOCK).exists()
    del log
    assert not (tmp_path / TRAINER_LOCK).exists()
    assert path.read_text().count("\n") == 2
