"""The adapter for slime without slime: its arithmetic, its settings, what it refuses. On its code: ``slime_run``."""

import json
import math
import subprocess
import sys
from argparse import Namespace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allotment.errors import ConfigError, InvalidInputError
from allotment.integrations.slime import Session, Settings, check_args
from allotment.integrations.slime.batches import layers, share
from allotment.integrations.slime.checks import RULES, SLIME, capability
from allotment.integrations.slime.prompts import PromptIdentity
from allotment.integrations.slime.rewards import pass_rates, rollouts_of, slime_rewards
from allotment.integrations.slime.settings import Batch
from allotment.planning import VIP
from allotment.planning.contract import entry_obstacle
from allotment.registry import PLANNERS

GOOD = {
    "prompt_data": "train.jsonl",
    "rollout_function_path": "allotment.integrations.slime.generate_rollout",
    "custom_reward_post_process_path": "allotment.integrations.slime.reward_post_process",
    "advantage_estimator": "grpo",
    "rollout_batch_size": 8,
    "n_samples_per_prompt": 8,
    "global_batch_size": 64,
    "rollout_seed": 3,
}
SUMMED = {"custom_pg_loss_reducer_function_path": "allotment.integrations.slime.sum_of_tokens"}


def arguments(allotment=None, **changed):
    return Namespace(**GOOD | changed, allotment=allotment or {})


def a_sample(group=0, reward=1.0, rollout_id=None, **more):
    of = {"prompt": "p", "label": None, "metadata": {}, "multimodal_inputs": None, "index": 0, "status": "completed"}
    sample = SimpleNamespace(group_index=group, reward=reward, rollout_id=rollout_id, **of | more)
    sample.get_reward_value = lambda args: sample.reward if not args.reward_key else sample.reward[args.reward_key]
    sample.effective_response_length = more.get("length", 3)
    return sample


def a_session(planner="vip", *, prompts=8, mean=8, candidates=None, **settings):
    chosen = Settings(planner=planner, candidates=candidates, **settings)
    args = arguments({"planner": planner} | {"candidates": candidates} | settings, **SUMMED)
    args.rollout_batch_size, args.n_samples_per_prompt, args.global_batch_size = prompts, mean, prompts * mean
    return Session(check_args(args), chosen, Batch.of(args, chosen), std=True, folder=None)


def came_back(counts, reward=lambda group, row: float((group + row) % 2)):
    """Rollouts of all groups, in an order that mixes them."""
    rows = [(group, row) for group, count in enumerate(counts) for row in range(count)]
    rows = sorted(rows, key=lambda pair: (pair[1], -pair[0]))
    return rollouts_of(Namespace(reward_key=None), [a_sample(g, reward(g, r)) for g, r in rows], None)


