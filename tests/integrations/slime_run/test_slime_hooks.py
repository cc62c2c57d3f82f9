"""The adapter beside slime's other hooks: rollouts of several samples, groups put back, group rewards, evaluation."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

if not os.environ.get("SLIME_SOURCE"):
    pytest.skip("no slime: set SLIME_SOURCE to its source tree (make test-slime)", allow_module_level=True)

import slime_cases
import torch
from slime.observability import logging_utils
from slime.rollout import data_source, sglang_rollout
from slime_cases import BATCH, HERE, MEAN, arguments, manager, places, session, step

import allotment.integrations.slime as adapter
from allotment.errors import ConfigError, InvalidInputError, RewardMismatchError

PACKED = ("--use-dynamic-batch-size", "--max-tokens-per-gpu", 64)
"""Micro-batches by tokens, as slime wants where the number of samples is not known beforehand."""


@pytest.fixture(autouse=True)
def _untracked(monkeypatch):
    monkeypatch.setattr(logging_utils, "log", lambda args, metrics, step_key: None)


def test_the_hooks_have_the_signatures_of_slimes_own() -> None:
    for own, stock in (
        (adapter.generate_rollout, sglang_rollout.generate_rollout),
        (adapter.AllotmentDataSource.get_samples, data_source.RolloutDataSource.get_samples),
        (adapter.AllotmentDataSource.add_samples, data_source.RolloutDataSourceWithBuffer.add_samples),
        (adapter.AllotmentDataSource.save, data_source.RolloutDataSource.save),
        (adapter.AllotmentDataSource.load, data_source.RolloutDataSource.load),
    ):
        of_own, of_stock = (inspect.signature(f).parameters.values() for f in (own, stock))
        assert [(p.name, p.kind, p.default) for p in of_own] == [(p.name, p.kind, p.default) for p in of_stock]


def test_slimes_own_contract_tests_pass_here() -> None:
    """They hold the call sites and signatures of every hook that the adapter stands on."""
    source = Path(os.environ["SLIME_SOURCE"]).absolute()
    environment = {**os.environ, "PYTHONPATH": f"{source}:{source / 'tests'}"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/plugin_contracts"]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert " passed" in done.stdout


def test_a_rollout_of_several_samples_is_told_and_weighed_once(tmp_path) -> None:
    args = arguments(tmp_path, "--custom-generate-function-path", "slime_cases.generate_parts", *PACKED)
    made = manager(args)
    data = step(made, 0)
    assert len(set(data["rollout_ids"])) == BATCH * MEAN
    assert len(data["rewards"]) > BATCH * MEAN
    for rollout in set(data["rollout_ids"]):
        assert len({data["rewards"][row] for row, own in enumerate(data["rollout_ids"]) if own == rollout}) == 1
    first = dict(zip(data["rollout_ids"], data["rewards"], strict=True))
    assert abs(sum(first.values())) < 1e-4
    assert len(session(args).planner.open_plans) == 0


def test_groups_that_are_put_back_come_again_with_their_counts(tmp_path) -> None:
    args = arguments(tmp_path, "--rollout-function-path", "slime_cases.rollout_that_puts_back")
    made = manager(args)
    for rollout_id in range(4):
        data = step(made, rollout_id)
        assert len(data["rewards"]) == sum(args.sizes) == BATCH * MEAN
        for group in places(args):
            assert abs(sum(np.array(data["rewards"])[group])) < 1e-5
    assert slime_cases._PUT_BACK[-4:] == [6] * 4
    assert not made.data_source.buffer
    assert not session(args).planner.open_plans


def test_groups_held_over_a_step_leave_the_rest_of_the_budget(tmp_path) -> None:
    source = adapter.AllotmentDataSource(arguments(tmp_path))
    first = source.get_samples(BATCH)
    source.add_samples(first[:3])
    second = source.get_samples(BATCH)
    assert [group[0].group_index for group in second[:3]] == [0, 1, 2]
    assert sum(map(len, second)) == BATCH * MEAN
    indices = [sample.index for group in second[3:] for sample in group]
    assert indices == list(range(BATCH * MEAN, BATCH * MEAN + len(indices)))
    for wrong in ([first[4][1:]], [second[0], second[0]]):
        with pytest.raises(InvalidInputError, match="cannot be taken back"):
            source.add_samples(wrong)
    with pytest.raises(ConfigError, match=r"get_samples\(5\)"):
        source.get_samples(5)


def test_lost_samples_are_refused_before_slime_drops_the_rest(tmp_path) -> None:
    args = arguments(tmp_path, "--rollout-function-path", "slime_cases.rollout_that_drops")
    with pytest.raises(RewardMismatchError, match="127 rollouts, global_batch_size=128"):
        step(manager(args), 0)


def test_two_optimizer_steps_a_batch(tmp_path) -> None:
    args = arguments(tmp_path, "--global-batch-size", BATCH * MEAN // 2)
    made = manager(args)
    for rollout_id in range(2):
        data = step(made, rollout_id)
        assert len(data["rewards"]) == BATCH * MEAN


@pytest.mark.parametrize("reward", ["slime_cases.judge", "slime_cases.judge_dapo"])
def test_rewards_of_a_table_tell_the_planner_what_is_right(tmp_path, reward) -> None:
    flags = ("--custom-rm-path", reward, *(("--reward-key", "score") if "dapo" in reward else ()))
    args = arguments(tmp_path, *flags)
    data = step(manager(args), 0)
    raw = np.array(data["raw_reward"])
    successes = sum(row["successes"] for row in slime_cases.lines(tmp_path))
    assert successes == (raw > 0).sum()  # 0.4 of a shaped reward is a success all the same
    assert set(raw) == ({0.4, -0.6} if "dapo" in reward else {0.0, 1.0})


def test_rewards_of_whole_groups_and_seeds_of_large_ones(tmp_path) -> None:
    args = arguments(tmp_path, "--group-rm")
    args.sglang_enable_deterministic_inference = True
    made = manager(args)
    for rollout_id in range(5):
        data = step(made, rollout_id)
    assert max(args.sizes) > MEAN
    assert len(data["rewards"]) == BATCH * MEAN
    seeds = sglang_rollout.GenerateState(args).group_sampling_seeds
    assert seeds == list(range(7, 7 + len(seeds)))


def test_an_evaluation_has_pass_at_k(tmp_path) -> None:
    slime_cases.files(tmp_path)
    data = ("--eval-prompt-data", "held", tmp_path / "train.jsonl", "--n-samples-per-eval-prompt", 4)
    args = arguments(tmp_path, *data, "--eval-input-key", "text", "--eval-label-key", "label")
    output = adapter.generate_rollout(args, 0, None, evaluation=True)
    rewards = np.array(output.data["held"]["rewards"]).reshape(-1, 4)
    assert output.metrics["eval/held-pass@1"] == pytest.approx(rewards.mean())
    assert output.metrics["eval/held-pass@4"] == pytest.approx(rewards.max(axis=1).mean())


def test_weights_and_baselines_of_a_joint_plan(tmp_path) -> None:
    """Prompts drawn among 36 candidates, groups of one: the rewards that slime trains on, recomputed from the plan."""
    reducer = ("--custom-pg-loss-reducer-function-path", f"{HERE}.sum_of_tokens")
    sizes = ("--n-samples-per-prompt", 2, "--global-batch-size", 2 * BATCH)
    args = arguments(tmp_path, *reducer, *sizes, planner="joint", candidates=36)
    made, plans = manager(args), []
    planner = session(args).planner
    told, tell = [], planner.tell
    planner.tell = lambda plan, *rest, **more: (told.append(plan), tell(plan, *rest, **more))[1]
    for rollout_id in range(6):
        told.clear()
        data = step(made, rollout_id)
        plan = told[-1]
        assert len(data["rewards"]) == 2 * BATCH == plan.budget
        row_of = dict(zip(plan.prompt_ids, range(len(plan.prompt_ids)), strict=True))
        factors = plan.loss_factors(len(plan.prompt_ids))
        shares = np.ones(len(row_of)) if plan.baseline_shares is None else plan.baseline_shares
        assert args.sizes == plan.counts[plan.counts > 0].tolist()
        for row, group in enumerate(places(args)):
            raw, n = np.array(data["raw_reward"])[group], len(group)
            others = (raw.sum() - raw) / max(n - 1, 1)
            baseline = shares[row] * plan.baselines[row] + (1 - shares[row]) * others
            weight = factors[row] * 2 * BATCH / (len(args.sizes) * n)
            np.testing.assert_allclose(np.array(data["rewards"])[group], weight * (raw - baseline), atol=1e-9)
        plans.append(args.sizes)
    assert any(1 in sizes for sizes in plans)
    assert len({len(sizes) for sizes in plans}) > 1


def test_the_reducer_is_the_sum_over_tokens() -> None:
    masks = [torch.tensor([1, 1, 0]), torch.tensor([1, 0])]
    values = torch.arange(5.0, requires_grad=True)
    total = adapter.sum_of_tokens([5, 4], [3, 2], masks)(values)
    total.backward()
    assert total.item() == 0 + 1 + 3
    assert values.grad.tolist() == [1, 1, 0, 1, 0]


def test_the_rollout_manager_as_an_actor_of_ray(tmp_path) -> None:
    """In a process of its own, as slime runs it: the hooks are found by their import paths there."""
    script = Path(__file__).with_name("slime_actor.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rollouts"] == [BATCH * MEAN] * 3
    assert found["refused"].startswith("slime cuts rewards into groups of n")
