"""Preferences in TRL: the data set of pairs, and rounds of on-policy DPO against a fixed reference."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import log_softmax, logsigmoid
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer
from trl_cases import CHARS, SETTINGS, dataset, model, rows, sometimes_none, success, tokenizer

from allotment.errors import ConfigError, InvalidInputError
from allotment.integrations.trl.preference_data import draw, prompts_of_round
from allotment.integrations.trl.preferences import AllotmentDPOConfig, AllotmentDPOTrainer, preference_dataset
from allotment.integrations.trl.prompts import PromptIdentity

BETA = 0.3
OF_TRL = {k: v for k, v in SETTINGS.items() if k not in ("num_generations", "max_completion_length")}
ROUNDS = {
    **OF_TRL,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 64,
    "prompts_per_round": 4,
    "num_generations": 5,
    "max_completion_length": 4,
    "planner_kwargs": {"bounds": [2, 9]},
    "beta": BETA,
    "max_steps": 4,
}
CHAT = (
    "{% for m in messages %}{{ '=' if m['role'] == 'assistant' else '' }}{{ m['content'] }}{% endfor %}"
    "{{ '=' if add_generation_prompt else '' }}"
)
EXAMPLE = {
    "prompts": ["1+1=", "1+1=", "1+1=", "2+2=", "2+2=", "3="],
    "completions": ["2", "3", "2a", "4", "4", "3"],
    "rewards": [1, 0, 1, 1, 1, 0],
    "group_ids": ["x", "x", "x", "y", "y", "z"],
}


def trainer(folder, *, of=None, rewards=success, data=None, kind=AllotmentDPOTrainer, **changed):
    """A trainer of rounds on the small model; ``of``: what else its constructor takes."""
    args = AllotmentDPOConfig(output_dir=str(folder), **{**ROUNDS, **changed})
    data = Dataset.from_list(rows()) if data is None else data
    extra = {"model": model(), "processing_class": tokenizer(), **(of or {})}
    return kind(reward_funcs=rewards, args=args, train_dataset=data, **extra)


def trained(folder, resume=None, **changed):
    made = trainer(folder, **changed)
    made.train(resume_from_checkpoint=resume)
    return made


def steps(made):
    return [row for row in made.state.log_history if "loss" in row]


def weights(of):
    return {name: value.clone() for name, value in of.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def log_lines(folder):
    return [json.loads(line) for line in Path(folder, "rollouts.jsonl").read_text().splitlines()]


@torch.no_grad()
def log_probability(of, prompt, completion):
    """Of the tokens of a completion after those of a prompt, one sequence at a time, without padding."""
    tokens = torch.tensor([prompt + completion])
    logs_TV = log_softmax(of(input_ids=tokens).logits[0].double(), dim=-1)[len(prompt) - 1 : -1]
    return logs_TV[torch.arange(len(completion)), completion].sum().item()


def dpo_loss(policy, reference, pairs):
    """Mean of -log sigmoid(beta D) over pairs of (prompt, chosen, rejected) in tokens."""

    def ratio(prompt, completion):
        return log_probability(policy, prompt, completion) - log_probability(reference, prompt, completion)

    margins = [ratio(p, c) - ratio(p, r) for p, c, r in pairs]
    return sum(-logsigmoid(torch.tensor(BETA * d, dtype=torch.float64)).item() for d in margins) / len(margins)


def recording():
    """The trainer, with the pairs and the policy of every forward and backward pass in ``seen``."""

    class Recording(AllotmentDPOTrainer):
        seen = ()

        def training_step(self, model, inputs, *args, **kwargs):
            self.seen = (*self.seen, (_pairs(inputs), weights(model)))
            return super().training_step(model, inputs, *args, **kwargs)

    return Recording


def _pairs(inputs):
    """(prompt, chosen, rejected) in tokens, read from what TRL's collator made; none in a round without pairs."""
    if "completion_mask" not in inputs:
        return []
    tokens, completions = inputs["input_ids"], inputs["completion_mask"].bool()
    prompts = inputs["attention_mask"].bool() & ~completions
    half = len(tokens) // 2
    return [
        (tokens[i][prompts[i]].tolist(), tokens[i][completions[i]].tolist(), tokens[j][completions[j]].tolist())
        for i, j in zip(range(half), range(half, 2 * half), strict=True)
    ]


