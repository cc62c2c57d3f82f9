"""Environments and tools: TRL resets an environment for each rollout, so as often as the plan says."""

import json
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
import trl
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl_cases import CHARS, OURS, groups_of, model, recording, rows, since, train

TOOLS = since("1.8.0", "tools with transformers 5.13 and later; environments with rewards of their own")
SPECIAL = ["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
SETTINGS = {"per_device_train_batch_size": 12, "num_generations": 3, "max_steps": 4}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


def chat_tokenizer():
    """A tokenizer of single characters with the template of Qwen3."""
    signs = ["<pad>", "<unk>", *SPECIAL, "\n", *map(chr, range(32, 127))]
    core = Tokenizer(models.WordLevel({s: i for i, s in enumerate(signs)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<|im_end|>"}
    made = PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template, **names)
    made.add_special_tokens({"additional_special_tokens": SPECIAL})
    return made, len(signs)


class Counting:
    """Counts its resets by prompt; succeeds on easy ones."""

    resets: ClassVar[Counter] = Counter()

    def reset(self, easy, **columns):
        assert "allotment_row" not in columns
        Counting.resets[easy] += 1
        self.easy = easy

    def add(self, a: int, b: int) -> int:
        """Adds two numbers.

        Args:
            a: the first.
            b: the second.

        Returns:
            The sum.
        """
        return a + b

    def get_reward(self):
        return float(self.easy % 4 == 0)


def place(line):
    """Row of a task that an environment makes."""
    return int(line["prompt_id"].partition("/")[2])


def trained(folder, **of):
    tokenizer, size = chat_tokenizer()
    data = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows(8)]
    of = {"model": model(size, eos=3), "processing_class": tokenizer, **of}
    trainer, config = OURS["grpo"]
    return train(
        recording(trainer), config, folder, data=Dataset.from_list(data), rewards=of.pop("rewards"), of=of, **SETTINGS
    )


@TOOLS
def test_an_environment_is_reset_once_a_rollout(tmp_path):
    Counting.resets.clear()
    trainer = trained(tmp_path, environment_factory=Counting, rewards=[])
    lines = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    planned = Counter()
    for line in lines:
        planned[2 * place(line)] += line["n"]
    assert Counting.resets == planned
    assert sum(planned.values()) == 4 * 12
    for batch in trainer.batches:
        assert [r for (r,) in batch.rewards] == [float(row["easy"] % 4 == 0) for row in batch.inputs]


@TOOLS
def test_equal_prompts_of_environments_are_tasks_of_their_own(tmp_path):
    tokenizer, size = chat_tokenizer()
    data = [{"prompt": [{"role": "user", "content": "go"}], "easy": 2 * i} for i in range(8)]
    of = {"model": model(size, eos=3), "processing_class": tokenizer, "environment_factory": Counting}
    train(*OURS["grpo"], tmp_path, data=Dataset.from_list(data), rewards=[], of=of, **SETTINGS)
    lines = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    assert {place(line) for line in lines} == set(range(8))


def double(number: int) -> int:
    """Doubles a number.

    Args:
        number: any.

    Returns:
        Twice the number.
    """
    return 2 * number


@TOOLS
def test_tools(tmp_path):
    def first(completions, easy, **_):
        texts = [(c[0].get("content") or "")[:1] for c in completions]
        return [float(t != "" and t in CHARS[:e]) for t, e in zip(texts, easy, strict=True)]

    trainer = trained(tmp_path, tools=[double], rewards=[first])
    assert all(sum(map(len, groups_of(map(str, b.prompts)).values())) == 12 for b in trainer.batches)
    assert "tools/call_frequency" in trainer.state.log_history[0]


@since("1.0.0", "a rollout function without vLLM")
def test_rollouts_from_a_function_of_the_user(tmp_path):
    seen = []

    def rollout(prompts, trainer):
        seen.append(prompts)
        ids = [[2 + i % 20, 1] for i in range(len(prompts))]
        return {"prompt_ids": [[3, 4]] * len(prompts), "completion_ids": ids, "logprobs": [[-1.0, -1.0]] * len(prompts)}

    trainer = train(recording(OURS["grpo"][0]), OURS["grpo"][1], tmp_path, of={"rollout_func": rollout})
    assert seen == [batch.prompts for batch in trainer.batches]
