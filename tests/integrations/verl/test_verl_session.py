"""What a session does with the prompts verl fetches and the rollouts it brings back, without Ray."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allotment.errors import ConfigError, RewardMismatchError, StateError
from allotment.integrations.verl import running
from allotment.integrations.verl.config import AllotmentSettings, Batch
from allotment.integrations.verl.running import current_session
from allotment.integrations.verl.session import PLANNER_FILE, Session
from allotment.planning import VIP


def session_in(
    folder: Path, *, prompts=8, mean=8, is_sync=True, patience=4, bounds=(3, 32), estimator="rloo", **settings
):
    planner = VIP(budget=prompts * mean, bounds=bounds, estimator=estimator, seed=1)
    return Session(planner, AllotmentSettings(**settings), Batch(prompts, mean, is_sync), folder, patience=patience)


def names(step: int, count: int) -> list[str]:
    return [f"{step:08x}-{row}" for row in range(count)]


def come_back(session: Session, uids, counts, keys, seed: int = 0) -> None:
    """Every rollout of these rows; a prompt succeeds with a probability of its own."""
    random = np.random.default_rng(seed)
    told = [uid for uid, count in zip(uids, counts, strict=True) for _ in range(count)]
    p = [(hash_of(key) % 5) / 4 for key, count in zip(keys, counts, strict=True) for _ in range(count)]
    session.tell(told, (random.random(len(told)) < p).astype(float), [3] * len(told))


def hash_of(key: str) -> int:
    return sum(map(ord, key))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]


def test_the_budget_is_exact_and_the_log_has_it(tmp_path) -> None:
    session = session_in(tmp_path)
    keys = [f"d/{i}" for i in range(8)]
    for step in range(1, 9):
        uids = names(step, 8)
        counts = session.plan(uids, keys, step)
        assert sum(counts) == 64
        come_back(session, uids, counts, keys, step)
        figures = session.take_figures()
        assert figures["budget"] == 64
        assert figures["tokens"] == 3 * 64
    assert len(set(counts)) > 2
    assert [sum(r["n"] for r in lines(tmp_path) if r["step"] == step) for step in range(1, 9)] == [64] * 8
    assert session.take_figures() == {}


@given(keys=st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_a_prompt_that_stands_twice_is_planned_for_twice(tmp_path_factory, keys) -> None:
    session = session_in(tmp_path_factory.mktemp("twice"), prompts=4)
    uids, names_ = names(1, len(keys)), [f"d/{key}" for key in keys]
    counts = session.plan(uids, names_, 1)
    assert all(3 <= count <= 32 for count in counts)
    assert sum(counts) == len(keys) * 8
    come_back(session, uids, counts, names_)
    assert not session.planner.open_plans


def test_a_part_that_never_comes_is_missing_where_training_is_synchronous(tmp_path) -> None:
    session, keys, uids = session_in(tmp_path), [f"d/{i}" for i in range(8)], names(1, 8)
    counts = session.plan(uids, keys, 1)
    come_back(session, uids[:5], counts[:5], keys[:5])
    assert not session.planner.open_plans
    assert session.take_figures()["unscored"] == sum(counts[5:])
    assert {row["prompt_id"] for row in lines(tmp_path)} == set(keys[:5])


def test_an_asynchronous_plan_waits_for_its_parts_and_for_no_longer_than_patience(tmp_path) -> None:
    session, keys = session_in(tmp_path, is_sync=False, patience=3), [f"d/{i}" for i in range(8)]
    first = session.plan(names(1, 8), keys, 1)
    come_back(session, names(1, 8)[:5], first[:5], keys[:5])
    assert len(session.planner.open_plans) == 1
    second = session.plan(names(2, 8), keys, 2)
    come_back(session, names(2, 8)[:3] + names(1, 8)[5:7], second[:3] + first[5:7], keys[:3] + keys[5:7])
    assert len(session.planner.open_plans) == 2
    come_back(session, names(2, 8)[3:], second[3:], keys[3:])
    assert len(session.planner.open_plans) == 1
    assert sum(row["n"] for row in lines(tmp_path)) == 64
    third = session.plan(names(4, 8), keys, 4)
    come_back(session, names(4, 8), third, keys)
    assert not session.planner.open_plans  # the first was given up: one row of it is missing
    figures = session.take_figures()
    assert figures["unscored"] == first[7]
    assert figures["zero_count"] == 0
    come_back(session, names(1, 8)[7:], first[7:], keys[7:])  # too late: ignored
    assert sum(row["n"] for row in lines(tmp_path)) == 3 * 64 - first[7]


def test_what_belongs_to_nobody_is_ignored(tmp_path) -> None:
    session, keys, uids = session_in(tmp_path), [f"d/{i}" for i in range(8)], names(1, 8)
    counts = session.plan(uids, keys, 1)
    session.tell(["pad00"] * 5 + ["another"], [0.0] * 6, [1] * 6)
    assert len(session.planner.open_plans) == 1
    come_back(session, uids, counts, keys)
    come_back(session, uids, counts, keys)  # a second time
    assert sum(row["n"] for row in lines(tmp_path)) == 64


def test_a_reward_that_is_no_number_is_not_told(tmp_path) -> None:
    session, keys, uids = session_in(tmp_path), [f"d/{i}" for i in range(8)], names(1, 8)
    counts = session.plan(uids, keys, 1)
    told = [uid for uid, count in zip(uids, counts, strict=True) for _ in range(count)]
    session.tell(told, [np.nan, *[1.0] * 63], [1] * 64)
    assert session.take_figures()["unscored"] == 1
    counts = session.plan(names(2, 8), keys, 2)
    told = [uid for uid, count in zip(names(2, 8), counts, strict=True) for _ in range(count)]
    session.tell(told, [np.nan] * 64, [1] * 64)
    assert session.take_figures()["unscored"] == 64


def test_more_rollouts_than_planned_are_refused_and_nothing_is_learnt(tmp_path) -> None:
    session, keys, uids = session_in(tmp_path), [f"d/{i}" for i in range(8)], names(1, 8)
    session.plan(uids, keys, 1)
    with pytest.raises(RewardMismatchError, match="more rewards than planned"):
        session.tell([uids[0]] * 33, [1.0] * 33, [1] * 33)
    assert len(session.planner.open_plans) == 1


def test_rows_issued_again_keep_their_counts(tmp_path) -> None:
    session, keys, uids = session_in(tmp_path, is_sync=False), [f"d/{i}" for i in range(8)], names(1, 8)
    counts = session.plan(uids, keys, 1)
    assert session.plan(uids[::-1], keys[::-1], 2) == counts[::-1]
    assert len(session.planner.open_plans) == 1


@pytest.mark.parametrize("is_sync", [True, False])
def test_resuming_gives_the_same_plans(tmp_path, is_sync) -> None:
    keys = [f"d/{i}" for i in range(8)]
    session = session_in(tmp_path, is_sync=is_sync)
    for step in range(1, 6):
        counts = session.plan(names(step, 8), keys, step)
        come_back(
            session, names(step, 8)[: 8 if is_sync else 6], counts[: 8 if is_sync else 6], keys[: 8 if is_sync else 6]
        )
    (tmp_path / "ckpt").mkdir()
    session.save(tmp_path / "ckpt")
    resumed = session_in(tmp_path, is_sync=is_sync)
    resumed.load(tmp_path / "ckpt")
    assert len(resumed.planner.open_plans) == len(session.planner.open_plans)
    for uids in (names(6, 8), names(5, 8)[6:] if not is_sync else names(7, 2)):
        assert resumed.plan(uids, keys[: len(uids)], 6) == session.plan(uids, keys[: len(uids)], 6)


@given(requests=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=9), min_size=1, max_size=6))
def test_a_synchronous_request_of_any_size_is_exact(tmp_path_factory, requests) -> None:
    """A last batch that is not full, the same prompt several times, and the steps after it."""
    session = session_in(tmp_path_factory.mktemp("partial"))
    for step, keys in enumerate(requests, 1):
        names_, uids = [f"d/{key}" for key in keys], names(step, len(keys))
        counts = session.plan(uids, names_, step)
        assert sum(counts) == 8 * len(keys)
        come_back(session, uids, counts, names_, step)
        assert not session.planner.open_plans


def test_the_log_goes_on_from_the_checkpoint(tmp_path) -> None:
    keys, session = [f"d/{i}" for i in range(8)], session_in(tmp_path)
    for step in range(1, 5):
        come_back(session, names(step, 8), session.plan(names(step, 8), keys, step), keys, step)
        if step == 2:
            (tmp_path / "ckpt").mkdir()
            session.save(tmp_path / "ckpt")
    resumed = session_in(tmp_path)
    resumed.load(tmp_path / "ckpt")
    assert {row["step"] for row in lines(tmp_path)} == {1, 2}


def test_a_checkpoint_without_or_with_a_damaged_planner(tmp_path, caplog) -> None:
    session = session_in(tmp_path)
    session.load(tmp_path)
    assert "starts without a record" in caplog.text
    (tmp_path / PLANNER_FILE).write_bytes(b"nothing")
    with pytest.raises(StateError, match="cannot read the state file"):
        session.load(tmp_path)


@pytest.mark.parametrize("is_sync", [True, False])
@pytest.mark.parametrize(
    "other",
    [{"prompts": 4}, {"mean": 12}, {"bounds": (2, 16)}, {"estimator": "dr_grpo"}, {"prompts": 12, "mean": 4}],
    ids=str,
)
def test_beliefs_are_taken_over_whatever_the_batch_is_now(tmp_path, is_sync, other, caplog) -> None:
    keys, session = [f"d/{i}" for i in range(8)], session_in(tmp_path, is_sync=is_sync)
    for step in range(1, 9):
        come_back(session, names(step, 8), session.plan(names(step, 8), keys, step), keys, step)
    session.plan(names(9, 3), keys[:3], 9)  # an asynchronous run is saved with plans under way
    session.save(tmp_path)
    resumed = session_in(tmp_path, is_sync=is_sync, **other)
    resumed.load(tmp_path)
    believed = [s.planner.predictor.predict(keys).success_probability() for s in (session, resumed)]
    np.testing.assert_array_equal(*believed)
    assert believed[0].std() > 0.1
    assert (resumed.step, resumed.planner.open_plans) == (9, ())
    assert "planned for anew" in caplog.text
    prompts, mean = resumed.batch.prompts, resumed.batch.mean
    assert sum(resumed.plan(names(10, prompts), [f"d/{i}" for i in range(prompts)], 10)) == prompts * mean


def test_prompts_that_are_not_trained_on(tmp_path) -> None:
    session, keys, uids = session_in(tmp_path, trained_prompts=3), [f"d/{i}" for i in range(8)], names(1, 8)
    counts = session.plan(uids, keys, 1)
    assert counts.count(0) == 5
    assert sum(counts) == 64
    come_back(session, uids, counts, keys)
    assert session.take_figures()["zero_count"] == 5


def test_an_estimator_without_a_manager_says_what_is_missing(monkeypatch) -> None:
    monkeypatch.setattr(running, "_current", None)
    with pytest.raises(ConfigError, match="agent_loop_manager_class"):
        current_session()
