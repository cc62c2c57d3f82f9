"""Reward functions of one's own, several verifiers and LoRA on the command line of ``allotment train trl``."""

import inspect
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from allotment.cli.main import main
from allotment.integrations.trl.ragged import chunking
from allotment.lab.hugging_face import rows
from allotment.trainers.trl.own_rewards import load_reward, name_of
from allotment.trainers.trl.returned import Checked, checked_rewards

OWN = '''
from dataclasses import dataclass

SIZES = []

@dataclass
class Counted:
    value: float

def few_letters(completions, answer, **columns):
    """Real-valued: the shorter the better."""
    return [Counted(1.0 - len(c) / 40).value for c in completions]

def is_right(completions, answer, **columns):
    return [float(a in c) for c, a in zip(completions, answer)]

def level(completions, hardness, **columns):
    return [h * len(c) / 10 for c, h in zip(completions, hardness)]

def narrow(completions):
    return [0.0 for _ in completions]

def needs_more(completions, tests, **columns):
    return [0.0 for _ in completions]

def in_groups(completions, group_ids, **columns):
    SIZES.append(sorted(map(group_ids.count, set(group_ids))))
    return [float(len(c) % 2) for c in completions]

def wrong_length(completions, **columns):
    return [0.0]

def one_number(completions, **columns):
    return 0.5

def words(completions, **columns):
    return ["right" for _ in completions]

async def later(completions, **columns):
    return [float(len(c) % 2) for c in completions]

async def later_wrong(completions, **columns):
    return [0.0] * (len(completions) + 1)

def by_chunks(completions, num_generations=4, **columns):
    return [None if len(c) % 3 else 1 for c in completions]

not_callable = 3
'''


@pytest.fixture
def own(tmp_path):
    """A file of reward functions."""
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return file


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_function_of_ones_own_in_place_of_the_verifier(command, own, tmp_path):
    assert main(command(reward=f"{own}:is_right", steps=2)) == 0
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [0, 1, 2]
    assert all(0 <= row["held_out_success"] <= 1 for row in (metrics[0], metrics[-1]))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["reward"] == [f"{own}:is_right"]


def test_a_verifier_beside_it_says_what_a_success_is(command, own, tmp_path):
    """Successes of the log are the verifier's, though the reward is a weighted sum that is never 0 or 1."""
    flags = {"verifier": "exact", "reward": f"{own}:few_letters", "reward_weights": (1.0, 0.25), "steps": 3}
    assert main(command("both", **flags)) == 0
    assert main(command("own", **{**flags, "success_reward": "few_letters"})) == 0
    both, other = (lines(tmp_path / name / "metrics.jsonl") for name in ("both", "own"))
    assert both[0]["held_out_success"] in {i / 4 for i in range(5)}
    assert other[0]["held_out_success"] not in {i / 4 for i in range(5)}  # a mean of real values
    logged = json.loads((tmp_path / "both" / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    trained = [row for row in logged if "rewards/few_letters/mean" in row]
    for row in trained:
        parts = row["rewards/exact/mean"] + 0.25 * row["rewards/few_letters/mean"]
        assert row["reward"] == pytest.approx(parts, abs=1e-4)
    n, k = (sum(row[key] for row in lines(tmp_path / "both" / "rollouts.jsonl")) for key in ("n", "successes"))
    assert k / n == pytest.approx(sum(row["rewards/exact/mean"] for row in trained) / len(trained), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wrong_length", "got:     1 rewards for 4 completions"),
        ("one_number", "got:     float: 0.5"),
        ("words", "'right' of type str among them"),
        ("later_wrong", "rewards for 4 completions"),
    ],
)
def test_rewards_that_are_none_of_the_completions(command, own, tmp_path, capsys, name, said):
    assert main(command(reward=f"{own}:{name}", steps=1)) == 2
    error = capsys.readouterr().err
    assert f"the reward function {name} gave no reward for each completion" in error
    assert said in error
    assert "a list of 4 numbers, one for each entry of completions" in error


def test_an_asynchronous_function(command, own, tmp_path):
    assert main(command(reward=f"{own}:later", steps=1)) == 0
    assert len(lines(tmp_path / "run" / "metrics.jsonl")) == 2


def test_checked_functions_are_seen_as_they_are(own):
    """TRL's adapter reads their code and arguments."""
    for name in ("by_chunks", "later"):
        function = load_reward(f"{own}:{name}")
        checked = Checked(function)
        assert name_of(checked) == name
        assert inspect.signature(checked) == inspect.signature(function)
        assert inspect.iscoroutinefunction(checked) == inspect.iscoroutinefunction(function)
    assert chunking([Checked(load_reward(f"{own}:by_chunks"))], object) == ["by_chunks"]
    values = [torch.tensor(1.0), np.float32(0.5), True, None, 2]
    assert checked_rewards(values, "any", 5) is values
    assert checked_rewards(torch.ones(3), "any", 3).tolist() == [1, 1, 1]


def test_several_verifiers(command, tmp_path):
    options = json.dumps({"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
    flags = {"dataset": "reasoning-gym:chain_sum", "dataset_options": options, "dataset_size": 30, "steps": 1}
    words = command(**flags, verifier=("reasoning-gym", "exact"))
    del words[words.index("--prompt-id-column") :][:2]
    assert main(words) == 0
    logged = json.loads((tmp_path / "run" / "checkpoint-1" / "trainer_state.json").read_text())["log_history"]
    assert any({"rewards/reasoning_gym/mean", "rewards/exact/mean"} <= row.keys() for row in logged)


def test_groups_are_told_in_training_and_evaluation(command, own, tmp_path):
    assert main(command(reward=f"{own}:in_groups", steps=2)) == 0
    (module,) = (m for name, m in sys.modules.items() if name.startswith("allotment_reward_own") and m.SIZES)
    assert [sizes for sizes in module.SIZES if sizes != [1, 1, 1, 1]] == [[4, 4, 4, 4]] * 2
    assert [1, 1, 1, 1] in module.SIZES  # evaluations: one completion each


def test_further_columns_and_no_answers(command, own, tmp_path):
    file = tmp_path / "levels.jsonl"
    chosen = rows("pool")[:20]
    lacking = [{"prompt": r["prompt"], "prompt_id": r["prompt_id"], "hardness": i} for i, r in enumerate(chosen)]
    file.write_text("".join(json.dumps(row) + "\n" for row in lacking))
    flags = {"dataset": file, "reward": f"{own}:level", "reward_columns": "hardness", "planner": "reward-variance"}
    assert main(command(**flags, steps=2)) == 0
    assert lines(tmp_path / "run" / "metrics.jsonl")[0]["held_out_success"] > 1  # a mean of real values, as rewarded
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "report.html")]) == 0
    assert main(command("none", dataset=file, steps=2)) == 2  # a verifier needs answers


