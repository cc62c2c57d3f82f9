"""What the tests of the TRL adapter share: a random Llama of a few thousand weights, a character tokenizer, data."""

import copy
import gc
import math
from types import SimpleNamespace

import pytest
import torch
import trl
from datasets import Dataset
from packaging.version import Version
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from allotment.integrations.trl import (
    AllotmentGRPOConfig,
    AllotmentGRPOTrainer,
    AllotmentRLOOConfig,
    AllotmentRLOOTrainer,
)

torch.set_num_threads(1)
gc.collect()
gc.freeze()  # TRL collects garbage before each training; what was imported is none

TRL = Version(trl.__version__)
CHARS = "0123456789+=abcdefghij ?"
CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
STOCK = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}
OURS = {"grpo": (AllotmentGRPOTrainer, AllotmentGRPOConfig), "rloo": (AllotmentRLOOTrainer, AllotmentRLOOConfig)}
SETTINGS = {
    "per_device_train_batch_size": 16,
    "num_generations": 4,
    "max_completion_length": 4,
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "logging_steps": 1,
    "max_steps": 3,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
TIMES = ("runtime", "per_second", "time")


def since(version, what):
    """A mark that skips a test with a TRL before ``version``."""
    return pytest.mark.skipif(Version(version) > TRL, reason=f"from TRL {version} on: {what}")


STREAMS = since("1.9.0", "iterable data sets")
NONE_IS_LEFT_OUT = since("1.6.0", "rollouts that no reward function scored are left out, not taken for 0")


def tokenizer():
    vocabulary = {"<pad>": 0, "<eos>": 1, **{c: i + 2 for i, c in enumerate(CHARS)}, "<unk>": len(CHARS) + 2}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", chat_template=CHAT
    )


def model(vocabulary=27, eos=1, pad=0):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=pad,
            eos_token_id=eos,
            bos_token_id=eos,
        )
    )


def rows(n=12):
    """Prompts of which the i-th succeeds if the first character is one of the first 2 i: p from 0 to 0.9."""
    return [{"prompt": f"{i}+{i % 7}=", "answer": str(i), "easy": 2 * i, "name": f"p{i}"} for i in range(n)]


def dataset(n=12):
    return Dataset.from_list(rows(n))


def success(completions, easy, **_):
    return [float(c[:1] != "" and c[:1] in CHARS[:e]) for c, e in zip(completions, easy, strict=True)]


def real_valued(completions, easy, **_):
    return [sum(CHARS.index(x) * (e + 1) for x in c) / 97 for c, e in zip(completions, easy, strict=True)]


def sometimes_none(completions, easy, **_):
    values = success(completions, easy)
    return [None if c[1:2] in CHARS[:9] else v for c, v in zip(completions, values, strict=True)]


def train(trainer, config, folder, *, data=None, rewards=success, of=None, resume=None, **settings):
    """A trainer of these classes after training; ``of``: what else its constructor takes."""
    made = make(trainer, config, folder, data=data, rewards=rewards, of=of, **settings)
    made.train(resume_from_checkpoint=resume)
    return made


def make(trainer, config, folder, *, data=None, rewards=success, of=None, **settings):
    functions = rewards if isinstance(rewards, list) else [rewards]
    extra = {"model": model(), "processing_class": tokenizer(), **(of or {})}
    args = config(output_dir=str(folder), **{**SETTINGS, **settings})
    return trainer(reward_funcs=functions, args=args, train_dataset=dataset() if data is None else data, **extra)


def figures(trainer, but=()):
    """All logged numbers of a run but times and what Allotment adds."""
    return [
        {k: v for k, v in row.items() if not (k.startswith("allotment/") or any(t in k for t in TIMES) or k in but)}
        for row in trainer.state.log_history
    ]


def largest_difference(ours, theirs):
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    pairs = [(a[k], b[k]) for a, b in zip(ours, theirs, strict=True) for k in a]
    return max(0.0 if a == b else abs(a - b) for a, b in pairs)


def recording(trainer):
    """The same trainer, with a list ``batches`` of what went in and came out of each generation for training."""

    class Recording(trainer):
        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            rewards_NF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            if self.model.training:
                keys = ("inputs", "prompts", "completions", "rewards")
                values = (inputs, prompts, completions, rewards_NF.tolist())
                self.batches = [
                    *getattr(self, "batches", []),
                    SimpleNamespace(**dict(zip(keys, map(copy.deepcopy, values), strict=True))),
                ]
            return rewards_NF

        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            if self.model.training:
                self.batches[-1].advantages = output["advantages"].tolist()
            return output

    return Recording


def groups_of(keys):
    """Rows by key, in the order of their first appearance."""
    groups = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return groups


def deviation(values):
    """The standard deviation with n - 1; NaN for fewer than two."""
    if len(values) < 2:
        return math.nan
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def expected_advantages(rewards, keys, *, kind, scale="group", weighting="prompt", normalize=False):
    """Group advantages in plain Python; ``rewards`` may hold NaN, which counts nowhere and gets 0."""
    scored = [not math.isnan(r) for r in rewards]
    groups = groups_of(keys)
    out = [math.nan] * len(rewards)
    everyone = deviation([r for r, s in zip(rewards, scored, strict=True) if s])
    for members in groups.values():
        own = [rewards[i] for i in members if scored[i]]
        for i in members:
            if not scored[i]:
                continue
            if kind == "rloo":
                out[i] = rewards[i] - (math.fsum(own) - rewards[i]) / (len(own) - 1) if len(own) > 1 else math.nan
            else:
                divisor = {"group": deviation(own), "batch": everyone, "none": 1 - 1e-4}[scale] + 1e-4
                out[i] = (rewards[i] - math.fsum(own) / len(own)) / divisor
    if normalize:
        real = [a for a in out if not math.isnan(a)]
        mean, spread = math.fsum(real) / len(real), deviation(real)
        out = [(a - mean) / (spread + 1e-4) for a in out]
    mean_size = len(rewards) / len(groups)
    weight = {i: mean_size / len(m) if weighting == "prompt" else 1.0 for m in groups.values() for i in m}
    return [0.0 if math.isnan(a) else a * weight[i] for i, a in enumerate(out)]