# The data set


def test_a_data_set_of_pairs(caplog):
    with caplog.at_level(logging.INFO, logger="allotment"):
        assert preference_dataset(**EXAMPLE).to_list() == [
            {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
            {"prompt": "1+1=", "chosen": "2a", "rejected": "3"},
        ]
    assert "2 pairs; 2 of 3 prompts have none" in caplog.text
    assert preference_dataset(**EXAMPLE, pairs="extreme").to_list() == preference_dataset(**EXAMPLE).to_list()[:1]


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=20), st.integers(1, 60), st.integers(0, 9))
def test_a_draw_is_by_shares(shares, count, seed):
    shares_P = np.array(shares)
    drawn = draw(shares_P, count, np.random.default_rng(seed))
    expected_P = count * shares_P / shares_P.sum()
    times_P = np.bincount(drawn, minlength=len(shares))
    assert len(drawn) == count
    assert (np.abs(times_P - expected_P) < 1 + 1e-9).all()


def test_a_draw_is_unbiased_and_in_random_order():
    shares_P, generator = np.array([0.5, 0.2, 0.3]), np.random.default_rng(0)
    times = np.array([np.bincount(draw(shares_P, 3, generator), minlength=3) for _ in range(4000)])
    assert (np.abs(times.mean(0) - 3 * shares_P) < 4 * times.std(0) / math.sqrt(4000) + 1e-12).all()
    assert {tuple(draw(np.ones(3), 3, generator)) for _ in range(200)} == {
        (0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)
    }  # fmt: skip


@settings(max_examples=30)
@given(st.integers(1, 20), st.data())
def test_rounds_go_through_all_prompts(prompts, data):
    size = data.draw(st.integers(1, prompts))
    ids = [f"p{i}" for i in range(prompts)]
    laps = prompts // size
    drawn = [prompts_of_round(ids, size, number, seed=3) for number in range(2 * laps)]
    for lap in (drawn[:laps], drawn[laps:]):
        of_lap = [prompt for batch in lap for prompt in batch]
        assert len(of_lap) == len(set(of_lap)) == laps * size
        assert set(of_lap) <= set(ids)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rewards": [1, 0, math.nan, 1, 1, 0]}, "rollout 2 is not finite"),
        ({"rewards": [1, 0, None, 1, 1, 0]}, "rollout 2 is not finite"),
        ({"rewards": [1, 0]}, "6 prompts, 6 completions, 2 rewards, 6 group ids"),
        ({"prompts": [], "completions": [], "rewards": [], "group_ids": []}, "not rewarded completions"),
        ({"rewards": [1] * 6}, "no pair to learn from"),
        ({"group_ids": list("abcdef")}, "no pair to learn from"),
        ({"group_ids": list("xxyyyz")}, "completions of different prompts are in one group"),
        ({"pairs": "best"}, "all, extreme"),
    ],
)
def test_a_data_set_that_cannot_be(changed, said):
    with pytest.raises(InvalidInputError, match=said):
        preference_dataset(**{**EXAMPLE, **changed})


