"""``allotment compare`` as a person uses it: interrupted, killed, refused, on Ray."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from allotment.cli.main import main, parse
from allotment.registry import PLANNERS as REGISTERED
from allotment.run_logs.one_writer import one_writer
from allotment.trainers.trl.config import TRLTrainConfig

PLANNERS, SEEDS = ("uniform", "vip"), (0, 1)
RUNS = [f"{planner}-s{seed}" for seed in SEEDS for planner in PLANNERS]
SMALL = ("--steps", "6", "--prompts-per-step", "4", "--evaluate-every", "6", "--checkpoint-every", "2")
FLAGS = ("--planners", *PLANNERS, "--seeds", "2", "--no-yardsticks", "--processes", "1", *SMALL)
FILES = ("config.json", "metrics.jsonl", "rollouts.jsonl", "checkpoint.safetensors")


def start(out, *more):
    """The command in a process and a process group of its own."""
    words = [sys.executable, "-m", "allotment.cli.main", "compare", str(out), *FLAGS, *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, **pipes, start_new_session=True, preexec_fn=_heed_interrupts)


def _heed_interrupts():
    """A shell that runs the tests in the background has its children ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def exact(text):
    """The table without what is measured by the clock."""
    table, heading, _ = text.partition("\nwall time\n")
    assert heading
    return table


