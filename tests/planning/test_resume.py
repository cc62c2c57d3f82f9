"""A planner that was saved and loaded goes on to the last bit as if nothing had happened; a bad state loads nothing."""

import copy

import numpy as np
import pytest
from planning_cases import (
    EMBEDDED,
    EMBEDDINGS,
    IDS,
    NAMES,
    assert_same,
    assert_same_plan,
    make,
    rewards_for,
    snapshot,
    with_history,
)

from allotment import VIP, Uniform
from allotment.errors import StateError, StateVersionError
from allotment.planning import InverseAccuracy
from allotment.prediction import DiscountedCounts, GlobalMean, LastValue
from allotment.state import load_state, save_state

every_planner = pytest.mark.parametrize("name", NAMES)


def busy(name, **settings):
    """A planner after ten steps, with three plans open (steps 9, 10, 11), one of them partly told."""
    planner = with_history(make(name, **settings), steps=9)
    plans = [planner.ask(batch, budget=6 * len(batch)) for batch in (IDS, IDS[3:8], IDS[:2])]
    rewards, groups = rewards_for(plans[1], np.random.default_rng(5))
    planner.tell(plans[1], rewards[:7], groups[:7], final=False)
    return planner, plans, (rewards[7:], groups[7:])


def go_on(planner, plans, rest):
    """Tell what is open and take further steps; every plan and outcome on the way."""
    seen = [planner.ask(IDS)]
    planner.tell(plans[2], *rewards_for(plans[2], np.random.default_rng(6)))
    planner.tell(plans[1], *rest)
    planner.cancel(plans[0])
    for step in range(3):
        plan = planner.ask(IDS[step:])
        planner.tell(plan, *rewards_for(plan, np.random.default_rng(step), np.linspace(0, 1, len(IDS) - step)))
        seen.append(plan)
    return seen


@every_planner
@pytest.mark.parametrize("estimator", ["rloo", "dr_grpo"])
def test_a_loaded_planner_goes_on_bit_for_bit(name, estimator, tmp_path):
    planner, plans, rest = busy(name, estimator=estimator)
    planner.save(tmp_path / "planner")
    loaded = make(name, estimator=estimator)
    assert loaded.load(tmp_path / "planner") is loaded
    assert_same(loaded.state_dict(), planner.state_dict())
    assert loaded.missing_rollouts == planner.missing_rollouts > 0
    for one, other in zip(go_on(planner, plans, rest), go_on(loaded, plans, rest), strict=True):
        assert_same_plan(one, other)
    assert_same(loaded.state_dict(), planner.state_dict())


@every_planner
def test_open_plans_can_be_told_in_a_new_process(name, tmp_path):
    """There, the plan objects are gone: the planner hands them out again, oldest first."""
    planner, plans, rest = busy(name)
    planner.save(tmp_path / "planner")
    loaded = make(name).load(tmp_path / "planner")
    assert [(p.prompt_ids, p.step, p.round) for p in loaded.open_plans] == [(p.prompt_ids, p.step, 0) for p in plans]
    assert [[type(i) for i in p.prompt_ids] for p in loaded.open_plans] == [
        [type(i) for i in p.prompt_ids] for p in plans
    ]
    for again, plan in zip(loaded.open_plans, plans, strict=True):
        np.testing.assert_array_equal(again.counts, plan.counts)
    go_on(planner, plans, rest)
    go_on(loaded, loaded.open_plans, rest)
    assert_same(loaded.state_dict(), planner.state_dict())


@every_planner
def test_a_new_planner_can_be_saved(name, tmp_path):
    planner = make(name)
    planner.save(tmp_path / "planner")
    loaded = make(name).load(tmp_path / "planner")
    assert_same_plan(loaded.ask(IDS), planner.ask(IDS))


@every_planner
def test_loading_replaces_everything(name, tmp_path):
    planner = busy(name)[0]
    planner.save(tmp_path / "planner")
    used = with_history(make(name), seed=9, steps=5)
    forgotten = used.ask(IDS[:4], budget=24)
    used.load(tmp_path / "planner")
    assert_same(used.state_dict(), planner.state_dict())
    assert forgotten.step not in [p.step for p in used.open_plans]


@every_planner
def test_a_state_is_a_copy(name):
    planner, plans, rest = busy(name)
    state = planner.state_dict()
    kept = copy.deepcopy(state)
    loaded = make(name)
    loaded.load_state_dict(state)
    go_on(planner, plans, rest)
    assert_same(state, kept)
    go_on(loaded, plans, rest)
    assert_same(state, kept)
    assert_same(loaded.state_dict(), planner.state_dict())