@pytest.mark.parametrize("conversational", [False, True])
def test_the_loss_of_trl_on_the_data_set_is_that_by_hand(conversational, tmp_path):
    """TRL adds the end token to texts; the chat template puts ``=`` before an answer."""

    def text(role, content):
        return [{"role": role, "content": content.strip("=")}] if conversational else content

    given_texts = {
        "prompts": [text("user", p) for p in ("1+1=", "1+1=", "1+1=", "2+2=", "2+2=")],
        "completions": [text("assistant", c) for c in ("2", "31", "1 ?", "4", "5ab")],
        "rewards": [1, 0.5, 0, 0, 1],
        "group_ids": [0, 0, 0, 1, 1],
    }
    data, encode = preference_dataset(**given_texts), tokenizer()
    encode.chat_template = CHAT
    policy, reference = model(), model()
    with torch.no_grad():
        policy.lm_head.weight.add_(0.3 * torch.randn(policy.lm_head.weight.shape))
    pairs = []
    for row in data:
        texts = [row[name][0]["content"] if conversational else row[name] for name in ("prompt", "chosen", "rejected")]
        prompt, chosen, rejected = texts[0].strip("=") + "=", *texts[1:]
        end = [] if conversational else [encode.eos_token_id]
        pairs.append((encode(prompt)["input_ids"], *(encode(t)["input_ids"] + end for t in (chosen, rejected))))
    before = dpo_loss(policy, reference, pairs)
    args = DPOConfig(
        output_dir=str(tmp_path), **{**OF_TRL, "per_device_train_batch_size": len(pairs), "max_steps": 1}, beta=BETA
    )
    stock = DPOTrainer(policy, reference, args, train_dataset=data, processing_class=encode)
    stock.train()
    assert steps(stock)[0]["loss"] == pytest.approx(before, abs=2e-6)