def test_with_preferences(command, own, tmp_path):
    flags = {"objective": "on-policy-dpo", "reward": f"{own}:is_right", "lora": '{"r": 2}'}
    assert main(command(**flags, steps=2)) == 0
    assert lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 2


def test_lora_trains_the_adapter_alone_and_goes_on_after_a_break(command, tmp_path, monkeypatch):
    from safetensors import safe_open

    flags = {"lora": '{"r": 4, "lora_alpha": 8}', "steps": 4, "evaluate_every": 2, "learning_rate": 1e-2}
    assert main(command("whole", **flags)) == 0
    model = tmp_path / "whole" / "model"
    assert json.loads((model / "adapter_config.json").read_text())["r"] == 4
    assert not (model / "model.safetensors").exists()
    with safe_open(model / "adapter_model.safetensors", "pt") as file:
        sizes = {name: float(file.get_tensor(name).abs().sum()) for name in file.keys()}  # noqa: SIM118
    assert all("lora_" in name for name in sizes)
    assert any(size > 0 for name, size in sizes.items() if "lora_B" in name)  # 0 before any step
    assert main(command("part", **{**flags, "steps": 2})) == 0
    assert main(["train", "--resume", "--out", str(tmp_path / "part"), "--steps", "4"]) == 0
    assert (tmp_path / "part" / "rollouts.jsonl").read_text() == (tmp_path / "whole" / "rollouts.jsonl").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"reward": "own"}, "module:function, or path/to/file.py:function"),
        ({"reward": "no_such_package.rewards:right"}, "there is no module 'no_such_package'"),
        ({"reward": "/no/such.py:right"}, "there is no file /no/such.py"),
        ({"reward": "OWN:is_rigth"}, "did you mean"),
        ({"reward": "OWN:not_callable"}, "not_callable, of type int"),
        ({"reward": "OWN:Counted"}, "Counted, a class"),
        ({"reward": "OWN:narrow"}, "take **columns"),
        ({"reward": "OWN:needs_more"}, "further columns of a file are named in --reward-columns"),
        ({"reward": "OWN:in_groups", "objective": "on-policy-dpo"}, "missing a required argument: 'group_ids'"),
        ({"reward": ("OWN:is_right", "OWN:is_right")}, "two reward functions of one name"),
        ({"reward": "OWN:is_right", "reward_weights": (1.0, 2.0)}, "2 weights for is_right"),
        ({"reward": "OWN:is_right", "success_reward": "exact"}, "there is no reward function of that name"),
        ({"reward": "OWN:is_right", "reward_columns": "tests"}, "no column 'tests'"),
        ({"reward": "OWN:is_right", "reward_columns": "completion"}, "a name that is taken"),
        ({"reward": "BROKEN:right"}, "ZeroDivisionError"),
        ({"verifier": "exactly"}, "verifier"),
        ({"objective": "on-policy-dpo", "reward_weights": 2.0}, "no reward_weights or success_reward"),
        ({"lora": '{"rank": 8}'}, "peft has no such setting of LoRA"),
        ({"lora": '{"r": 0}'}, "these settings of LoRA cannot be used"),
        ({"lora": '{"target_modules": ["nowhere"]}'}, "these settings of LoRA cannot be used"),
    ],
)
def test_what_cannot_be_is_said_and_leaves_nothing(command, own, tmp_path, capsys, flags, said):
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    named = flags.get("reward", ())
    if named:
        places = [
            n.replace("OWN", str(own)).replace("BROKEN", str(broken))
            for n in ((named,) if isinstance(named, str) else named)
        ]
        flags = {**flags, "reward": tuple(places)}
    try:
        code = main(command(**flags))
    except SystemExit as ended:  # the parser's own
        code = ended.code
    assert code == 2
    text = capsys.readouterr()
    assert said in text.err + text.out
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_module_of_the_current_folder(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert load_reward("own:is_right")(completions=["ab"], answer=["b"]) == [1.0]
    sys.modules.pop("own")


def test_without_peft_the_extra_is_named(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert main(command(lora="{}")) == 2
    assert "pip install 'allotment[trl]'" in capsys.readouterr().err


def test_a_run_of_an_earlier_version_with_one_verifier_or_none():
    from allotment.trainers.trl.config import TRLTrainConfig

    for value, read in ((None, ()), ("exact", ("exact",))):
        assert TRLTrainConfig.from_values({"model": "m", "dataset": "d", "verifier": value}, "it").verifier == read
