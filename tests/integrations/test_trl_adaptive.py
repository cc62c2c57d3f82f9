"""Counts of a planner, through the real trainers: what is generated, what it weighs, what the planner is told."""

import json
import math

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl_cases import (
    OURS,
    STOCK,
    STREAMS,
    dataset,
    expected_advantages,
    figures,
    groups_of,
    make,
    model,
    real_valued,
    recording,
    rows,
    since,
    sometimes_none,
    success,
    train,
)

from allotment import VIP
from allotment.integrations.trl import AllotmentArguments, AllotmentGRPOConfig, with_allotment
from allotment.integrations.trl.prompts import PromptIdentity

BATCH = {"per_device_train_batch_size": 24, "num_generations": 6, "max_steps": 6}
VESPO = pytest.param("vespo", marks=since("1.0.0", "this loss"))
LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", VESPO]


def adaptive(folder, kind="grpo", **settings):
    trainer, config = OURS[kind]
    own = {"beta": 0.0} if kind == "rloo" else {}
    return train(recording(trainer), config, folder, **{**BATCH, **own, **settings})


def logged(folder):
    return [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]


def assert_planned(trainer, folder, budget=24, lower=3):
    """Every batch: the budget to the row, counts within bounds, columns with their prompts, the log says the same."""
    lines = logged(folder)
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert len(trainer.batches) == lines[-1]["step"]
    for step, batch in enumerate(trainer.batches, 1):
        groups = groups_of(str(prompt) for prompt in batch.prompts)
        sizes = [len(members) for members in groups.values()]
        assert sum(sizes) == budget
        assert min(sizes) >= lower
        for row, prompt in zip(batch.inputs, batch.prompts, strict=True):
            assert row["prompt"] == prompt
            assert "allotment_row" not in row
        assert [line["n"] for line in lines if line["step"] == step] == sizes
        tokens = [line["tokens"] for line in lines if line["step"] == step]
        assert all(size <= own <= 4 * size for size, own in zip(sizes, tokens, strict=True))


def assert_advantages(trainer, kind, weights=(1.0,), **settings):
    for batch in trainer.batches:
        rewards = [
            math.nan if all(map(math.isnan, r)) else sum(w * x for w, x in zip(weights, r, strict=True) if x == x)
            for r in batch.rewards
        ]
        expected = expected_advantages(rewards, map(str, batch.prompts), kind=kind, **settings)
        assert batch.advantages == pytest.approx(expected, abs=2e-5)


def is_ragged(trainer):
    return any(len({len(m) for m in groups_of(batch.prompts).values()}) > 1 for batch in trainer.batches)


