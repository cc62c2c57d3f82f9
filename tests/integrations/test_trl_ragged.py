"""What people bring to TRL: images, duplicates, samplers, derived trainers, functions that count rows by the group."""

import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler
from trl_cases import (
    CHARS,
    OURS,
    STREAMS,
    figures,
    groups_of,
    make,
    real_valued,
    recording,
    rows,
    since,
    success,
    tokenizer,
    train,
)

from allotment import VIP
from allotment.errors import ConfigError, InvalidInputError, RewardMismatchError
from allotment.integrations.trl import AllotmentArguments, AllotmentGRPOConfig, checks, ragged, with_allotment

BATCH = {"per_device_train_batch_size": 24, "num_generations": 6, "scale_rewards": "none"}
ROLLOUT = since("1.0.0", "a rollout function without vLLM")
pytestmark = pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")


def pictures(n=4):
    """Rows with one text and n images, told apart by their grey."""
    images = [Image.fromarray(np.full((2, 2), 40 * i, np.uint8)) for i in range(n)]
    return Dataset.from_list([{"prompt": "0+0=", "image": image, "easy": 6 * i} for i, image in enumerate(images)])


def hide(batch):
    """A transform that shows the text alone, and what rewards read."""
    return {"prompt": batch["prompt"], "easy": batch["easy"]}


def assert_centred(trainer):
    """Advantages of each group of equal ``easy`` sum to 0: no group mixes two of them."""
    for batch in trainer.batches:
        for members in groups_of(row["easy"] for row in batch.inputs).values():
            assert abs(sum(batch.advantages[i] for i in members)) < 1e-5


@pytest.mark.parametrize("planner", ["vip", "uniform"])
@pytest.mark.parametrize("is_stream", [False, pytest.param(True, marks=STREAMS)])
def test_images_behind_equal_texts_have_groups_of_their_own(planner, is_stream, tmp_path):
    data = (
        pictures().map(hide, batched=True, remove_columns=["image"]) if is_stream else pictures().with_transform(hide)
    )
    data = data.to_iterable_dataset() if is_stream else data
    trainer = train(recording(OURS["grpo"][0]), OURS["grpo"][1], tmp_path, data=data, planner=planner, **BATCH)
    assert all(len(groups_of(row["easy"] for row in batch.inputs)) == 4 for batch in trainer.batches)
    assert_centred(trainer)


def identical(trainer, config, folder, *, stock=GRPOTrainer, **settings):
    """A trainer and the stock one it must be equal to, bit for bit."""
    ours = train(trainer, config, folder, planner="uniform", **settings)
    theirs = train(stock, GRPOConfig, folder / "stock", **settings)
    assert figures(ours) == figures(theirs)
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert mine.equal(other)
    return ours


@pytest.mark.parametrize("data", [Dataset.from_list(rows(4) + rows(2)), pictures(6).with_transform(hide)])
def test_with_equal_counts_duplicates_and_images_are_trls(data, tmp_path):
    identical(*OURS["grpo"], tmp_path, data=data, **BATCH)


def test_a_prompt_that_stands_twice_counts_twice(tmp_path):
    data = Dataset.from_list([*rows(12)[3:6], rows(12)[4]])
    trainer = train(recording(OURS["grpo"][0]), OURS["grpo"][1], tmp_path, data=data, max_steps=2, **BATCH)
    for batch in trainer.batches:
        groups = groups_of(batch.prompts)
        assert len(groups) == 3
        for prompt, members in groups.items():
            mean = sum(batch.rewards[i][0] for i in members) / len(members)
            twice = (2 if prompt.startswith("4+") else 1) * 3 / 4
            for i in members:
                expected = (batch.rewards[i][0] - mean) * twice * 24 / (3 * len(members))
                assert batch.advantages[i] == pytest.approx(expected, abs=1e-6)


class Sampled(GRPOTrainer):
    """Repeats prompts as its configuration says."""

    NUMBER = None

    def _get_train_sampler(self, _=None):
        number = self.NUMBER or self.args.num_generations
        size = self.args.generation_batch_size // number
        return RepeatSampler(self.train_dataset, number, size, repeat_count=self.num_iterations, seed=self.args.seed)


def test_a_sampler_by_the_configuration_draws_all_candidates(tmp_path):
    of = {"allotment": AllotmentArguments(candidate_prompts=8)}
    trainer = train(recording(with_allotment(Sampled)), GRPOConfig, tmp_path, of=of, **BATCH)
    assert [row["allotment/zero_count"] for row in trainer.state.log_history[:-1]] == [4.0] * 3