OTHER_SETTINGS = [
    ({"budget": 76}, "budget"),
    ({"bounds": (4, 10)}, "lower"),
    ({"bounds": (3, 11)}, "upper"),
    ({"estimator": "dr_grpo"}, "estimator"),
    ({"seed": 1}, "seed"),
]


def assert_not_loaded(planner, load, error, mentions):
    before = snapshot(planner)
    with pytest.raises(error, match=mentions) as caught:
        load()
    assert "fix:" in str(caught.value)
    assert_same(snapshot(planner), before)


@every_planner
@pytest.mark.parametrize(("setting", "named"), OTHER_SETTINGS)
def test_other_settings_are_named(name, setting, named, tmp_path):
    busy(name)[0].save(tmp_path / "planner")
    loaded = with_history(make(name, **setting), seed=3)
    assert_not_loaded(loaded, lambda: loaded.load(tmp_path / "planner"), StateError, f"'{named}'")


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"price": "plug_in"}, "plug_in"),
        ({"split": "relaxed"}, "relaxed"),
        ({"success_threshold": 1}, "success_threshold"),
    ],
)
def test_vips_own_settings_are_named(setting, named, tmp_path):
    busy("VIP")[0].save(tmp_path / "planner")
    loaded = make("VIP", **setting)
    assert_not_loaded(loaded, lambda: loaded.load(tmp_path / "planner"), StateError, f"'{named}'")


def test_another_planner_is_refused(tmp_path):
    busy("VIP")[0].save(tmp_path / "planner")
    for other in (make("Uniform"), make("InverseVariance"), make("RidgeVIP"), make("RewardVarianceVIP")):
        assert_not_loaded(other, lambda other=other: other.load(tmp_path / "planner"), StateError, "another kind")
    busy("VIP.paper")[0].save(tmp_path / "planner")
    for other in (make("VIP"), make("VIP", price="plug_in", split="relaxed")):
        assert_not_loaded(
            other, lambda other=other: other.load(tmp_path / "planner"), StateError, "plug_in|another kind"
        )


def test_another_predictor_is_refused(tmp_path):
    settings = {"budget": 75, "bounds": (3, 10)}
    for planner, other in ((VIP, VIP), (Uniform, Uniform), (InverseAccuracy, InverseAccuracy)):
        planner(**settings, predictor=LastValue()).save(tmp_path / "planner")
        for predictor in (DiscountedCounts(), GlobalMean()):
            loaded = with_history(other(**settings, predictor=predictor))
            assert_not_loaded(loaded, lambda p=loaded: p.load(tmp_path / "planner"), StateError, "another kind")


def test_a_file_that_is_no_planner_is_refused(tmp_path):
    planner = with_history(make("VIP"))
    path = tmp_path / "planner"
    assert_not_loaded(planner, lambda: planner.load(path), StateError, "cannot read")
    save_state(path, planner.state_dict(), kind="lab-checkpoint")
    assert_not_loaded(planner, lambda: planner.load(path), StateError, "another kind")
    save_state(path, {}, kind="planner")
    assert_not_loaded(planner, lambda: planner.load(path), StateError, "another kind")


def test_another_version_is_refused(tmp_path, monkeypatch):
    planner = with_history(make("VIP"))
    with monkeypatch.context() as patch:
        patch.setattr("allotment.state.FORMAT_VERSION", 2)
        planner.save(tmp_path / "planner")
    assert_not_loaded(planner, lambda: planner.load(tmp_path / "planner"), StateVersionError, "version")