def test_importing_needs_no_slime_and_says_what_does() -> None:
    code = (
        "import sys; sys.modules['slime'] = None\n"
        "import allotment.integrations.slime as adapter\n"
        "from allotment.errors import MissingExtraError\n"
        "for name in ('AllotmentDataSource', 'generate_rollout'):\n"
        "    try: getattr(adapter, name)\n"
        "    except MissingExtraError as error: assert 'docs/slime.md' in str(error)\n"
        "    else: raise SystemExit(name)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


BAD = {
    "prompt_data": None,
    "rollout_function_path": "slime.rollout.fully_async_rollout.generate_rollout_fully_async",
    "custom_reward_post_process_path": None,
    "over_sampling_batch_size": 16,
    "dynamic_sampling_filter_path": "slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std",
    "buffer_filter_path": "slime.rollout.data_source.pop_first",
    "advantage_estimator": "ppo",
    "loss_type": "sft_loss",
    "compute_advantages_and_returns": False,
    "rewards_normalization": False,
    "normalize_advantages": True,
    "custom_advantage_function_path": "mine.advantages",
    "log_passrate": True,
    "debug_rollout_only": True,
    "load_debug_rollout_data": "rollouts_{rollout_id}.pt",
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.argument)
def test_what_would_make_a_run_wrong_is_refused_with_the_argument(rule) -> None:
    check_args(arguments())
    with pytest.raises(ConfigError, match=rf"(?s){rule.wrong[:20]}.*{rule.argument}=.*fix: "):
        check_args(arguments(**{rule.argument: BAD[rule.argument]}))


@pytest.mark.parametrize(
    ("changed", "block", "wrong"),
    [
        ({"global_batch_size": 48}, {}, "drop the rollouts"),
        ({}, {"candidates": 4}, "fewer prompts would be drawn"),
        ({}, {"plannner": "vip"}, "did you mean 'planner'"),
        ({}, {"estimator": "gae"}, "slime, rloo"),
        ({}, {"success_threshold": math.nan}, "a finite number"),
        ({}, {"candidates": 0}, "from 1 on"),
        ({}, {"planner": "no.such:module"}, "cannot be imported"),
        ({}, {"planner_kwargs": {"bounds": [9, 32]}}, "does not fit the batch of slime"),
        ({}, {"planner_kwargs": {"bound": [3, 32]}}, "cannot be made with these settings"),
        ({"n_samples_per_prompt": 1, "global_batch_size": 8}, {}, "a group of one has no advantage"),
    ],
)
def test_settings_that_do_not_fit(changed, block, wrong) -> None:
    with pytest.raises(ConfigError, match=wrong):
        check_args(arguments(block, **changed))
    with pytest.raises(ConfigError, match="a table of settings"):
        check_args(arguments("planner: vip"))


@pytest.mark.parametrize("name", PLANNERS.names)
def test_every_planner_is_carried_out_or_refused_by_name(name) -> None:
    """Exact sums and zero group sums of those that have no baseline, over three steps; a reason for the others."""
    if entry_obstacle(PLANNERS[name], SLIME) is not None:
        with pytest.raises(ConfigError, match=f"slime.*cannot carry out the planner '{name}'"):
            check_args(arguments({"planner": name}, **SUMMED))
        return
    session = a_session(name, candidates=12 if name in ("joint", "dynamic-pruning") else None)
    rows = session.batch.candidates
    for batch in range(3):
        first = batch * rows
        counts = session.plan([f"p{i}" for i in range(rows)], range(first, first + rows), budget=64, trained=8)
        assert sum(counts) == 64
        rollouts = came_back([0] * first + counts)
        rewards_N, _ = session.told(rollouts)
        if not session.planner.contract.baselines:
            for group in set(rollouts.groups):
                assert abs(rewards_N[np.array(rollouts.groups) == group].sum()) < 1e-4
    assert not session.planner.open_plans
    assert session.told_batches == 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vip-tokens", "budget is in tokens"),
        ("reinforce-ada", "several rounds"),
        ("joint-scores", "told scores"),
        ("joint", "sum_of_tokens"),
    ],
)
def test_the_reason_is_named(name, reason) -> None:
    summed = {} if name == "joint" else SUMMED
    with pytest.raises(ConfigError, match=reason):
        check_args(arguments({"planner": name}, **summed))


@pytest.mark.parametrize("changed", [{"calculate_per_token_loss": True}, {"advantage_estimator": "gspo"}])
def test_beliefs_need_a_divisor_that_depends_on_no_rollout(changed) -> None:
    assert capability(arguments(**SUMMED)).baselines
    assert not capability(arguments(**SUMMED | changed)).baselines


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 5), st.booleans())
def test_rewards_of_groups_of_any_size(sizes, seed, std) -> None:
    random = np.random.default_rng(seed)
    group_N = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    rewards_N = random.integers(0, 2, len(group_N)).astype(float)
    found = slime_rewards(rewards_N, group_N, std)
    for group in range(len(sizes)):
        raw = torch.tensor(rewards_N[group_N == group], dtype=torch.float)
        by_hand = raw - raw.mean()
        if std and len(raw) > 1:
            by_hand = by_hand / (raw.std() + 1e-6)
        np.testing.assert_allclose(found[group_N == group], by_hand, atol=1e-5)