def test_a_sampler_that_draws_too_few_is_refused(tmp_path):
    fixed = type("Fixed", (Sampled,), {"NUMBER": 6})
    with pytest.raises(ConfigError, match="fewer prompts than there are candidates"):
        train(
            with_allotment(fixed),
            GRPOConfig,
            tmp_path,
            of={"allotment": AllotmentArguments(candidate_prompts=8)},
            **BATCH,
        )


class Doubling(GRPOTrainer):
    """Doubles the advantages that TRL gives."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.seen = [*getattr(self, "seen", []), output["advantages"].clone()]
        output["advantages"] *= 2
        return output


def test_what_a_derived_trainer_does_to_advantages_stays(tmp_path):
    identical(with_allotment(Doubling), AllotmentGRPOConfig, tmp_path, stock=Doubling, **BATCH)
    trainer = train(recording(with_allotment(Doubling)), AllotmentGRPOConfig, tmp_path / "vip", **BATCH)
    assert_centred(trainer)
    for batch, seen in zip(trainer.batches, trainer.seen, strict=True):
        assert batch.advantages == (2 * seen).tolist()
    assert any(a for batch in trainer.batches for a in batch.advantages)


def test_a_trainer_that_scores_by_itself_is_refused(tmp_path):
    class Own(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            return {"advantages": torch.zeros(len(inputs))}

    made = make(with_allotment(Own), AllotmentGRPOConfig, tmp_path, **BATCH)
    with pytest.raises(ConfigError, match=r"(?s)without TRL's.*Own"):
        made.train()
    assert not made.planner.open_plans


def chunked(completions, easy, number=6, **_):
    """A reward that looks at blocks of a number of rows."""
    num_generations = number
    values = success(completions, easy)
    assert len(values) % num_generations == 0
    return values


def grouped(completions, easy, group_ids, **_):
    """The same within groups."""
    values = success(completions, easy)
    members = groups_of(group_ids)
    return [v - np.mean([values[i] for i in members[g]]) for v, g in zip(values, group_ids, strict=True)]


def test_a_reward_function_that_asks_is_told_the_groups(tmp_path):
    told = []

    def reward(prompts, group_ids, **columns):
        told.append((prompts, group_ids))
        return grouped(group_ids=group_ids, **columns)

    made = train(*OURS["grpo"], tmp_path, rewards=reward, per_device_eval_batch_size=12, **BATCH)
    made.evaluate(Dataset.from_list(rows(12)))
    assert len(told) > 3
    for prompts, group_ids in told:
        assert group_ids == sorted(group_ids)
        assert [sorted(m) for m in groups_of(prompts).values()] == [sorted(m) for m in groups_of(group_ids).values()]


@pytest.mark.parametrize(
    ("reward", "planner", "is_warned"), [(chunked, "vip", True), (chunked, "uniform", False), (grouped, "vip", False)]
)
def test_a_reward_function_that_counts_rows_by_the_group_is_warned_of_once(
    reward, planner, is_warned, tmp_path, caplog
):
    train(*OURS["grpo"], tmp_path, rewards=reward, planner=planner, max_steps=5, **BATCH)
    assert caplog.text.count("may mix prompts") == is_warned


def test_who_reads_the_group_size():
    class Callable:
        def __call__(self, completions, num_generations=4):
            return completions

    class Derived(GRPOTrainer):
        def _calculate_rewards(self, *args):
            return super()._calculate_rewards(*args).view(-1, self.num_generations)

    functions = [
        chunked,
        grouped,
        success,
        Callable(),
        partial(success, num_generations=3),
        partial(chunked),
        torch.nn.Linear(1, 1),
    ]
    assert [ragged.reads(f, "num_generations") for f in functions] == [True, False, False, True, True, True, False]
    assert ragged.chunking([chunked], with_allotment(Derived)) == ["chunked", "Derived._calculate_rewards"]
    assert ragged.chunking([success], with_allotment(GRPOTrainer)) == []


def rollouts(prompts, size, names):
    """One completion a row, made for every ``size``-th prompt."""
    ids = [names(p) for p in prompts[::size] for _ in range(size)]
    return {"prompt_ids": ids, "completion_ids": [[5, 1]] * len(ids), "logprobs": [[-1.0, -1.0]] * len(ids)}


@ROLLOUT
@pytest.mark.parametrize("size", ["args", "trainer", "fixed"])
def test_a_rollout_function_that_generates_once_a_block(size, tmp_path):
    names, sizes = tokenizer(), []

    def rollout(prompts, trainer):
        number = {"args": trainer.args.num_generations, "trainer": trainer.num_generations, "fixed": 6}[size]
        sizes.append(number)
        return rollouts(prompts, number, lambda p: names(p)["input_ids"])

    def by_first(prompts, completion_ids, **_):
        return [float(p[:1] in CHARS[:4] and i % 2) for i, p in enumerate(prompts)]

    of = {"rollout_func": rollout}
    if size == "fixed":
        with pytest.raises(RewardMismatchError, match="rollouts of other prompts"):
            train(*OURS["grpo"], tmp_path, of=of, rewards=by_first, max_steps=9, **BATCH)
        return
    trainer = train(
        recording(OURS["grpo"][0]), OURS["grpo"][1], tmp_path, of=of, rewards=by_first, max_steps=9, **BATCH
    )
    for batch, number in zip(trainer.batches, sizes, strict=True):
        assert number == np.gcd.reduce([len(m) for m in groups_of(batch.prompts).values()])
    assert trainer.args.num_generations == trainer.num_generations == 6
    assert len(set(sizes)) > 1


def test_the_table_of_completions_says_how_many_a_prompt_has(tmp_path):
    pandas = pytest.importorskip("pandas")
    trainer = recording(OURS["grpo"][0])
    if not hasattr(trainer, "_log_completion_extra"):
        pytest.skip("this TRL's table takes no further columns")
    made = train(trainer, OURS["grpo"][1], tmp_path, log_completions=True, max_steps=2, **BATCH)
    for step, batch in enumerate(made.batches, 1):
        table = pandas.read_parquet(tmp_path / "completions" / f"completions_{step:05d}.parquet")
        counts = {p: len(m) for p, m in groups_of(batch.prompts).items()}
        assert table["rollouts_of_prompt"].tolist() == [counts[p] for p in table["prompt"]]


def test_colliding_ids_of_two_data_sets_are_refused_at_the_start(tmp_path):
    data = Dataset.from_list([{**row, "id": i} for half in (rows(12)[:6], rows(12)[6:]) for i, row in enumerate(half)])
    with pytest.raises(InvalidInputError, match=r"(?s)same id.*0\+0=.*6\+6="):
        make(*OURS["grpo"], tmp_path, data=data, prompt_id_column="id", **BATCH)


REAL = "rewards are not two-valued"


@pytest.mark.parametrize(
    ("rewards", "settings", "is_warned"),
    [
        (real_valued, {}, True),
        (lambda completions, **_: [-abs(3.0 - len(set(c))) for c in completions], {}, True),
        (success, {}, False),
        (lambda completions, **columns: [2 * v - 1 for v in success(completions, columns["easy"])], {}, False),
        (real_valued, {"success_threshold": 0.4}, False),
        (real_valued, {"planner": "uniform"}, False),
        (real_valued, {"planner": VIP(budget=24, bounds=(3, 9), success_threshold=0.3)}, False),
        ([success, real_valued], {"success_reward": "success"}, False),
        ([success, real_valued], {}, True),
    ],
)
def test_rewards_of_many_values_are_warned_of_at_the_first_batch(rewards, settings, is_warned, tmp_path, caplog):
    train(*OURS["grpo"], tmp_path, rewards=rewards, max_steps=2, **BATCH, **settings)
    assert caplog.text.count(REAL) == is_warned


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"per_device_train_batch_size": 8, "num_generations": 8}, "one prompt.*gradient_accumulation_steps=8"),
        ({"per_device_train_batch_size": 24, "num_generations": 3}, "nothing to allocate: 8 prompts share 24 rows"),
        ({"per_device_train_batch_size": 8, "num_generations": 8, "planner": "uniform"}, None),
        (BATCH, None),
    ],
)
def test_a_batch_that_leaves_nothing_to_allocate_is_warned_of_at_the_start(settings, words, tmp_path, caplog):
    make(*OURS["grpo"], tmp_path, **settings)
    assert bool(re.search("nothing to allocate", caplog.text)) == (words is not None)
    assert words is None or re.search(words, caplog.text)


@pytest.mark.parametrize(
    ("plugin", "is_refused"), [({"zero_stage": 3}, True), ({"zero_stage": 2}, False), (None, False)]
)
def test_score_sketches_need_whole_parameters(plugin, is_refused):
    state = SimpleNamespace(deepspeed_plugin=plugin and SimpleNamespace(**plugin), fsdp_plugin=None)
    if is_refused:
        with pytest.raises(ConfigError, match="ZeRO stage 3"):
            checks.check_whole_parameters(SimpleNamespace(state=state))
    else:
        checks.check_whole_parameters(SimpleNamespace(state=state))
    with pytest.raises(ConfigError, match="FSDP"):
        checks.check_whole_parameters(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=object())))


def test_arguments_without_trl_can_be_written_down():
    written = AllotmentArguments(planner=VIP(budget=16), select="pods").to_dict()
    assert (written["planner"], written["select"], written["prompt_weighting"]) == ("VIP", "pods", "prompt")
