"""``allotment train trl`` on the lab's Hugging Face folder, through the command itself."""

import json
from pathlib import Path

import pytest

from allotment.audit import read_log
from allotment.cli.main import main
from allotment.lab.hugging_face import rows
from allotment.trainers.trl import run as trl_run

CHECKPOINT = 2  # of the fixture ``command``
PREFERENCES = {"objective": "on-policy-dpo", "updates": 2}


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_run_leaves_what_audit_and_report_read(command, tmp_path, capsys):
    assert main(command()) == 0
    assert "step 5 · success pool" in capsys.readouterr().out
    out = tmp_path / "run"
    metrics, rollouts = lines(out / "metrics.jsonl"), lines(out / "rollouts.jsonl")
    assert [row["step"] for row in metrics] == [0, 1, 2, 3, 4, 5]
    assert [row["step"] for row in metrics if "held_out_success" in row] == [0, 3, 5]
    assert [sum(r["n"] for r in rollouts if r["step"] == s) for s in range(1, 6)] == [16] * 5
    assert metrics[-1]["tokens_total"] == sum(row["tokens"] for row in rollouts)
    assert metrics[-1]["rollouts_total"] == 80
    assert {row["prompt_id"] for row in rollouts} <= {row["prompt_id"] for row in rows("pool")}
    assert len(read_log(out / "rollouts.jsonl").visit) == len(rollouts)
    assert (out / "model" / "model.safetensors").exists()
    assert main(["audit", str(out / "rollouts.jsonl"), "--budget-per-prompt", "4"]) == 0
    assert main(["report", str(out), "--out", str(tmp_path / "report.html")]) == 0
    assert "vip" in (tmp_path / "report.html").read_text()


def test_rounds_of_preferences(command, tmp_path):
    """A step is a round of two updates, each on half as many pairs as there are rollouts."""
    assert main(command(**PREFERENCES, trl='{"pairs": "extreme", "beta": 0.2}')) == 0
    out = tmp_path / "run"
    metrics, rollouts = lines(out / "metrics.jsonl"), lines(out / "rollouts.jsonl")
    assert [row["step"] for row in metrics] == [0, *(row["step"] for row in lines(out / "timing.jsonl"))]
    assert [row["step"] for row in metrics] == [0, 1, 2, 3, 4, 5]
    assert [row["step"] for row in metrics if "held_out_success" in row] == [0, 3, 5]
    assert [sum(r["n"] for r in rollouts if r["step"] == s) for s in range(1, 6)] == [16] * 5
    assert [row["pairs"] for row in metrics[1:]] == [4 * (1 - row["without_pair"]) for row in metrics[1:]]
    assert metrics[-1]["rollouts_total"] == 80
    assert {"preference_accuracy", "margin", "success", "predicted_success", "loss"} <= metrics[-1].keys()
    saved = json.loads((out / "checkpoint-10" / "trainer_state.json").read_text())
    assert saved["global_step"] == saved["max_steps"] == 10
    assert main(["audit", str(out / "rollouts.jsonl"), "--budget-per-prompt", "4"]) == 0
    assert main(["report", str(out), "--out", str(tmp_path / "report.html")]) == 0


@pytest.mark.parametrize("flags", [{}, PREFERENCES], ids=["grpo", "on-policy-dpo"])
@pytest.mark.parametrize("stop", [1, 4], ids=["before the first checkpoint", "after a checkpoint"])
def test_an_interrupted_run_goes_on_as_if_it_never_was(command, tmp_path, monkeypatch, stop, flags):
    assert main(command("whole", **flags)) == 0
    append = trl_run.RunDirectory.append

    def interrupted(self, log, rows):
        append(self, log, rows)
        if log == "metrics.jsonl" and rows[0]["step"] == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(trl_run.RunDirectory, "append", interrupted)
    assert main(command("cut", **flags)) == 130
    monkeypatch.undo()
    if stop > CHECKPOINT:
        (tmp_path / "cut" / f"checkpoint-{stop * flags.get('updates', 1)}").mkdir()  # killed while it was saved
    assert main(["train", "--resume", "--out", str(tmp_path / "cut")]) == 0
    for log in ("metrics.jsonl", "rollouts.jsonl"):
        assert (tmp_path / "cut" / log).read_text() == (tmp_path / "whole" / log).read_text()
    resumed = [row for row in lines(tmp_path / "cut" / "timing.jsonl") if "resumed" in row]
    assert resumed == ([{"step": CHECKPOINT, "resumed": True}] if stop > CHECKPOINT else [])


@pytest.mark.parametrize("estimator", ["rloo", "dr_grpo"])
def test_settings_reach_trl(command, tmp_path, estimator):
    arguments = {"estimator": estimator, "steps": 1, "planner": "uniform", "trl": json.dumps({"temperature": 0.7})}
    assert main(command(**arguments)) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["trl"] == {"temperature": 0.7}


def test_a_reasoning_gym_task(command, tmp_path):
    options = json.dumps({"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
    flags = {"dataset": "reasoning-gym:chain_sum", "dataset_options": options, "dataset_size": 30, "steps": 1}
    arguments = command(**flags)
    del arguments[arguments.index("--prompt-id-column") :][:2]
    assert main(arguments) == 0
    assert lines(tmp_path / "run" / "rollouts.jsonl")[0]["prompt_id"].startswith("chain_sum/")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"model": "/no/such/model"}, "the model cannot be loaded"),
        ({"objective": "flowrl"}, "cannot carry out the objective 'flowrl'"),
        ({"updates": 2}, "only with the objective on-policy-dpo"),
        ({**PREFERENCES, "micro_batch": 1}, "into pairs"),
        ({**PREFERENCES, "trl": '{"sync_ref_model": true}'}, "the reference is fixed"),
        ({**PREFERENCES, "trl": '{"prompts_per_round": 3}'}, "use the flag of the run"),
        ({"micro_batch": 7}, "micro_batch does not divide the budget"),
        ({"trl": '{"temprature": 1}'}, "did you mean 'temperature'?"),
        ({"trl": '{"max_steps": 3}'}, "use the flag of the run"),
        ({"planner": "ridge"}, "predicts from embeddings"),
        ({"dataset": "/no/such.jsonl"}, "a file cannot be read"),
        ({"held_out": 40}, "no prompts are left to train on"),
        ({"rollouts_per_prompt": 2, "bounds": (3, 32)}, "lower"),
    ],
)
def test_what_cannot_be_is_said_and_leaves_nothing(command, tmp_path, capsys, flags, said):
    assert main(command(**flags)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


def test_the_help_names_the_objective(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "trl", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "on-policy-dpo: DPOTrainer on pairs of a prompt's rollouts" in said


def test_an_unknown_trainer(capsys):
    assert main(["train", "verl"]) == 2
    assert "lab, trl" in capsys.readouterr().err


def test_a_run_past_its_checkpoint_keeps_its_settings(command, tmp_path, capsys):
    assert main(command(steps=1)) == 0
    assert main(["train", "--resume", "--out", str(tmp_path / "run"), "--learning-rate", "1e-3"]) == 2
    assert "a resumed run keeps its configuration" in capsys.readouterr().err