def test_equal_groups_are_slimes_own_to_the_last_bit() -> None:
    rewards = torch.rand(64, 7)
    own = rewards - rewards.mean(dim=-1, keepdim=True)
    own = own / (own.std(dim=-1, keepdim=True) + 1e-6)
    found = slime_rewards(rewards.flatten().double().numpy(), np.repeat(np.arange(64), 7), True)
    assert (found == own.flatten().double().numpy()).all()


@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=6), min_size=1, max_size=5))
def test_pass_rates_are_over_all_ways_to_draw_k(groups) -> None:
    group_N = np.array([number for number, group in enumerate(groups) for _ in group])
    rates = pass_rates(np.concatenate([np.array(group) for group in groups]), group_N, 8)
    assert list(rates) == [f"pass@{k}" for k in (1, 2, 4) if k <= min(map(len, groups))]
    for name, rate in rates.items():
        draws = [list(combinations(group, int(name[5:]))) for group in groups]
        assert rate == pytest.approx(np.mean([np.mean([any(d) for d in own]) for own in draws]))


@given(st.lists(st.integers(0, 5), min_size=8, max_size=8), st.integers(0, 3))
def test_prompts_that_stand_twice_are_planned_for_twice(keys, seed) -> None:
    session = a_session(planner_kwargs={"bounds": [3, 32], "seed": seed})
    counts = session.plan(keys, range(8), budget=64, trained=8)
    assert sum(counts) == 64
    assert min(counts) >= 3
    _, figures = session.told(came_back(counts))
    assert figures["allotment/budget"] == 64
    assert not session.planner.open_plans


def test_candidates_count_once_and_the_trained_are_as_many_as_said() -> None:
    session = a_session(candidates=12)
    counts = session.plan([*"abcdefghij", "a", "b"], range(12), budget=64, trained=8)
    assert sum(counts) == 64
    assert sum(count > 0 for count in counts) == 8
    assert counts[10:] == [0, 0]


@given(st.integers(2, 40), st.data())
def test_a_share_leaves_what_the_bounds_need(rows, data) -> None:
    lower, upper = data.draw(st.tuples(st.integers(1, 5), st.integers(5, 20)))
    budget, prompts = data.draw(st.integers(lower * rows, upper * rows)), data.draw(st.integers(1, rows))
    part = share(budget, rows, prompts, (lower, upper))
    assert lower * prompts <= part <= upper * prompts
    assert lower * (rows - prompts) <= budget - part <= upper * (rows - prompts)


def test_layers_hold_every_row_once() -> None:
    assert layers("abab", range(4), once=False) == [{"a": 0, "b": 1}, {"a": 2, "b": 3}]
    assert layers("abab", range(4), once=True) == [{"a": 0, "b": 1}]


def test_a_prompt_is_all_that_its_row_holds() -> None:
    identity, image = PromptIdentity(None), np.zeros((2, 2), dtype=np.uint8)
    rows = [
        a_sample(),
        a_sample(label="7"),
        a_sample(metadata={"k": 1}),
        a_sample(multimodal_inputs={"images": [image]}),
        a_sample(multimodal_inputs={"images": [image + 1]}),
    ]
    assert len({identity.of(row) for row in rows}) == 5
    assert identity.of(a_sample()) == identity.of(a_sample(group=9, reward=0.0))


def test_an_id_names_one_prompt() -> None:
    identity = PromptIdentity("id")
    identity.check([a_sample(metadata={"id": 7}), a_sample(metadata={"id": 7.0}), a_sample(metadata={"id": None})])
    with pytest.raises(InvalidInputError, match=r"(?s)two different prompts have the same id.*'p' and 'q'"):
        identity.check([a_sample(metadata={"id": 7}, prompt="q")])
    with pytest.raises(InvalidInputError, match="does not name a prompt"):
        identity.of(a_sample(metadata={"id": [7]}))