@pytest.mark.parametrize("weighting", ["prompt", "rollout"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_grpo_groups(scale, weighting, tmp_path):
    trainer = adaptive(tmp_path, scale_rewards=scale, prompt_weighting=weighting)
    assert_planned(trainer, tmp_path)
    assert_advantages(trainer, "grpo", scale=scale, weighting=weighting)
    assert is_ragged(trainer)


@pytest.mark.parametrize("weighting", ["prompt", "rollout"])
@pytest.mark.parametrize("normalize", [True, False])
def test_rloo_groups(normalize, weighting, tmp_path):
    trainer = adaptive(tmp_path, "rloo", normalize_advantages=normalize, prompt_weighting=weighting)
    assert_planned(trainer, tmp_path)
    assert_advantages(trainer, "rloo", normalize=normalize, weighting=weighting)
    assert is_ragged(trainer)


@pytest.mark.parametrize("normalize", [True, False])
def test_rloo_groups_with_the_kl_penalty_in_the_reward(normalize, tmp_path):
    class Penalised(OURS["rloo"][0]):
        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            if not torch.is_grad_enabled():  # the policy's, then the reference's
                self.seen = [*getattr(self, "seen", []), found[0]]
            return found

        def _generate_and_score_completions(self, inputs):
            self.seen = []
            output = super()._generate_and_score_completions(inputs)
            policy_NT, reference_NT = self.seen
            penalty_N = 5.0 * ((policy_NT - reference_NT) * output["completion_mask"]).sum(1)
            batch = self.batches[-1]
            assert penalty_N.std() > 0.01
            batch.rewards = [[r - k] for (r,), k in zip(batch.rewards, penalty_N.tolist(), strict=True)]
            return output

    model().save_pretrained(tmp_path / "model")
    of = {"model": str(tmp_path / "model")}
    trainer = make(
        recording(Penalised), OURS["rloo"][1], tmp_path, of=of, **BATCH, beta=5.0, normalize_advantages=normalize
    )
    for weights in trainer.ref_model.parameters():
        weights.data.mul_(1.5)
    trainer.train()
    assert_advantages(trainer, "rloo", normalize=normalize)
    assert is_ragged(trainer)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_rollouts_without_a_reward_count_nowhere(kind, tmp_path):
    trainer = adaptive(tmp_path, kind, rewards=sometimes_none, prompt_weighting="rollout")
    assert_advantages(trainer, kind, weighting="rollout")
    lines = logged(tmp_path)
    for step, batch in enumerate(trainer.batches, 1):
        groups = groups_of(batch.prompts).values()
        scored = [sum(not math.isnan(batch.rewards[i][0]) for i in members) for members in groups]
        assert [line["n"] for line in lines if line["step"] == step] == [n for n in scored if n]
        assert trainer.state.log_history[step - 1]["allotment/unscored"] == 24 - sum(scored)
    assert not trainer.planner.open_plans


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_from_ragged_groups(loss, tmp_path):
    level = "sequence" if loss == "luspo" else "token"
    settings = {"loss_type": loss, "importance_sampling_level": level, "num_iterations": 2, "max_steps": 8}
    trainer = adaptive(tmp_path, data=dataset(8), **settings)
    assert is_ragged(trainer)
    steps = trainer.state.log_history[:-1]
    assert all(math.isfinite(step["loss"]) and math.isfinite(step["grad_norm"]) for step in steps)
    assert max(step["grad_norm"] for step in steps) > 0
    assert len(trainer.batches) == 4


def test_micro_batches_share_a_plan(tmp_path):
    trainer = adaptive(
        tmp_path, per_device_train_batch_size=6, steps_per_generation=4, gradient_accumulation_steps=2, max_steps=8
    )
    assert len(trainer.batches) == 4
    assert_planned(trainer, tmp_path)
    assert_advantages(trainer, "grpo")


def test_the_logged_table_holds_the_advantages_that_are_trained_on(tmp_path):
    trainer = adaptive(tmp_path, log_completions=True)
    assert list(trainer._logs["advantages"]) == trainer.batches[-1].advantages
    assert list(trainer._logs["prompt"]) == trainer.batches[-1].prompts


def test_logged_figures_are_of_the_groups(tmp_path):
    trainer = adaptive(tmp_path)
    for batch, step in zip(trainer.batches, trainer.state.log_history, strict=False):
        groups = groups_of(batch.prompts).values()
        dead = [len({batch.rewards[i][0] for i in members}) == 1 for members in groups]
        assert step["frac_reward_zero_std"] == pytest.approx(sum(dead) / len(dead))
        assert step["allotment/dead_rollouts"] == pytest.approx(
            sum(len(m) for m, d in zip(groups, dead, strict=True) if d) / 24
        )
        assert step["allotment/min_count"] == min(map(len, groups))
        assert step["allotment/max_count"] == max(map(len, groups))
        assert step["allotment/success"] == pytest.approx(
            sum(sum(batch.rewards[i][0] for i in m) / len(m) for m in groups) / len(groups)
        )


@pytest.mark.parametrize(("candidates", "data"), [(8, 12), (12, 12), (24, 24)])
@pytest.mark.parametrize("planner", ["vip", "uniform"])
def test_only_the_shortlist_of_the_candidates_is_rolled_out(planner, candidates, data, tmp_path):
    trainer = adaptive(tmp_path, data=dataset(data), candidate_prompts=candidates, planner=planner)
    assert_planned(trainer, tmp_path)
    assert_advantages(trainer, "grpo")
    assert all(len(groups_of(batch.prompts)) == 4 for batch in trainer.batches)
    assert [s["allotment/zero_count"] for s in trainer.state.log_history[:-1]] == [candidates - 4] * 6


def test_a_prompt_that_stands_twice_has_one_belief_and_one_group(tmp_path):
    data = Dataset.from_list(rows(4) * 2)
    trainer = adaptive(tmp_path, data=data, per_device_train_batch_size=48, num_generations=6, max_steps=3)
    assert_planned(trainer, tmp_path, budget=48)
    assert_advantages(trainer, "grpo")
    assert {line["prompt_id"] for line in logged(tmp_path)} == set(PromptIdentity(data, None).all())


def test_rows_that_differ_in_a_column_that_no_model_sees_are_prompts_of_their_own(tmp_path):
    data = [{**row, "answer": f"{row['answer']} of {copy}"} for copy in "ab" for row in rows(4)]
    adaptive(tmp_path, data=Dataset.from_list(data), per_device_train_batch_size=48, num_generations=6, max_steps=1)
    assert len({line["prompt_id"] for line in logged(tmp_path)}) == 8


def test_the_identity_column_names_prompts(tmp_path):
    trainer = adaptive(tmp_path, prompt_id_column="name")
    assert_planned(trainer, tmp_path)
    assert {line["prompt_id"] for line in logged(tmp_path)} == {f"p{i}" for i in range(12)}


@pytest.mark.parametrize("column", [None, "name"])
def test_columns_that_rewards_do_not_get_are_taken_off(column, tmp_path):
    def by_length(completions, **columns):
        assert columns.keys().isdisjoint({"easy", "answer", "allotment_row"})
        return [float(len(c) > 3) for c in completions]

    trainer = adaptive(tmp_path, rewards=by_length, remove_unused_columns=True, prompt_id_column=column)
    assert_planned(trainer, tmp_path)
    assert {line["prompt_id"] for line in logged(tmp_path)} == set(PromptIdentity(dataset(), column).all())


@STREAMS
@pytest.mark.parametrize("column", [None, "name"])
def test_an_iterable_data_set(column, tmp_path):
    data = dataset().to_iterable_dataset()
    trainer = adaptive(tmp_path, data=data, prompt_id_column=column, candidate_prompts=8)
    assert_planned(trainer, tmp_path)
    assert_advantages(trainer, "grpo")
    ids = {line["prompt_id"] for line in logged(tmp_path)}
    assert all(len(i) == 32 for i in ids) if column is None else ids <= {f"p{i}" for i in range(12)}
    assert is_ragged(trainer)


@STREAMS
def test_an_iterable_data_set_with_equal_counts_is_trls(tmp_path):
    ours = train(*OURS["grpo"], tmp_path, data=dataset().to_iterable_dataset(), planner="uniform")
    stock = train(*STOCK["grpo"], tmp_path / "stock", data=dataset().to_iterable_dataset())
    assert figures(ours) == figures(stock)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_data_set_with_a_format(kind, tmp_path):
    data = dataset().add_column("key", list(range(100, 112)))
    trainer = adaptive(tmp_path, data=data.with_format(kind), prompt_id_column="key")
    assert_planned(trainer, tmp_path)
    assert figures(trainer) == figures(adaptive(tmp_path / "plain", data=data, prompt_id_column="key"))


def test_a_rollout_has_columns_of_its_own(tmp_path):
    def scribbling(completions, notes, **columns):
        for note in notes:
            note.append(1)
        return success(completions, **columns)

    data = dataset().add_column("notes", [[0]] * 12)
    trainer = adaptive(tmp_path, data=data, rewards=scribbling)
    assert all(row["notes"] == [0, 1] for batch in trainer.batches for row in batch.inputs)


def test_a_data_set_that_was_trained_on_before(tmp_path):
    data = adaptive(tmp_path).train_dataset
    assert_planned(adaptive(tmp_path / "again", data=data), tmp_path / "again")


def test_data_loader_workers_change_nothing(tmp_path):
    trainer = adaptive(tmp_path / "two", dataloader_num_workers=2)
    assert figures(trainer) == figures(adaptive(tmp_path / "none"))
    assert_planned(trainer, tmp_path / "two")


def test_evaluation_is_trls_and_tells_the_planner_nothing(tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4, "num_generations_eval": 2}
    of = {"eval_dataset": dataset(6)}
    ours = train(*OURS["grpo"], tmp_path, planner="uniform", of=of, **settings)
    stock = train(*STOCK["grpo"], tmp_path / "stock", of=of, **settings)
    assert figures(ours) == figures(stock)
    assert sum("eval_reward" in row for row in figures(ours)) == 3
    assert [line["step"] for line in logged(tmp_path)] == [s for s in (1, 2, 3) for _ in range(4)]
    assert not any("allotment" in key for row in ours.state.log_history for key in row if key.startswith("eval"))


def test_the_planner_is_told_the_reward_that_is_named(tmp_path):
    rewards, weights = [real_valued, success], [0.2, 1.0]
    trainer = adaptive(tmp_path, rewards=rewards, reward_weights=weights, success_reward="success")
    assert_advantages(trainer, "grpo", weights=weights)
    lines = logged(tmp_path)
    for step, batch in enumerate(trainer.batches, 1):
        successes = [sum(batch.rewards[i][1] for i in m) for m in groups_of(batch.prompts).values()]
        assert [line["successes"] for line in lines if line["step"] == step] == successes


def test_the_threshold_says_what_a_success_is(tmp_path):
    trainer = adaptive(tmp_path, rewards=real_valued, success_threshold=1.5)
    lines = logged(tmp_path)
    for step, batch in enumerate(trainer.batches, 1):
        successes = [sum(batch.rewards[i][0] >= 1.5 for i in m) for m in groups_of(batch.prompts).values()]
        assert [line["successes"] for line in lines if line["step"] == step] == successes
    assert 0 < sum(line["successes"] for line in lines) < sum(line["n"] for line in lines)


def test_conversations(tmp_path):
    def of_messages(completions, easy, **columns):
        return success([c[0]["content"] for c in completions], easy)

    data = Dataset.from_list([{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows()] * 2)
    trainer = adaptive(tmp_path, data=data, rewards=of_messages)
    assert_planned(trainer, tmp_path)
    assert_advantages(trainer, "grpo")
    assert {line["prompt_id"] for line in logged(tmp_path)} <= set(PromptIdentity(data, None).all()[:12])


class ThirdParty(GRPOTrainer):
    """A trainer of somebody else, with a constructor and a reward of its own."""

    def __init__(self, *args, bonus, **kwargs):
        super().__init__(*args, **kwargs)
        self.bonus = bonus

    def _calculate_rewards(self, *args):
        return super()._calculate_rewards(*args) + self.bonus


def test_a_trainer_of_somebody_else(tmp_path):
    trainer = recording(with_allotment(ThirdParty))
    of = {"bonus": 2.0, "allotment": AllotmentArguments(prompt_weighting="rollout", success_threshold=2.5)}
    made = train(trainer, GRPOConfig, tmp_path, of=of, **BATCH)
    assert_planned(made, tmp_path)
    assert_advantages(made, "grpo", weighting="rollout")
    assert min(r for batch in made.batches for (r,) in batch.rewards) == 2.0
    assert 0 < sum(line["successes"] for line in logged(tmp_path)) < 24 * 6


def test_settings_of_the_config_hold_for_a_trainer_of_somebody_else(tmp_path):
    made = make(with_allotment(ThirdParty), AllotmentGRPOConfig, tmp_path, of={"bonus": 0.0}, planner="uniform")
    assert type(made.planner).__name__ == "Uniform"


def test_a_planner_in_the_config(tmp_path):
    planner = VIP(budget=24, bounds=(2, 9), estimator="rloo")
    trainer = adaptive(tmp_path, planner=planner, save_strategy="steps", save_steps=6)
    assert trainer.planner is planner
    assert_planned(trainer, tmp_path, lower=2)
    assert max(len(m) for batch in trainer.batches for m in groups_of(batch.prompts).values()) <= 9
    saved = torch.load(tmp_path / "checkpoint-6" / "training_args.bin", weights_only=False)
    assert saved.num_generations == 6
    assert "VIP" in trainer.args.to_json_string()  # what TensorBoard and other reporters write down


def test_one_prompt_many_times_is_one_group_of_the_whole_batch(tmp_path):
    """One-shot RLVR: a data set that repeats a single prompt."""
    repeated = Dataset.from_list([dataset()[0]] * 8)
    adaptive(tmp_path, data=repeated, per_device_train_batch_size=40, num_generations=5, max_steps=1)
    assert [line["n"] for line in logged(tmp_path)] == [40]
