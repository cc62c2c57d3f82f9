"""The parts between verl and a session: order, keys, configuration, estimators, versions."""

import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.utils import need_critic
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.utils.config import validate_config
from verl_cases import config_of

from allotment.errors import ConfigError, MissingExtraError
from allotment.integrations import versions as any_versions
from allotment.integrations.verl import running, versions
from allotment.integrations.verl.config import planner_of, read, resume_folder, set_values
from allotment.integrations.verl.dispatch import balanced_order
from allotment.integrations.verl.session import Session
from allotment.integrations.verl.weighing import final_keys
from allotment.planning import VIP, Uniform

ROOT = Path(__file__).parents[3]


HOOK = "+allotment.trainer_hook=true"
CALLBACK = "++trainer.checkpoint_callback_class=allotment.integrations.verl.AllotmentCheckpoint"


def planner_from(*overrides: str):
    config = config_of(*overrides)
    return planner_of(config, *read(config))


def chunk_sums(counts: list[int], order: list[int], workers: int) -> list[int]:
    batch = TensorDict({"n": torch.tensor([counts[q] for q in order])}, batch_size=len(counts))
    return [int(chunk["n"].sum()) for chunk in batch.chunk(workers)]


@given(st.lists(st.integers(0, 32), min_size=1, max_size=60), st.integers(1, 9))
def test_workers_get_equal_shares_of_the_rollouts(counts, workers) -> None:
    order = balanced_order(counts, workers)
    assert sorted(order) == list(range(len(counts)))
    sums = chunk_sums(counts, order, workers)
    if len(counts) % workers == 0:
        assert max(sums) - min(sums) <= max(counts)


@given(st.lists(st.integers(0, 20), min_size=6, max_size=6))
def test_shares_are_close_to_the_best_there_are(counts) -> None:
    best = min(max(chunk_sums(counts, list(order), 2)) for order in permutations(range(6)) if order[0] < order[3])
    assert max(chunk_sums(counts, balanced_order(counts, 2), 2)) <= 4 / 3 * best


def test_of_several_outputs_the_last_counts_and_padding_does_not() -> None:
    keys = ["a_0_0", "a_0_10", "a_0_2", "a_1_0", "b_0_0", "padf_0_0"]
    tags = [{"is_padding": key.startswith("pad")} for key in keys]
    assert final_keys(SimpleNamespace(keys=keys, tags=tags)) == ["a_0_10", "a_1_0", "b_0_0"]


def test_the_documented_yaml_and_the_overrides_are_one_configuration() -> None:
    needed = ["actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8"]
    needed += ["actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8"]
    with initialize_config_dir(str(ROOT / "examples"), version_base=None):
        by_file = compose("verl_vip", needed)
    validate_config(by_file, use_reference_policy=False, use_critic=need_critic(by_file))
    assert get_trainer_cls(by_file.trainer.v1.trainer_mode).verl_mode == "sync"
    set_values(by_file, {"allotment.trainer_hook": True})
    settings, _ = read(by_file)
    own = ["+allotment.planner=vip", "+allotment.planner_kwargs.bounds=[3,32]", "+allotment.trainer_hook=true"]
    by_override = config_of(*own)
    assert read(by_override)[0].model_dump() == settings.model_dump()
    planner = planner_of(by_file, *read(by_file))
    assert isinstance(planner, VIP)
    assert planner.bounds == (3, 32)


