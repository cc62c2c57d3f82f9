"""A run of slime's on a CPU: its argument parser, rollout manager, data set, reward models, tracking and schedule. In
place of SGLang stands a policy of known success rates, behind slime's own hook for a generate function.
"""

import argparse
import asyncio
import itertools
import json
import random
from pathlib import Path

import ray
from slime.ray.rollout import RolloutManager
from slime.rollout import sglang_rollout
from slime.utils.arguments import get_slime_extra_args_provider, slime_validate_args
from slime.utils.async_utils import run
from slime.utils.misc import SingletonMeta
from slime.utils.types import Sample
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from allotment.integrations.slime.hooks import SOURCES

PROMPTS, MEAN, BATCH = 40, 8, 16
HERE = "allotment.integrations.slime"
OWN = ("--data-source-path", f"{HERE}.AllotmentDataSource", "--rollout-function-path", f"{HERE}.generate_rollout",
       "--custom-reward-post-process-path", f"{HERE}.reward_post_process")  # fmt: skip


def files(folder):
    """A data set of prompts that succeed in 0 to 100 %, and a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"text": f"task {i}", "label": str(i), "metadata": {"id": i, "rate": i / (PROMPTS - 1)}} for i in range(PROMPTS)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = Tokenizer(models.WordLevel({"<unk>": 0, "task": 1, **{str(i): i + 2 for i in range(PROMPTS)}}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder / "model")


def arguments(folder, *flags, own=True, load=None, **allotment):
    """Slime's arguments, from its own parser and checks."""
    if not (folder / "train.jsonl").exists():
        files(folder)
    (folder / "allotment.yaml").write_text(json.dumps({"allotment": allotment}))
    parser = argparse.ArgumentParser(allow_abbrev=False)
    get_slime_extra_args_provider()(parser)
    common = ["--prompt-data", folder / "train.jsonl", "--input-key", "text", "--label-key", "label",
              "--hf-checkpoint", folder / "model", "--rollout-shuffle", "--rollout-seed", 7, "--num-rollout", 20,
              "--rollout-batch-size", BATCH, "--n-samples-per-prompt", MEAN, "--global-batch-size", BATCH * MEAN,
              "--rollout-num-gpus", 1, "--custom-generate-function-path", "slime_cases.generate",
              "--custom-rm-path", "slime_cases.judge", "--rollout-sample-filter-path", "slime_cases.remember",
              "--rollout-max-response-len", 8,
              "--custom-config-path", folder / "allotment.yaml"]  # fmt: skip
    megatron = {"save": str(folder / "checkpoints"), "load": load, "debug_train_only": True,
                "debug_rollout_only": False, "load_debug_rollout_data": None, "seed": 1,
                "sglang_server_concurrency": 64, "sglang_dp_size": 1, "sglang_router_ip": "127.0.0.1",
                "sglang_router_port": 1}  # fmt: skip
    words = [str(word) for word in (*common, *(OWN if own else ()), *flags)]
    args, unknown = parser.parse_known_args(words, argparse.Namespace(**megatron))
    assert not unknown
    for name in MEGATRON - set(vars(args)):
        setattr(args, name, None)
    slime_validate_args(args)
    args.load = load
    return args


MEGATRON = {"calculate_per_token_loss", "vocab_size", "decrease_batch_size_if_needed", "tensor_model_parallel_size"}
"""Arguments of Megatron's that slime's checks look at."""


def manager(args):
    """Slime's rollout manager in this process; ``debug_train_only`` keeps it from starting SGLang."""
    SingletonMeta._instances.clear()  # the generation's state is one for each process
    made = RolloutManager.__ray_metadata__.modified_class(args, None)
    made.set_train_parallel_config({"dp_size": 2, "cp_size": 1, "vpp_size": 1, "microbatch_group_size_per_vp_stage": 1})
    return made


def step(made, rollout_id):
    """One step: what the training ranks get, joined, in the order of the batch."""
    shards = [ray.get(box.inner) for box in made.generate(rollout_id)]
    rows = sorted((place, shard, row) for shard in map(Shard, shards) for row, place in enumerate(shard["partition"]))
    names = ("rewards", "sample_indices", "rollout_ids", "response_lengths", "tokens")
    return {name: [shard[name][row] for _, shard, row in rows] for name in names} | {
        "raw_reward": shards[0]["raw_reward"]
    }


class Shard(dict):
    """What one rank gets; never compared, places differ."""

    def __lt__(self, other):
        raise AssertionError


def session(args):
    return SOURCES[id(args)].session


async def generate(args, sample, sampling_params):
    """Right with the rate of the prompt; what it says depends on the index alone, when it comes on chance."""
    draw = random.Random(f"{sample.prompt}/{sample.index}")
    await asyncio.sleep(random.random() / 1000)
    length = draw.randint(1, 6)
    is_right = draw.random() < sample.metadata["rate"]
    sample.tokens = [1, int(sample.label) + 2, *[draw.randrange(40) for _ in range(length)]]
    sample.response = sample.label if is_right else "wrong"
    sample.response_length, sample.status = length, Sample.Status.COMPLETED
    sample.rollout_log_probs = [-1.0] * length
    return sample


async def generate_parts(args, sample, sampling_params):
    """The same, as one to three samples of one rollout."""
    whole = await generate(args, sample, sampling_params)
    parts = [Sample.from_dict(whole.to_dict()) for _ in range(1 + sample.index % 3)]
    for part in parts:
        part.rollout_id = sample.index
    return parts


async def judge(args, sample):
    if isinstance(sample, list):
        return [_right(one) for one in sample]
    return _right(sample)


async def judge_dapo(args, sample):
    """A shaped reward that says beside it whether the answer is right."""
    right = _right(sample)
    return {"score": right - 0.6, "acc": bool(right)}


def _right(sample):
    return float(sample.response == sample.label)


def remember(args, groups):
    """Slime's hook for filters: the size of each group that goes to training."""
    args.sizes = [len(group) for group in groups]


def places(args):
    """The places of each group's rollouts in the batch."""
    ends = list(itertools.accumulate(args.sizes))
    return [list(range(end - size, end)) for size, end in zip(args.sizes, ends, strict=True)]


def lines(folder: Path):
    return [json.loads(line) for line in (folder / "checkpoints/rollout/rollouts.jsonl").read_text().splitlines()]


_PUT_BACK = []


def rollout_that_puts_back(args, rollout_id, data_source, evaluation=False):
    """A rollout function of a user's, whose first request of each step breaks off every third group: it puts them back,
    and asks for them again.
    """
    groups = data_source.get_samples(args.rollout_batch_size)
    broken = groups[::3]
    whole = [group for number, group in enumerate(groups) if number % 3]
    for group in broken:
        group[0].status = Sample.Status.ABORTED
    data_source.add_samples(broken)
    _PUT_BACK.append(len(broken))
    whole += data_source.get_samples(len(broken))
    done = run(_generated(args, whole))
    args.sizes = [len(group) for group in done]
    return done


def rollout_that_drops(args, rollout_id, data_source, evaluation=False):
    """A rollout function that loses a sample of its first group."""
    groups = run(_generated(args, data_source.get_samples(args.rollout_batch_size)))
    return [groups[0][1:], *groups[1:]]


async def _generated(args, groups):
    return list(await asyncio.gather(*(sglang_rollout.generate_and_rm_group(args, g, {}, False) for g in groups)))