def test_samples_of_one_rollout_count_once() -> None:
    samples = [a_sample(0, 1.0, rollout_id=5), a_sample(0, 1.0, rollout_id=5), a_sample(1, 0.0, rollout_id=5)]
    rollouts = rollouts_of(Namespace(reward_key=None), samples, None)
    assert rollouts.row_S.tolist() == [0, 0, 1]
    assert rollouts.lengths_N.tolist() == [6, 3]
    with pytest.raises(InvalidInputError, match="different rewards"):
        rollouts_of(Namespace(reward_key=None), [*samples, a_sample(0, 0.0, rollout_id=5)], None)


@pytest.mark.parametrize("reward", [None, math.nan, {"score": 1.0}, "right"])
def test_a_sample_without_a_reward_is_named(reward) -> None:
    with pytest.raises(InvalidInputError, match="sample 0 of group 4"):
        rollouts_of(Namespace(reward_key=None), [a_sample(4, reward)], None)


def test_success_is_what_the_reward_says() -> None:
    args = Namespace(reward_key="score")
    rows = [{"score": 0.3, "acc": True}, {"score": 0.9, "acc": False}, {"score": 0.9}, {"score": 0.1, "acc": "yes"}]
    rollouts = rollouts_of(args, [a_sample(0, row) for row in rows], "acc")
    np.testing.assert_array_equal(rollouts.successes_N, [1.0, 0.0, np.nan, np.nan])
    session = a_session(prompts=2, mean=4, success_threshold=0.0)
    counts = session.plan("ab", range(2), budget=8, trained=2)
    back = [a_sample(g, {"score": 0.3, "acc": True}) for g in range(2) for _ in range(counts[g])]
    with pytest.raises(ConfigError, match="does not fit the threshold"):
        session.told(rollouts_of(args, back, "acc"))


def test_batches_that_nobody_tells_of_are_noticed() -> None:
    session = a_session()
    for batch in range(2):
        session.plan(list("abcdefgh"), range(8 * batch, 8 * batch + 8), budget=64, trained=8)
    with pytest.raises(ConfigError, match="nothing was told"):
        session.plan(list("abcdefgh"), range(16, 24), budget=64, trained=8)


def test_what_was_not_asked_for_changes_nothing() -> None:
    session = a_session()
    counts = session.plan(list("abcdefgh"), range(8), budget=64, trained=8)
    before = json.dumps(str(session.planner.state_dict()))
    for wrong, match in (([*counts, 1], "no group"), ([counts[0] + 1, *counts[1:]], "more rollouts")):
        with pytest.raises(InvalidInputError, match=match):
            session.told(came_back(wrong))
    assert json.dumps(str(session.planner.state_dict())) == before
    session.told(came_back(counts))
    with pytest.raises(InvalidInputError, match="no group"):
        session.told(came_back(counts))


def test_a_group_that_never_comes_is_closed_with_what_came() -> None:
    session = a_session(prompts=2, mean=4)
    counts = session.plan("ab", [0, 1], budget=8, trained=2)
    session.told(came_back([counts[0]]))
    assert session.is_open(1)
    for batch in range(1, 20):
        counts = session.plan("ab", [2 * batch, 2 * batch + 1], budget=8, trained=2)
        session.told(came_back([0] * 2 * batch + counts))
    assert not session.is_open(1)
    assert session.planner.missing_rollouts > 0


def test_a_planner_object_by_import_path() -> None:
    planner = check_args(arguments({"planner": "allotment:VIP", "planner_kwargs": {"bounds": [3, 32]}}))
    assert isinstance(planner, VIP)
    assert planner.budget == 64
