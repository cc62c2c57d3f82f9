"""Groups that fail, prompts that take too long, workers that are dead: budgets stay exact, and the run goes on."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError
from tensordict import TensorDict
from test_verl_session import come_back, names, session_in
from verl.utils import tensordict_utils as tu

from allotment.integrations.verl import manager as manager_module
from allotment.integrations.verl import watch as watch_module
from allotment.integrations.verl.book import PromptBook
from allotment.integrations.verl.manager import ROLLOUTS, AllotmentAgentLoopManager
from allotment.integrations.verl.watch import Sent, Watch


@given(failed=st.sets(st.integers(0, 7), min_size=1), keys=st.lists(st.integers(0, 20), min_size=8, max_size=8))
def test_refilled_prompts_get_what_the_failed_ones_had(tmp_path_factory, failed, keys) -> None:
    """``sync_refill_failed_groups``: the step has the rollouts it was to have, and so have all later ones."""
    session = session_in(tmp_path_factory.mktemp("refill"))
    for step in range(1, 7):
        own, uids = [f"d/{i}" for i in range(8)], names(step, 8)
        counts = session.plan(uids, own, step, set(uids))
        assert sum(counts) == 64
        if step == 4:
            alive = [uid for q, uid in enumerate(uids) if q not in failed]
            fresh = [f"{step:08x}-{q}" for q in range(100, 100 + len(failed))]
            more = [f"d/{key}" for key in keys[: len(failed)]]
            refilled = session.plan(fresh, more, step, {*alive, *fresh})
            assert sum(refilled) == sum(counts[q] for q in failed)
            assert all(3 <= count <= 32 for count in refilled)
            came = [q for q in range(8) if q not in failed]
            uids, own = [*alive, *fresh], [*(own[q] for q in came), *more]
            counts = [*(counts[q] for q in came), *refilled]
        come_back(session, uids, counts, own, step)
        assert not session.planner.open_plans


def test_a_refilled_prompt_may_fail_too(tmp_path) -> None:
    session, uids, alive = session_in(tmp_path), names(1, 8), set(names(1, 8)[1:])
    counts = session.plan(uids, [f"d/{i}" for i in range(8)], 1, set(uids))
    for attempt in range(3):
        fresh = [f"again-{attempt}"]
        assert session.plan(fresh, ["d/9"], 1, {*alive, *fresh}) == counts[:1]


def test_an_asynchronous_group_that_fails_gives_its_budget_back(tmp_path) -> None:
    session = session_in(tmp_path, is_sync=False)
    uids, keys = names(1, 8), [f"d/{i}" for i in range(8)]
    counts = session.plan(uids, keys, 1, set(uids))
    alive = {*uids[:3], *uids[5:]}
    fresh = names(2, 2)
    refilled = session.plan(fresh, ["d/8", "d/9"], 1, {*alive, *fresh})
    assert sum(refilled) == sum(counts[3:5])
    come_back(session, uids[:3] + uids[5:], counts[:3] + counts[5:], keys[:3] + keys[5:])
    come_back(session, fresh, refilled, ["d/8", "d/9"])
    assert not session.planner.open_plans


def test_a_group_that_was_given_up_late_gives_its_budget_back(tmp_path) -> None:
    """Its plan was closed before, after ``patience`` steps; also in a resumed run."""
    session = session_in(tmp_path, is_sync=False, patience=2)
    uids, keys = names(1, 8), [f"d/{i}" for i in range(8)]
    first = session.plan(uids, keys, 1, set(uids))
    come_back(session, uids[:7], first[:7], keys[:7])
    for step in (2, 3):
        own = names(step, 8)
        come_back(session, own, session.plan(own, keys, step, {*own, uids[7]}), keys)
    assert not session.planner.open_plans
    session.save(tmp_path)
    resumed = session_in(tmp_path, is_sync=False)
    resumed.load(tmp_path)
    for either in (session, resumed):
        fresh = names(9, 9)
        counts = either.plan(fresh, [f"d/{i}" for i in range(9)], 9, set(fresh))
        assert sum(counts) == 64 + first[7]


class Queue:
    """TransferQueue as a table, and Ray's answers."""

    def __init__(self, monkeypatch, *modules) -> None:
        self.tags: dict[str, dict[str, dict]] = {"train": {}, "val": {}}
        for module in modules:
            monkeypatch.setattr(module, "tq", self)

    def kv_list(self):
        return {name: {key: dict(tag) for key, tag in tags.items()} for name, tags in self.tags.items()}

    def kv_put(self, key, partition_id, tag) -> None:
        self.tags[partition_id].setdefault(key, {}).update(tag)

    def kv_batch_put(self, keys, partition_id, tags) -> None:
        for key, tag in zip(keys, tags, strict=True):
            self.kv_put(key, partition_id, tag)

    def kv_clear(self, keys, partition_id) -> None:
        for key in keys:
            self.tags[partition_id].pop(key)


@pytest.fixture
def quiet_watch(monkeypatch):
    """A watch whose thread does nothing: the tests look themselves."""
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)
    return lambda workers, limit=None: Watch(workers, limit)


def prompt(status: str) -> dict:
    return {"is_prompt": True, "status": status}