def spoiled_states(state):
    """Every way in which one entry of a whole state may be wrong, with the entry's path."""
    ledger = "ledger", "10.0"
    places = {
        ("kind",): [None, 3],
        ("settings",): [None, {}, [], "x"],
        ("step",): [None, 1.5, "3", True, -1, 11, 2**70 * -1],
        ("missing",): [None, 1.5, -1, "0"],
        ("predictor",): [None, {}, 3],
        ("ledger",): [None, [], {"x": {}}, {"1": {}}, {"1.2.3": {}}, {"1.0": None}, {"1.0": {}}],
        (*ledger, "ids"): [None, state["ledger"]["10.0"]["ids"][:-2], np.zeros(3, np.uint8), state["predictor"]],
        (*ledger, "planned"): [
            np.array([99]),
            None,
            np.ones(4, np.int64),
            np.ones(5),
            -np.ones(5, np.int64),
            np.ones(5, np.int64),
        ],
        (*ledger, "rewards"): [None, np.ones(6), np.full(7, np.nan), np.ones(7, np.float32), np.ones((7, 1))],
        (*ledger, "rows"): [None, np.zeros(6, np.int64), np.full(7, 5), np.full(7, -1), np.zeros(7)],
    }
    for path, values in places.items():
        for value in values:
            spoiled = copy.deepcopy(state)
            node = spoiled
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = value
            yield path, spoiled
            spoiled = copy.deepcopy(state)
            node = spoiled
            for key in path[:-1]:
                node = node[key]
            del node[path[-1]]
            yield path, spoiled


@pytest.mark.parametrize("name", ["VIP", "VIP.paper", "RewardVarianceVIP"])
def test_a_spoiled_state_loads_nothing(name):
    state = busy(name)[0].state_dict()
    planner = with_history(make(name), seed=8, steps=2)
    planner.ask(IDS)
    before = snapshot(planner)
    for path, spoiled in spoiled_states(state):
        with pytest.raises(StateError) as caught:
            planner.load_state_dict(spoiled)
        assert "fix:" in str(caught.value), path
        assert_same(snapshot(planner), before, "/".join(path))
    for nonsense in (None, [], "state", 3):
        with pytest.raises(StateError, match="not a dict"):
            planner.load_state_dict(nonsense)
    planner.load_state_dict(state)
    assert_same(planner.state_dict(), state)


def test_the_prompts_of_the_saved_planner_come_back_with_it(tmp_path):
    """Late registrations are part of the state."""
    planner = with_history(make("VIP.paper"))
    planner.predictor.register(["late"], EMBEDDINGS[:1] + 1)
    planner.save(tmp_path / "planner")
    loaded = VIP.paper(budget=75, bounds=(3, 10), **EMBEDDED).load(tmp_path / "planner")
    assert_same_plan(loaded.ask(["late", "x"], budget=12), planner.ask(["late", "x"], budget=12))


def test_saving_keeps_the_planner_as_it_is(tmp_path):
    planner = busy("VIP")[0]
    before = snapshot(planner)
    planner.save(tmp_path / "planner")
    assert_same(snapshot(planner), before)
    assert load_state(tmp_path / "planner", kind="planner")["kind"] == "VIP"


@every_planner
def test_what_is_believed_survives_another_batch(name):
    planner, *_ = busy(name)
    other = {"budget": 40, "bounds": (2, 20), "seed": 3}
    loaded, expected = make(name, **other), make(name, **other)
    loaded.load_state_dict(planner.state_dict(), settings="own")
    for plan in planner.open_plans:
        planner.cancel(plan)
    expected.load_state_dict({**planner.state_dict(), "settings": expected.state_dict()["settings"]})
    assert_same(loaded.state_dict(), expected.state_dict())
    assert not loaded.open_plans
    assert (loaded.budget, loaded.bounds) == (40, (2, 20))
    assert loaded.ask(IDS).step == planner.ask(IDS).step
    with pytest.raises(StateError, match="does not fit this planner"):
        make(name, **other).load_state_dict(planner.state_dict())


@pytest.mark.parametrize(("old", "new"), [("rloo", "shrinkage"), ("shrinkage", "rloo"), ("shrinkage", "dr_grpo")])
def test_what_is_believed_survives_another_estimator(old, new):
    planner, *_ = busy("VIP", estimator=old)
    loaded = make("VIP", estimator=new)
    loaded.load_state_dict(planner.state_dict(), settings="own")
    ours, theirs = loaded.predictor.predict(IDS), planner.predictor.predict(IDS)
    assert_same({"m": ours.mean, "v": ours.variance}, {"m": theirs.mean, "v": theirs.variance})
    plan = loaded.ask(IDS)
    loaded.tell(plan, *rewards_for(plan, np.random.default_rng(0)))


def test_with_equal_limits_nothing_is_forgotten():
    planner, *_ = busy("VIP")
    loaded = make("VIP")
    loaded.load_state_dict(planner.state_dict(), settings="own")
    assert_same(loaded.state_dict(), planner.state_dict())
    with pytest.raises(StateError, match="does not fit this planner"):
        make("VIP", success_threshold=0.7).load_state_dict(planner.state_dict(), settings="own")