def test_the_planner_fits_verls_batch() -> None:
    planner = planner_from()
    assert (planner.budget, planner.bounds, planner.estimator) == (128, (3, 32), "rloo")
    assert planner_from("algorithm.adv_estimator=allotment_dr_grpo").estimator == "dr_grpo"
    assert isinstance(planner_from("+allotment.planner=uniform"), Uniform)
    assert planner_from("+allotment.planner='allotment.planning:VIP'").budget == 128
    assert planner_from("actor_rollout_ref.rollout.n=16").bounds == (3, 64)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.use_v1=false"], "legacy trainer"),
        (["actor_rollout_ref.rollout.n=1"], "group of one"),
        (["algorithm.filter_groups.enable=true"], "filtered groups"),
        (["algorithm.adv_estimator=gae", HOOK], r"adv_estimator=gae[\s\S]*allotment_rloo"),
        (["algorithm.adv_estimator=reinforce_plus_plus", HOOK], "counts by its number of rollouts"),
        (["algorithm.adv_estimator=remax", HOOK], "no other of its prompt"),
        (["trainer.v1.trainer_mode=colocate_async"], "a further optimizer step"),
        ([HOOK, "trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.parameter_sync_step=3"], "equal"),
        (["+allotment.prompt_timeout=0"], "prompt_timeout"),
        (["+allotment.planner=vip-second-look"], "rounds"),
        (["+allotment.planner=vip-tokens"], "tokens"),
        (
            ["trainer.v1.sampler.sync_refill_failed_groups=true", "+allotment.planner=joint"],
            "sync_refill_failed_groups",
        ),
        (["algorithm.adv_estimator=grpo"], "nothing tells the planner"),
        (["algorithm.use_kl_in_reward=true"], "KL penalty"),
        (["+allotment.trained_prompts=17"], "does not fit the batch"),
        (["+allotment.trained_prompts=4", "trainer.v1.trainer_mode=colocate_async"], "does not fit the batch"),
        (["+allotment.plannner=vip"], "did you mean 'planner'"),
        (["+allotment.planner=best"], "unknown planner"),
        (["+allotment.planner='nowhere:make'"], "cannot be imported"),
        (["+allotment.planner_kwargs.bounds=[1,32]"], "lower"),
        (["+allotment.planner_kwargs.bounds=[9,32]"], "does not fit the batch of verl"),
        (["+allotment.planner_kwargs.budget=100"], "budget 128 = train_batch_size x n"),
        (["+allotment.planner_kwargs.rounds=2"], "a planner of one round"),
        (["+allotment.planner=vip-moments"], "told rewards alone"),
        (["+allotment.trained_prompts=2"], "mean over 2 prompts"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(overrides, words) -> None:
    with pytest.raises((ConfigError, ValueError), match=words):
        planner_from(*overrides)


def test_what_is_legal_in_verl_is_no_error() -> None:
    assert planner_from("algorithm.filter_groups=null").budget == 128
    assert planner_from("trainer.v1.sampler.custom_sampler=null").budget == 128
    assert planner_from("trainer.v1.sampler.sync_refill_failed_groups=true").budget == 128
    for name in ("grpo", "rloo", "opo", "reinforce_plus_plus_baseline", "gpg"):
        assert planner_from(f"algorithm.adv_estimator={name}", HOOK).budget == 128
    assert planner_from("actor_rollout_ref.rollout.n=1", "+allotment.planner=joint").budget == 16


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.train_batch_size=1"], "raise data.train_batch_size"),
        (["+allotment.planner_kwargs.bounds=[8,32]"], "wider bounds"),
        (["actor_rollout_ref.rollout.n=2"], "raise actor_rollout_ref.rollout.n"),
        ([HOOK, "trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.parameter_sync_step=16"], "lower"),
    ],
)
def test_a_batch_that_leaves_nothing_to_allocate_is_warned_of(overrides, words, caplog) -> None:
    planner_from(*overrides)
    assert words in caplog.text
    caplog.clear()
    planner_from(*overrides, "+allotment.planner=uniform")
    assert "nothing to allocate" not in caplog.text


@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
def test_settings_are_refused_before_a_model_is_loaded(mode) -> None:
    """In the constructor of the trainer, before its ``init``; with import paths, in that of the callback."""
    wrong = config_of("algorithm.filter_groups.enable=true", f"trainer.v1.trainer_mode=allotment_{mode}")
    with pytest.raises(ConfigError, match="filtered groups"):
        get_trainer_cls(f"allotment_{mode}")(wrong)
    by_path = config_of("algorithm.filter_groups.enable=true", CALLBACK)
    with pytest.raises(ConfigError, match="filtered groups"):
        get_trainer_cls("sync")(by_path)


def test_the_checkpoint_is_the_one_verl_resumes_from(tmp_path) -> None:
    local = f"trainer.default_local_dir={tmp_path}"
    assert resume_folder(config_of(local)) is None
    (tmp_path / "global_step_3").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    assert resume_folder(config_of(local)) == tmp_path / "global_step_3"
    assert resume_folder(config_of(local, "trainer.resume_mode=disable")) is None
    by_path = f"trainer.resume_from_path={tmp_path}/global_step_1"
    assert resume_folder(config_of(local, "trainer.resume_mode=resume_path", by_path)) == tmp_path / "global_step_1"


@pytest.fixture
def session(tmp_path, monkeypatch) -> Session:
    config = config_of()
    session = Session(planner_from(), *read(config), tmp_path)
    monkeypatch.setattr(running, "_current", session)
    return session


