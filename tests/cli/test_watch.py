"""``allotment watch`` on runs that are finished, under way, cut short, or none."""

import io
import json
import os
import shutil
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from allotment.cli import tails, watch
from allotment.cli.main import main

CONFIG = {"steps": 3, "planner": "vip", "regime": "short", "seed": 4}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write(tmp_path, [{"step": 0, "pool_success": 0.25}, {"step": 1, "pool_success": 0.5, "budget": 128}])
    (tmp_path / "timing.jsonl").write_text('{"step": 1, "seconds": 100}\n')
    return tmp_path


def write(run, rows, end="\n"):
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + end)


def shown(run, now=None):
    tail = tails.tail_of(run)
    tail.read()
    console = Console(file=io.StringIO(), width=120)
    console.print(watch.view(run, tail, time.time() if now is None else now))
    return console.file.getvalue()


def test_a_run_under_way(run, capsys):
    assert main(["watch", str(run), "--once"]) == 0
    said = capsys.readouterr().out
    assert "step 1 of 3, 1e+02 s a step, 3 min left; last line 0 s ago" in " ".join(said.split())
    assert "pool_success" in said
    assert "has it stopped" not in said


def test_a_run_that_has_stopped_or_finished(run):
    os.utime(run / "metrics.jsonl", (0, 0))
    assert "has it stopped?" in shown(run, now=1000.0)
    write(run, [{"step": 3, "pool_success": 0.5}])
    assert "finished" in shown(run)


def test_lines_are_read_once_and_anew_after_a_cut(run):
    tail = tails.tail_of(run)
    tail.read()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 2}\nnot JSON\n{"step": 3, "lo')
    tail.read()
    assert [row["step"] for row in tail.rows] == [0, 1, 2]
    with open(run / "metrics.jsonl", "a") as file:
        file.write('ss": 1}\n')
    tail.read()
    assert tail.rows[-1] == {"step": 3, "loss": 1}
    write(run, [{"step": 0}])
    tail.read()
    assert tail.rows == [{"step": 0}]


def test_a_line_that_says_resumed_is_no_time(run):
    (run / "timing.jsonl").write_text('{"step": 1, "seconds": 100}\n{"step": 1, "resumed": true}\n')
    assert "1e+02 s a step" in shown(run)
    (run / "timing.jsonl").write_text('{"step": 1, "resumed": true}\n')
    assert "no times yet" in shown(run)


def test_no_configuration_and_no_times(tmp_path):
    write(tmp_path, [{"step": 5, "loss": float("nan")}])
    assert "step 5; last line" in shown(tmp_path)


def test_no_run(tmp_path, capsys):
    assert main(["watch", str(tmp_path)]) == 2
    assert "no run to watch" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trl_run(tmp_path_factory):
    """A folder as a TRL run from Python leaves it: four steps, a checkpoint after the second."""
    run = tmp_path_factory.mktemp("trl")
    rows = [
        {"prompt_id": p, "step": step, "round": 0, "n": n, "successes": 2, "tokens": 10, "predicted_mean": 0.5}
        for step in (1, 2, 3, 4)
        for p, n in (("a", 3), ("b", 5))
    ]
    (run / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    logged = [{"step": step, "loss": 0.5 * step, "step_time": 2.0, "allotment/unscored": 0.0} for step in (1, 2)]
    history = [*logged, {"step": 2, "eval_reward": 0.75, "eval_other_reward": 0.25}]
    save_checkpoint(run, 2, history)
    return run


def save_checkpoint(run, step, history):
    (run / f"checkpoint-{step}").mkdir(exist_ok=True)
    state = {"global_step": step, "max_steps": 6, "log_history": history}
    (run / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))


def test_a_trl_run_from_python(trl_run, capsys):
    assert main(["watch", str(trl_run), "--once"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "step 4 of 6, 2 s a step, 4 s left; last line" in said
    for figure in ("rollouts_total 32", "min_count 3", "success 0.533333", "loss 1 ", "eval_reward 0.75"):
        assert figure in said, figure


def test_a_trl_run_is_read_as_it_grows(trl_run, tmp_path):
    run = shutil.copytree(trl_run, tmp_path / "run")
    tail = tails.tail_of(run)
    tail.read()
    assert (tail.rows[-1]["step"], watch.is_finished(tail)) == (4, False)
    with open(run / "rollouts.jsonl", "a") as file:
        file.write('{"prompt_id": "a", "step": 5, "n": 8, "successes": 1, "tokens": 9}\n{"prompt_id": "b", "st')
    tail.read()
    assert tail.rows[-1]["rollouts_total"] == 40
    with open(run / "rollouts.jsonl", "a") as file:
        file.write('ep": 6, "n": 8, "successes": 1, "tokens": 9}\n')
    save_checkpoint(run, 6, [{"step": 6, "eval_reward": 1.0}])
    tail.read()
    assert (tail.rows[-1]["eval_reward"], watch.is_finished(tail)) == (1.0, True)


def test_a_trl_run_before_its_first_checkpoint(trl_run, tmp_path):
    run = shutil.copytree(trl_run, tmp_path / "run")
    shutil.rmtree(run / "checkpoint-2")
    assert "step 4; last line" in shown(run)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_a_sparkline_has_its_ends_at_the_ends(values):
    line = watch.sparkline(values)
    assert len(line) == min(watch.WIDTH, len(values))
    if len(values) <= watch.WIDTH and max(values) - min(values) > 1e-9:
        assert line[values.index(max(values))] == watch.BARS[-1]
        assert line[values.index(min(values))] == watch.BARS[0]