def wait_for(file: Path, process):
    while not file.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A comparison that nothing disturbed, and its table."""
    out = tmp_path_factory.mktemp("whole") / "out"
    process = start(out)
    table, progress = process.communicate()
    assert process.returncode == 0, progress
    assert progress.splitlines() == [f"{name} finished" for name in RUNS]
    return out, table


def assert_same_runs(names, out, whole):
    for name in names:
        for file in FILES:
            assert (out / name / file).read_bytes() == (whole / name / file).read_bytes(), (name, file)


def kill_a_worker_when(condition):
    """In a thread, once: the list gets the process id."""
    killed = []

    def watch():
        while not condition():
            time.sleep(0.01)
        killed.append(multiprocessing.active_children()[-1].pid)
        os.kill(killed[0], signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    return killed


def test_interrupted_then_killed_then_resumed_without_a_worker_gives_the_same_table(tmp_path, capsys, whole):
    out = tmp_path / "out"
    process = start(out)
    wait_for(out / RUNS[0] / ".lock", process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said

    process = start(out)
    wait_for(out / RUNS[2] / "checkpoint.safetensors", process)  # the third run, at step 2 of 6
    process.kill()  # its worker notices by itself
    process.communicate()
    names = [name for name in RUNS[:3] if '"step": 6' in (out / name / "metrics.jsonl").read_text()]
    assert names[:2] == RUNS[:2]  # on a busy machine the kill may come after the third
    finished = {file: file.stat().st_mtime_ns for name in names for file in (out / name).iterdir()}

    killed = kill_a_worker_when((out / RUNS[3] / "checkpoint.safetensors").exists)
    assert main(["compare", str(out), *FLAGS, "--processes", "2"]) == 0
    printed = capsys.readouterr()
    assert killed
    assert printed.err.splitlines()[0] == f"{len(names)} of 4 runs have finished before"
    assert exact(printed.out) == exact(whole[1])
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert_same_runs(RUNS, out, whole[0])


def test_a_run_that_fails_is_named_and_the_others_are_compared(tmp_path, capsys, whole):
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    (out / "vip-s1" / "metrics.jsonl").write_text("")
    (out / "vip-s1" / "checkpoint.safetensors").write_text("nonsense")
    status = main(["compare", str(out), *FLAGS, "--json"])
    printed = capsys.readouterr()
    assert status == 2
    assert "vip-s1 failed: " in printed.err
    assert "1 of 4 runs did not finish" in printed.err
    assert "checkpoint.safetensors is damaged" in printed.err
    table = json.loads(printed.out)["table"]
    assert {line["label"]: line["seeds"] for line in table} == {"uniform": [0, 1], "vip": [0]}


def test_finished_runs_are_only_read(capsys, whole):
    """Seeds and planners may be left out later; the JSON holds the figures of the text."""
    assert main(["compare", str(whole[0]), *FLAGS]) == 0
    printed = capsys.readouterr()
    assert (exact(printed.out), printed.err) == (exact(whole[1]), "")
    assert main(["compare", str(whole[0]), *FLAGS, "--seeds", "1", "--planners", "vip", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (vip,) = [line for line in result["table"] if line["planner"] == "vip"]
    last = [
        json.loads((whole[0] / f"{p}-s0" / "metrics.jsonl").read_text().splitlines()[-1]) for p in ("vip", "uniform")
    ]
    found = vip["differences"]["rollouts"]["held_out_success"]
    assert found["mean"] == last[0]["held_out_success"] - last[1]["held_out_success"]
    assert (found["n"], found["verdict"]) == (1, "one pair")
    assert set(result["wall_time"][1]) >= {"label", "pool_success", "held_out_success"}


def test_two_comparisons_in_one_folder(capsys, whole):
    with one_writer(whole[0]):
        assert main(["compare", str(whole[0]), *FLAGS]) == 2
    assert "another process is at work" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--seeds", 0), "--seeds"),
        (("--processes", 0), "--processes"),
        (("--planners", "vip", "vip"), "each planner"),
        (("--budgets", 8, 8), "each budget"),
        (("--gpus-per-run", 1), "only with --ray"),
        (("--gpus-per-run", -1, "--ray", "local"), "0 or more"),
        (("--budgets", 64), "upper"),
        (("--learning-rate", 0.01), "other settings: learning_rate"),
        (("--steps", 3), "other settings: steps"),
    ],
)
def test_bad_input_is_explained_before_anything_runs(capsys, whole, arguments, said):
    assert main(["compare", str(whole[0]), *FLAGS, *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert "fix:" in error


def test_settings_from_a_file(capsys, tmp_path, whole):
    (tmp_path / "c.toml").write_text(
        'planner = "vip"\nsteps = 6\nprompts_per_step = 4\nevaluate_every = 6\ncheckpoint_every = 2\n'
    )
    flags = ("--planners", *PLANNERS, "--seeds", "2", "--no-yardsticks", "--config", str(tmp_path / "c.toml"))
    assert main(["compare", str(whole[0]), *flags]) == 0
    assert exact(capsys.readouterr().out) == exact(whole[1])


def test_on_ray_a_killed_worker_costs_its_own_run_only(tmp_path, capsys, whole):
    pytest.importorskip("ray")
    psutil = pytest.importorskip("psutil")
    out = tmp_path / "out"
    process = start(out, "--seeds", "1", "--ray", "local")
    wait_for(out / RUNS[0] / "checkpoint.safetensors", process)
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "ray::train" in " ".join(p.cmdline())]
    os.kill(workers[0].pid, signal.SIGKILL)
    table, progress = process.communicate()
    assert process.returncode == 0, progress
    assert all(f"{name} finished" in progress.splitlines() for name in RUNS[:2])
    assert_same_runs(RUNS[:2], out, whole[0])
    assert main(["compare", str(whole[0]), *FLAGS, "--seeds", "1"]) == 0
    assert exact(table) == exact(capsys.readouterr().out)


def test_a_ray_cluster_that_is_not_there(tmp_path, capsys):
    """Not ``auto``: that would find, or wait for, whatever cluster the machine has or had."""
    pytest.importorskip("ray")
    assert main(["compare", str(tmp_path / "out"), *FLAGS, "--ray", "nowhere"]) == 2
    said = capsys.readouterr().err
    assert "no Ray cluster" in said
    assert "RAY_AUTH_MODE=token" in said
    assert not list((tmp_path / "out").glob("*/"))


def test_more_gpus_than_the_cluster_has(tmp_path, capsys):
    pytest.importorskip("ray")
    assert main(["compare", str(tmp_path / "out"), *FLAGS, "--ray", "local", "--gpus-per-run", "1000"]) == 2
    assert "fewer GPUs than a run asks for" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*/"))


def test_every_planner(tmp_path):
    jobs = parse(["compare", str(tmp_path), "--planners", "all", "vip+pods", "--seeds", "1"]).comparison().jobs
    named = {*REGISTERED.names, "vip+pods", "uniform-b16"} - {"reward-variance"}
    assert {job.path.name.removesuffix("-s0") for job in jobs} == named


def test_every_setting_of_the_trl_trainer_can_be_compared(tmp_path):
    words = ["--model", "m", "--dataset", "d.jsonl", "--max-completion-tokens", "7", "--seed", "5"]
    jobs = (
        parse(["compare", "trl", str(tmp_path), *words, "--planners", "vip", "ridge", "--seeds", "1"]).comparison().jobs
    )
    assert [job.path.name for job in jobs] == ["uniform-s5", "vip-s5", "ridge-s5", "uniform-b16-s5"]
    assert {(type(job.config), job.config.max_completion_tokens) for job in jobs} == {(TRLTrainConfig, 7)}


def test_runs_of_trl_are_compared_and_one_that_is_killed_goes_on(tmp_path, capsys):
    pytest.importorskip("trl")
    hugging_face = pytest.importorskip("allotment.lab.hugging_face")
    numbers = [row for row in hugging_face.rows("pool") if row["answer"].isdigit()][:20]
    (tmp_path / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbers))
    words = f"--model {hugging_face.model_folder()} --dataset {tmp_path / 'numbers.jsonl'}"
    words += " --prompt-id-column prompt_id --extract last_number --prompts-per-step 4 --rollouts-per-prompt 4"
    words += (
        " --micro-batch 8 --max-completion-tokens 17 --held-out 4 --evaluate-every 6 --checkpoint-every 2 --steps 6"
    )
    out = tmp_path / "out"
    killed = kill_a_worker_when((out / "vip-s0" / "checkpoint-2" / "trainer_state.json").exists)
    flags = ("--planners", "vip", "--seeds", "1", "--no-yardsticks", "--processes", "1", "--json")
    assert main(["compare", "trl", str(out), *words.split(), *flags]) == 0
    assert killed
    result = json.loads(capsys.readouterr().out)
    assert [(line["label"], line["seeds"], line["rollouts"]) for line in result["table"]] == [
        ("uniform", [0], 96),
        ("vip", [0], 96),
    ]
    assert result["wall_time"][1]["pool_success"]["verdict"] == "one pair"
    timing = [json.loads(line) for line in (out / "vip-s0" / "timing.jsonl").read_text().splitlines()]
    assert [row["step"] for row in timing if "seconds" in row] == [1, 2, 3, 4, 5, 6]
    assert len([row for row in timing if "resumed" in row]) == 1


def test_without_ray_it_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['ray'] = None; from allotment.cli.main import main; "
        f"sys.exit(main(['compare', {str(tmp_path / 'out')!r}, '--ray', 'auto']))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "pip install 'allotment[ray]'" in ended.stderr