@pytest.mark.parametrize("name", ["rloo", "dr_grpo", "grpo"])
def test_estimators_on_ragged_groups_with_padding(session, name) -> None:
    uids = [f"{q:x}" for q in range(16)]
    counts = session.plan(uids, [f"d/{q}" for q in range(16)], 1)
    index = np.array([*np.repeat(uids, counts), "pad1", "pad1"], dtype=object)
    random = np.random.default_rng(0).permutation(len(index))
    index = index[random]
    rewards = torch.zeros(len(index), 5)
    rewards[:, 2] = torch.from_numpy((np.random.default_rng(1).random(len(index)) < 0.5).astype(np.float32))
    mask = torch.ones(len(index), 5)
    mask[:, 3:] = 0
    rewards[index == "pad1"], mask[index == "pad1"] = 0, 0
    advantages, returns = core_algos.get_adv_estimator_fn(f"allotment_{name}")(
        token_level_rewards=rewards, response_mask=mask, index=index, config=None
    )
    assert torch.equal(advantages, returns)
    assert (advantages[mask == 0] == 0).all()
    assert (advantages[index == "pad1"] == 0).all()
    for uid, count in zip(uids, counts, strict=True):
        own = advantages[index == uid]
        assert len(own) == count
        assert own[:, 0].sum().abs() < 1e-6 * (1 if name != "grpo" else 10)
        assert (own[:, 0] == own[:, 2]).all()
    assert session.take_figures()["budget"] == 128


def test_equal_groups_are_verls_own_rloo(session) -> None:
    index = np.repeat([f"{q:x}" for q in range(4)], 8).astype(object)
    rewards, mask = torch.zeros(32, 3), torch.ones(32, 3)
    rewards[:, 1] = torch.rand(32, generator=torch.Generator().manual_seed(0))
    keywords = {"token_level_rewards": rewards, "response_mask": mask, "index": index, "config": None}
    for own, stock in (("allotment_rloo", "rloo"), ("allotment_rloo", "rloo_vectorized")):
        ours, theirs = (core_algos.get_adv_estimator_fn(name)(**keywords)[0] for name in (own, stock))
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_a_group_of_one_has_no_advantage_unlike_verls(session) -> None:
    rewards, mask, index = torch.ones(1, 1), torch.ones(1, 1), np.array(["a"], dtype=object)
    stock, _ = core_algos.compute_grpo_outcome_advantage(rewards, mask, index)
    ours, _ = core_algos.get_adv_estimator_fn("allotment_grpo")(
        token_level_rewards=rewards, response_mask=mask, index=index
    )
    assert stock.item() > 0.9
    assert ours.item() == 0


def test_trainers_are_registered_by_name() -> None:
    for mode in ("sync", "colocate_async", "separate_async"):
        assert issubclass(get_trainer_cls(f"allotment_{mode}"), get_trainer_cls(mode))


@pytest.mark.parametrize(("installed", "fits"), [("0.9.1", True), ("0.9.0", False), ("0.9.2", True), ("1.0.0", True)])
def test_an_older_verl_is_refused_and_a_newer_one_tried(monkeypatch, installed, fits) -> None:
    monkeypatch.setattr(any_versions, "version", lambda name: installed)
    if not fits:
        with pytest.raises(MissingExtraError, match=r"pip install 'verl==0.9.1'"):
            versions.check_verl()
    else:
        warning = versions.check_verl()
        assert (warning is None) == (installed == "0.9.1")


def test_a_source_tree_that_lacks_a_part_is_told_by_name() -> None:
    versions.check_parts()
    parts = ("verl.trainer.ppo.no_such", "Callback"), ("verl.trainer.ppo.core_algos", "NoManager")
    words = r"without verl\.trainer\.ppo\.no_such\.Callback, \S+\.NoManager"
    with pytest.raises(MissingExtraError, match=words) as error:
        versions.check_parts(parts)
    assert "pip install 'verl==0.9.1'" in str(error.value)


def test_verl_finds_the_trainers_by_itself() -> None:
    """Through the entry point: no environment variable, which a cluster that runs already would not see."""
    code = "from verl.trainer.ppo.v1 import get_trainer_cls as get; print(get('allotment_sync').verl_mode)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VERL_USE")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["sync"]


def test_a_verl_of_another_make_is_refused() -> None:
    with pytest.raises(MissingExtraError, match="without no_such_method"):
        versions.check_methods(get_trainer_cls("sync"), ("fit", "no_such_method"))