# Rounds


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Six rounds, each of two optimiser steps of two passes, and where they lie."""
    folder = tmp_path_factory.mktemp("rounds")
    changed = {"updates_per_round": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 3}
    changed |= {"learning_rate": 3e-3, "seed": 4}  # with these every round has a pair
    return trained(folder, kind=recording(), max_steps=12, lr_scheduler_type="linear", **changed)


def test_every_round_spends_its_budget_on_its_prompts(run):
    lines, ids = log_lines(run.args.output_dir), PromptIdentity(dataset(), None).all()
    for step in range(1, 7):
        of_round = [line for line in lines if line["step"] == step]
        assert sum(line["n"] for line in of_round) == 20
        assert [line["prompt_id"] for line in of_round] == prompts_of_round(ids, 4, step - 1, run.args.seed)
    assert len({line["n"] for line in lines}) > 1


def test_the_right_is_chosen_and_the_wrong_rejected(run):
    decode, easy = tokenizer().decode, {row["prompt"]: row["easy"] for row in rows()}
    assert len(run.seen) == 24
    for pairs, _ in run.seen:
        assert len(pairs) == 3
        for prompt, chosen, rejected in pairs:
            of_prompt = [easy[decode(prompt)]]
            assert success([decode(chosen, skip_special_tokens=True)], of_prompt) == [1.0]
            assert success([decode(rejected, skip_special_tokens=True)], of_prompt) == [0.0]


def test_the_loss_of_every_step_is_that_by_hand(run):
    reference, policy = model(), model()
    for step, row in enumerate(steps(run)):
        (first, at), (second, _) = run.seen[2 * step : 2 * step + 2]
        policy.load_state_dict(at)
        assert row["loss"] == pytest.approx(dpo_loss(policy, reference, first + second), abs=2e-6)


def test_the_reference_never_moves(run):
    assert same(weights(run.ref_model), weights(model()))
    assert not same(weights(run.model), weights(model()))
    first, *later = steps(run)
    assert first["rewards/margins"] == first["rewards/chosen"] == 0
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert all(row["rewards/margins"] != 0 for row in later)


def test_moments_and_schedule_go_on_from_round_to_round(run):
    assert [row["learning_rate"] for row in steps(run)] == pytest.approx([3e-3 * (1 - i / 12) for i in range(12)])
    assert {int(entry["step"]) for entry in run.optimizer.state_dict()["state"].values()} == {12}


def test_figures_of_a_round(run):
    first, second = steps(run)[:2]
    assert first["allotment/budget"] == 20
    by_hand = sum(line["successes"] * (line["n"] - line["successes"]) for line in log_lines(run.args.output_dir)[:4])
    assert first["allotment/pairs"] == by_hand
    mixed = [0 < line["successes"] < line["n"] for line in log_lines(run.args.output_dir)[:4]]
    assert first["allotment/without_pair"] == 1 - sum(mixed) / 4
    assert not any(name.startswith("allotment/") for name in second)
    told = [line["successes"] / line["n"] for line in log_lines(run.args.output_dir)[:4]]
    assert first["allotment/success"] == pytest.approx(sum(told) / 4)


def test_a_model_by_its_folder_has_the_folder_for_reference(tmp_path):
    model().save_pretrained(tmp_path / "model")
    made = trained(tmp_path, of={"model": str(tmp_path / "model")}, max_steps=2)
    assert same(weights(made.ref_model), weights(model()))
    assert not same(weights(made.model), weights(model()))


def test_another_reference(tmp_path):
    other = model()
    with torch.no_grad():
        other.lm_head.weight.mul_(1.5)
    made = trained(tmp_path, of={"ref_model": other}, max_steps=1)
    assert steps(made)[0]["rewards/margins"] != 0


def test_the_loss_is_trls_own_by_name(tmp_path):
    """At the reference the loss ipo is (0 - 1 / (2 beta))^2, hinge 1."""
    for loss, at_reference in (("ipo", (1 / (2 * BETA)) ** 2), ("hinge", 1.0)):
        made = trained(tmp_path / loss, loss_type=loss, max_steps=1)
        assert steps(made)[0]["loss"] == pytest.approx(at_reference, abs=1e-6)


def test_best_and_worst(tmp_path):
    made = trained(tmp_path, pairs="extreme", max_steps=2)
    for row in steps(made):
        assert row["allotment/pairs"] == pytest.approx(4 * (1 - row["allotment/without_pair"]))


def test_a_round_without_pairs_changes_nothing(tmp_path):
    """Not even by the momentum of the rounds before."""
    calls = []

    def then_equal(completions, easy, **_):
        calls.append(len(completions))
        return success(completions, easy) if len(calls) < 3 else [1.0] * len(completions)

    made = trained(tmp_path, rewards=then_equal, kind=recording(), lr_scheduler_type="constant")
    after_two = made.seen[2][1]
    assert not same(after_two, made.seen[1][1])
    assert same(after_two, weights(made.model))
    assert [row["allotment/pairs"] > 0 for row in steps(made)] == [True, True, False, False]
    assert [row["loss"] for row in steps(made)[2:]] == [0, 0]
    assert calls == [20] * 4


def test_a_first_round_without_pairs_is_logged_too(tmp_path):
    made = trained(tmp_path, rewards=lambda completions, **_: [1.0] * len(completions), max_steps=2)
    assert [row["allotment/pairs"] for row in steps(made)] == [0, 0]
    assert [row["allotment/without_pair"] for row in steps(made)] == [1, 1]
    assert same(weights(made.model), weights(model()))


def test_rollouts_without_a_reward_are_in_no_pair(tmp_path):
    made = trained(tmp_path, rewards=sometimes_none, kind=recording(), max_steps=3)
    assert sum(row["allotment/unscored"] for row in steps(made)) > 0
    decode = tokenizer().decode
    for pairs, _ in made.seen:
        for _, chosen, rejected in pairs:
            assert all(decode(ids)[1:2] not in CHARS[:9] or len(ids) < 2 for ids in (chosen, rejected))


def test_several_rewards_are_added_up(tmp_path):
    def length(completion_ids, **_):
        return [len(ids) / 10 for ids in completion_ids]

    made = trained(tmp_path, rewards=[success, length], max_steps=1)
    assert steps(made)[0]["allotment/pairs"] > 0


def test_messages(tmp_path):
    """The chat template puts ``=`` after a prompt; reward functions get messages."""

    def of_messages(completions, easy, **_):
        assert all([m["role"] for m in completion] == ["assistant"] for completion in completions)
        return success([completion[0]["content"] for completion in completions], easy)

    chats = [{**row, "prompt": [{"role": "user", "content": row["prompt"].strip("=")}]} for row in rows()]
    by_text = trained(tmp_path / "text", kind=recording(), max_steps=2)
    by_chat = trained(
        tmp_path / "chat", kind=recording(), max_steps=2, rewards=of_messages, data=Dataset.from_list(chats)
    )
    assert [pairs for pairs, _ in by_chat.seen] == [pairs for pairs, _ in by_text.seen]


def test_evaluation_is_the_reward_of_samples(tmp_path):
    data = Dataset.from_list(rows(6))
    sets = {"pool": data, "held_out": data.select([0])}
    made = trained(tmp_path, of={"eval_dataset": sets}, max_steps=2, eval_strategy="steps", eval_steps=1)
    evaluated = [row for row in made.state.log_history if "eval_pool_reward" in row]
    assert [row["step"] for row in evaluated] == [1, 2]
    assert all(0 <= row["eval_pool_reward"] <= 1 for row in evaluated)
    assert made.evaluate(metric_key_prefix="eval")["eval_held_out_reward"] == 0  # nothing is right for the first prompt
    assert made.evaluate(data, metric_key_prefix="test").keys() == {"test_reward"}
    assert made.model.training


KILLED = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "updates_per_round": 2}


class Kill(TrainerCallback):
    """In the middle of the round after the checkpoint."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 7:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_goes_on_to_the_last_bit(tmp_path):
    whole = trained(tmp_path / "whole", **KILLED)
    killed = subprocess.run([sys.executable, __file__, str(tmp_path / "cut")], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(log_lines(tmp_path / "cut")) == 16  # the round under way has told the planner and written its lines
    resumed = trained(tmp_path / "cut", **KILLED, resume=str(tmp_path / "cut" / "checkpoint-4"))
    assert same(weights(resumed.model), weights(whole.model))
    assert same(weights(resumed.ref_model), weights(whole.ref_model))
    for file in ("rollouts.jsonl", "checkpoint-8/planner.safetensors", "checkpoint-8/model.safetensors"):
        assert Path(tmp_path, "cut", file).read_bytes() == Path(tmp_path, "whole", file).read_bytes()
    unlike = ("step_time", "allotment/seconds", "num_tokens")  # TRL counts tokens from 0 again
    figures = [[{k: v for k, v in row.items() if k not in unlike} for row in steps(made)] for made in (resumed, whole)]
    assert figures[0] == figures[1]


@pytest.mark.parametrize(
    ("rewards", "error", "said"),
    [
        (lambda completions, **_: [math.nan] * len(completions), InvalidInputError, "a finite number or None"),
        (lambda completions, **_: [1.0], InvalidInputError, "1 values"),
        (lambda completions, **_: [None] * len(completions), ConfigError, "None for every rollout"),
        ("a-reward-model", ConfigError, "not reward functions"),
    ],
)
def test_rewards_that_cannot_be_used(rewards, error, said, tmp_path):
    with pytest.raises(error, match=said):
        trained(tmp_path, rewards=rewards)


def test_an_error_leaves_no_open_plan(tmp_path):
    made = trainer(tmp_path, rewards=lambda completions, **_: [math.nan] * len(completions))
    with pytest.raises(InvalidInputError):
        made.train()
    assert made.planner.open_plans == ()
    assert not Path(tmp_path, "rollouts.jsonl").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"updates_per_round": 2, "save_strategy": "steps", "save_steps": 3}, "a multiple of updates_per_round = 2"),
        ({"updates_per_round": 3}, "a multiple of updates_per_round = 3"),
        ({"num_generations": 1}, "a whole number >= 2"),
        ({"updates_per_round": 0}, "a whole number >= 1"),
        ({"precompute_ref_log_probs": True}, "the reference is fixed"),
        ({"sync_ref_model": True}, "the reference is fixed"),
        ({"score_sketch": "last-layer"}, "score_sketch"),
        ({"prompts_per_round": 13}, "12 prompts"),
        (
            {"planner": "vip-moments", "planner_kwargs": {"bounds": [3, 9]}},
            "planner 'vip-moments': it must be told scores",
        ),
        ({"planner_kwargs": {"bounds": [6, 9]}}, "does not fit the batch of TRL's DPO"),
    ],
)
def test_settings_that_cannot_be(changed, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        trainer(tmp_path, **changed)


if __name__ == "__main__":
    trained(Path(sys.argv[1]), **KILLED, of={"callbacks": [Kill()]})