def test_a_prompt_that_takes_too_long_fails(quiet_watch, monkeypatch) -> None:
    queue, watch = Queue(monkeypatch, watch_module), quiet_watch(["w"], limit=60.0)
    queue.tags["train"] = {"a": prompt("running"), "b": prompt("finished"), "c": prompt("running"), "a_0_0": {}}
    queue.tags["val"] = {"d": prompt("pending")}
    watch._sent = {uid: Sent("train", "w", 0.0) for uid in "ab"} | {"c": Sent("train", "w", 50.0)}
    watch._sent["d"] = Sent("val", "w", 0.0)
    watch._fail_late(before=10.0)
    status = {key: tag["status"] for tags in queue.tags.values() for key, tag in tags.items() if "status" in tag}
    assert status == {"a": "failure", "b": "finished", "c": "running", "d": "failure"}
    assert "a_0_0" in queue.tags["train"]  # a synchronous step trains on what came
    del queue.tags["train"]["a"], queue.tags["train"]["a_0_0"]  # as verl's buffer does
    queue.tags["train"] |= {"a_1_0": {"status": "success"}, "a": {"status": "finished"}}  # what its worker still sends
    watch._fail_late(before=10.0)
    assert set(queue.tags["train"]) == {"b", "c"}


def test_without_a_limit_a_prompt_is_waited_for(quiet_watch) -> None:
    assert quiet_watch(["w"])._limit is None


class Worker:
    """An agent-loop worker that is alive, or died before its next call."""

    def __init__(self, *, is_dead: bool = False) -> None:
        self.is_dead, self.got, self.generate_sequences = is_dead, [], self

    def remote(self, share):
        if not self.is_dead:
            self.got += zip(tu.get(share, "uid"), tu.get(share, ROLLOUTS).tolist(), strict=True)
        return self

    def answer(self) -> None:
        if self.is_dead:
            raise ActorDiedError


@pytest.fixture
def dispatch(quiet_watch, monkeypatch, tmp_path):
    """A manager with workers of its own, and what it dispatches a batch to."""

    def make(*dead: int, workers: int = 4):
        queue = Queue(monkeypatch, watch_module, manager_module)
        monkeypatch.setattr(manager_module.ray, "get", lambda worker: worker.answer())
        manager = object.__new__(AllotmentAgentLoopManager)
        manager.agent_loop_workers = [Worker(is_dead=i in dead) for i in range(workers)]
        manager.session, manager._watch = session_in(tmp_path), None
        return manager, queue

    return make


def batch(step: int, queue: Queue) -> TensorDict:
    uids = names(step, 8)
    queue.tags["train"].update({uid: prompt("pending") for uid in uids})
    raw = [[{"role": "user", "content": f"{q} + 1"}] for q in range(8)]
    info = [{"index": q} for q in range(8)]
    made = tu.get_tensordict({"uid": uids, "raw_prompt": raw, "data_source": ["d"] * 8, "extra_info": info})
    tu.assign_non_tensor_data(made, "global_steps", step)
    return made


@pytest.mark.parametrize("dead", [(), (1,), (0, 3), (0, 1, 2)])
def test_the_share_of_a_worker_that_is_dead_goes_to_the_others(dispatch, dead) -> None:
    manager, queue = dispatch(*dead)
    everyone = list(manager.agent_loop_workers)
    manager.generate_sequences(batch(1, queue))
    got = [entry for worker in everyone for entry in worker.got]
    assert sorted(uid for uid, _ in got) == names(1, 8)
    assert sum(int(count) for _, count in got) == 64
    assert manager.agent_loop_workers == [w for i, w in enumerate(everyone) if i not in dead]
    assert {tag["status"] for tag in queue.tags["train"].values()} == {"pending"}
    manager.generate_sequences(batch(2, queue))
    assert [bool(worker.got) for worker in everyone] == [i not in dead for i in range(4)]


def test_without_a_worker_the_run_stops(dispatch) -> None:
    manager, queue = dispatch(0, 1, workers=2)
    with pytest.raises(RuntimeError, match="no agent-loop worker is alive"):
        manager.generate_sequences(batch(1, queue))


def test_a_name_of_two_prompts_stops_the_run_unless_it_is_allowed(dispatch) -> None:
    manager, queue = dispatch()
    manager.generate_sequences(batch(1, queue))
    other = batch(2, queue)
    other["raw_prompt"] = tu.get_tensordict({"p": [[{"role": "user", "content": "another"}]] * 8})["p"]
    with pytest.raises(ValueError, match="two different prompts have the name 'd/0'"):
        manager.generate_sequences(other)
    manager.session.settings = manager.session.settings.model_copy(update={"check_prompts": False})
    manager.session.book = PromptBook()
    manager.generate_sequences(batch(3, queue))
    manager.generate_sequences(other)


def test_the_watch_marks_what_a_dead_worker_had(quiet_watch, monkeypatch) -> None:
    queue, workers = Queue(monkeypatch, watch_module), ["dead", "alive"]
    watch = quiet_watch(workers)
    queue.tags["train"] = {"a": prompt("running"), "b": prompt("running"), "c": prompt("finished")}
    watch.sent("dead", "ac", "train")
    watch.sent("alive", "b", "train")
    watch.bury("dead")
    assert [queue.tags["train"][uid]["status"] for uid in "abc"] == ["failure", "running", "finished"]
    assert workers == ["alive"]
