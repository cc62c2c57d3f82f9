"""Checkpoints: a run that is killed goes on as if it had not been."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import TrainerCallback
from trl_cases import OURS, STOCK, dataset, figures, make, train
from trl_killed import PROMPTS, RUN, whole

from allotment.errors import AllotmentError, RunDirectoryError, StateError
from allotment.run_logs.one_writer import TRAINER_LOCK, one_writer
from allotment.state import load_state, save_state

SHORT = {**RUN, "max_steps": 6, "save_steps": 2}
STOCK_SHORT = {k: v for k, v in SHORT.items() if k != "candidate_prompts"}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder that a killed process left behind."""
    folder = tmp_path_factory.mktemp("killed")
    script = Path(__file__).with_name("trl_killed.py")
    done = subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return whole(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def left(killed, tmp_path):
    """A copy of it, to go on in."""
    return Path(shutil.copytree(killed, tmp_path / "run"))


def log_of(folder):
    return Path(folder, "rollouts.jsonl").read_bytes()


@pytest.mark.parametrize("tail", [b"", b'{"prompt_id": 3, "st'], ids=["whole", "last line cut short"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(tail, left, uninterrupted):
    assert log_of(left).count(b'"step": 6,') == 4
    with open(left / "rollouts.jsonl", "ab") as file:
        file.write(tail)
    resumed = whole(left, resume=str(left / "checkpoint-4"))
    for mine, theirs in zip(resumed.batches, uninterrupted.batches[4:], strict=True):
        assert mine == theirs
    assert figures(resumed)[4:-1] == figures(uninterrupted)[4:-1]
    assert log_of(left) == log_of(uninterrupted.args.output_dir)
    assert resumed.planner.state_dict().keys() == uninterrupted.planner.state_dict().keys()
    assert (left / "checkpoint-8" / "planner.safetensors").read_bytes() == Path(
        uninterrupted.args.output_dir, "checkpoint-8", "planner.safetensors"
    ).read_bytes()


def test_the_run_that_is_compared_with_adapts(uninterrupted):
    lines = log_of(uninterrupted.args.output_dir).splitlines()
    assert len({line.partition(b'"n": ')[2][:2] for line in lines}) > 1


def test_a_damaged_planner_file_is_named(left):
    path = left / "checkpoint-4" / "planner.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StateError, match=r"planner\.safetensors"):
        whole(left, resume=str(left / "checkpoint-4"))


class Restored(TrainerCallback):
    """The planner's state when training begins."""

    def on_train_begin(self, args, state, control, **_):
        self.state = self.trainer.planner.state_dict()


def restored(left, **settings):
    """A trainer that goes on in ``left``, and its planner's state before the first step."""
    trainer, config = OURS["grpo"]
    callback, data = Restored(), settings.pop("data", dataset(PROMPTS))
    callback.trainer = make(trainer, config, left, data=data, **{**RUN, **settings, "max_steps": 4})
    callback.trainer.add_callback(callback)
    callback.trainer.train(resume_from_checkpoint=str(left / "checkpoint-4"))
    return callback.trainer, callback.state


@pytest.mark.parametrize(
    "other", [{"planner_kwargs": {"bounds": (2, 9), "estimator": "rloo"}}, {"per_device_train_batch_size": 48}]
)
def test_beliefs_survive_another_batch(other, left):
    _, state = restored(left, **other)
    saved = load_state(left / "checkpoint-4" / "planner.safetensors", kind="trl-planner")["planner"]
    for name, own in [("ours", state), ("theirs", saved)]:
        save_state(left / name, own["predictor"], kind="belief")
    assert (left / "ours").read_bytes() == (left / "theirs").read_bytes()
    assert state["settings"] != saved["settings"]


def test_beliefs_of_another_kind_are_refused(left):
    trainer, config = OURS["grpo"]
    settings = {**RUN, "success_threshold": 0.7}
    with pytest.raises(StateError, match="success_threshold"):
        train(trainer, config, left, data=dataset(PROMPTS), resume=str(left / "checkpoint-4"), **settings)


def test_a_filtered_data_set_keeps_beliefs_by_prompt(left):
    chosen = [11, *range(2, 9)]
    made, state = restored(left, data=dataset(PROMPTS).select(chosen))
    whole_ = make(*OURS["grpo"], left / "x", data=dataset(PROMPTS), **RUN)
    ids = made._identity.all()
    assert ids == [whole_._identity.all()[i] for i in chosen]
    for trainer in (made, whole_):
        trainer.planner.load_state_dict(state)
    ours, theirs = (t.planner.predictor.predict(ids).mean for t in (made, whole_))
    assert np.array_equal(ours, theirs)
    assert len(set(ours.tolist())) > 2


def test_a_damaged_log_is_named(left):
    lines = log_of(left).splitlines(keepends=True)
    (left / "rollouts.jsonl").write_bytes(b"".join([*lines[:5], b"{nonsense\n", *lines[5:]]))
    with pytest.raises(AllotmentError, match=r"rollouts\.jsonl"):
        whole(left, resume=str(left / "checkpoint-4"))


def test_the_checkpoint_of_a_stock_run_is_gone_on_from(tmp_path, caplog):
    train(*STOCK["grpo"], tmp_path, data=dataset(PROMPTS), **{**STOCK_SHORT, "max_steps": 2})
    resumed = train(*OURS["grpo"], tmp_path, resume=str(tmp_path / "checkpoint-2"), **{**SHORT, "candidate_prompts": 4})
    assert "starts without a record" in caplog.text
    assert resumed.state.global_step == 6
    assert [log_of(tmp_path).count(f'"step": {s},'.encode()) for s in range(1, 6)] == [4, 4, 4, 4, 0]


def test_a_checkpoint_without_a_planner_does_not_go_on_in_the_log_of_another(left, caplog):
    (left / "checkpoint-4" / "planner.safetensors").unlink()
    old = log_of(left)
    resumed = whole(left, resume=str(left / "checkpoint-4"))
    assert "starts without a record" in caplog.text
    steps = [line.partition(b'"step": ')[2].partition(b",")[0] for line in log_of(left).splitlines()]
    assert steps == [str(s).encode() for s in range(1, 5) for _ in range(4)]
    assert (left / "rollouts-1.jsonl").read_bytes() == old
    assert len(resumed.batches) == 4


def test_a_new_run_keeps_the_log_of_an_old_one(tmp_path, caplog):
    runs = []
    for _ in range(3):
        train(*OURS["grpo"], tmp_path, max_steps=1 + len(runs))
        runs.append(log_of(tmp_path))
    assert [log.count(b"\n") for log in runs] == [4, 8, 12]
    assert (tmp_path / "rollouts-1.jsonl").read_bytes() == runs[0]
    assert (tmp_path / "rollouts-2.jsonl").read_bytes() == runs[1]
    assert "rollouts-2.jsonl" in caplog.text


def test_training_twice_with_one_trainer_goes_on_in_its_log(tmp_path):
    trainer = train(*OURS["grpo"], tmp_path, max_steps=2)
    trainer.train()
    assert log_of(tmp_path).count(b"\n") == 16
    assert not (tmp_path / "rollouts-1.jsonl").exists()


def test_a_checkpoint_between_iterations(tmp_path):
    """TRL generates anew after it; the planner takes part in what is done, and no step of the log stands twice."""
    settings = {**SHORT, "num_iterations": 2, "save_steps": 3, "max_steps": 8}
    trainer, config = OURS["grpo"]
    train(trainer, config, tmp_path, data=dataset(PROMPTS), **settings)
    resumed = train(trainer, config, tmp_path, data=dataset(PROMPTS), resume=str(tmp_path / "checkpoint-3"), **settings)
    steps = [line.partition(b'"step": ')[2].partition(b",")[0] for line in log_of(tmp_path).splitlines()]
    assert steps == sorted(steps)
    assert max(steps.count(s) for s in steps) == 4
    assert not resumed.planner.open_plans


def test_a_second_process_in_the_same_folder_is_refused(left):
    before = log_of(left)
    with one_writer(left, lock=TRAINER_LOCK), pytest.raises(RunDirectoryError, match="another process is at work"):
        whole(left, resume=str(left / "checkpoint-4"))
    assert log_of(left) == before
    whole(left, resume=str(left / "checkpoint-4"))
    assert not (left / TRAINER_LOCK).exists()
