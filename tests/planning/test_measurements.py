"""Scores and lengths told beside the rewards: kept row by row with them, checked, saved; all or nothing."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import IDS, NAMES, assert_same, make, rewards_for, snapshot, with_history

from allotment.errors import InvalidInputError, StateError

every_planner = pytest.mark.parametrize("name", NAMES)
few = settings(deadline=None, max_examples=8)


def measured(plan, seed=0, sketches=3):
    """Rewards, group ids, and both measurements of every rollout of a plan."""
    random = np.random.default_rng(seed)
    rewards, groups = rewards_for(plan, random)
    columns = {"scores": random.normal(size=(plan.budget, sketches)), "lengths": random.integers(1, 99, plan.budget)}
    return rewards, groups, columns


def part(rewards, groups, columns, start, end):
    return (rewards[start:end], groups[start:end]), {name: values[start:end] for name, values in columns.items()}


@few
@given(data=st.data())
def test_parts_make_up_the_whole(data):
    planner = with_history(make("VIP"))
    plan = planner.ask(IDS)
    rewards, groups, columns = measured(plan, sketches=data.draw(st.integers(1, 16)))
    cuts = sorted(data.draw(st.lists(st.integers(0, plan.budget), max_size=4)))
    for start, end in itertools.pairwise([0, *cuts, plan.budget]):
        told, beside = part(rewards, groups, columns, start, end)
        planner.tell(plan, *told, **beside, final=False)
    outcome = planner.tell(plan, [], [])
    np.testing.assert_array_equal(outcome.scores_NK, columns["scores"])
    np.testing.assert_array_equal(outcome.lengths_N, columns["lengths"])
    assert [outcome.prompt_ids[row] for row in outcome.rows_N] == groups


def test_one_sketch_may_be_a_flat_array_and_nothing_told_is_none():
    planner = make("VIP")
    plan = planner.ask(IDS)
    rewards, groups, columns = measured(plan, sketches=1)
    outcome = planner.tell(plan, rewards, groups, scores=columns["scores"][:, 0].tolist())
    np.testing.assert_array_equal(outcome.scores_NK, columns["scores"])
    assert outcome.lengths_N is None
    plan = planner.ask(IDS)
    assert planner.tell(plan, *measured(plan)[:2]).scores_NK is None


@every_planner
def test_a_planner_that_prices_neither_learns_the_same_without_them(name):
    one, other = with_history(make(name)), with_history(make(name))
    plan, same = one.ask(IDS), other.ask(IDS)
    rewards, groups, columns = measured(plan)
    one.tell(plan, rewards, groups, **columns)
    other.tell(same, rewards, groups)
    assert_same(one.state_dict(), other.state_dict())


def spoiled(values, index, value):
    values = np.array(values, dtype=float)
    values[index] = value
    return values


BAD = {
    "nan score": ({"scores": lambda s: spoiled(s, (5, 1), np.nan)}, "score is not finite.*\n.*index 5"),
    "inf score": ({"scores": lambda s: spoiled(s, (5, 1), np.inf)}, "score is not finite"),
    "text": ({"scores": lambda s: [["a"]] * len(s)}, "scores are not an array of numbers"),
    "ragged": ({"scores": lambda s: [[1.0], *s[1:].tolist()]}, "scores are not an array of numbers"),
    "one score short": ({"scores": lambda s: s[1:]}, "do not fit together"),
    "transposed": ({"scores": lambda s: s.T}, "do not fit together"),
    "cube": ({"scores": lambda s: s[:, :, None]}, "do not fit together"),
    "no sketch": ({"scores": lambda s: s[:, :0]}, "K from 1 to 16"),
    "17 sketches": ({"scores": lambda s: np.ones((len(s), 17))}, "K from 1 to 16"),
    "K changes": ({"scores": lambda s: s[:, :2]}, "differ in their scores"),
    "flat after K": ({"scores": lambda s: s[:, 0]}, "differ in their scores"),
    "scores missing": ({"scores": lambda s: None}, "differ in their scores"),
    "lengths missing": ({"lengths": lambda n: None}, "differ in their lengths"),
    "no tokens": ({"lengths": lambda n: spoiled(n, 5, 0)}, "length is not positive.*\n.*index 5"),
    "nan length": ({"lengths": lambda n: spoiled(n, 5, np.nan)}, "length is not finite"),
    "one length short": ({"lengths": lambda n: n[1:]}, "do not fit together"),
    "lengths in columns": ({"lengths": lambda n: n[:, None]}, "do not fit together"),
}


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("case", BAD)
def test_bad_measurements_are_refused_and_change_nothing(case, final):
    change, mentions = BAD[case]
    planner = with_history(make("VIP"))
    plan = planner.ask(IDS)
    rewards, groups, columns = measured(plan)
    told, beside = part(rewards, groups, columns, 0, 20)
    planner.tell(plan, *told, **beside, final=False)
    before = snapshot(planner)
    told, beside = part(rewards, groups, columns, 20, None)
    bad = {name: change[name](values) if name in change else values for name, values in beside.items()}
    with pytest.raises(InvalidInputError, match=mentions) as caught:
        planner.tell(plan, *told, **bad, final=final)
    assert "fix:" in str(caught.value)
    assert_same(snapshot(planner), before)
    planner.tell(plan, *told, **beside)


def test_measurements_that_begin_late_are_refused():
    planner = make("VIP")
    plan = planner.ask(IDS)
    rewards, groups, columns = measured(plan)
    planner.tell(plan, rewards[:9], groups[:9], final=False)
    told, beside = part(rewards, groups, columns, 9, None)
    with pytest.raises(InvalidInputError, match="none for the first 9 rollouts"):
        planner.tell(plan, *told, **beside)
    planner.tell(plan, *told)


def test_changing_the_measurements_afterwards_changes_nothing():
    planner = make("VIP")
    plan = planner.ask(IDS)
    rewards, groups, columns = measured(plan)
    columns = {name: values.astype(float) for name, values in columns.items()}
    planner.tell(plan, rewards, groups, **columns, final=False)
    before = snapshot(planner)
    columns["scores"][:], columns["lengths"][:] = 0, 0
    assert_same(snapshot(planner), before)


def half_told():
    planner = with_history(make("VIP"))
    plan = planner.ask(IDS)
    rewards, groups, columns = measured(plan)
    told, beside = part(rewards, groups, columns, 0, 20)
    planner.tell(plan, *told, **beside, final=False)
    return planner, plan, part(rewards, groups, columns, 20, None)


def test_open_measurements_are_saved(tmp_path):
    planner, plan, (told, beside) = half_told()
    planner.save(tmp_path / "planner")
    loaded = make("VIP").load(tmp_path / "planner")
    assert_same(loaded.state_dict(), planner.state_dict())
    one, other = (p.tell(plan, *told, **beside) for p in (planner, loaded))
    for name in ("scores_NK", "lengths_N", "rewards_N"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert_same(loaded.state_dict(), planner.state_dict())


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("scores", None),
        ("scores", np.ones((19, 3))),
        ("scores", np.ones((20, 17))),
        ("scores", np.ones((20, 0))),
        ("scores", np.ones(20)),
        ("scores", np.ones((20, 3), np.float32)),
        ("scores", np.full((20, 3), np.nan)),
        ("lengths", None),
        ("lengths", np.ones((20, 1))),
        ("lengths", np.zeros(20)),
        ("lengths", np.full(20, np.inf)),
    ],
)
def test_a_spoiled_state_loads_nothing(key, bad):
    state = half_told()[0].state_dict()
    planner = with_history(make("VIP"), seed=8)
    before = snapshot(planner)
    state["ledger"]["3.0"][key] = bad
    with pytest.raises(StateError, match="fix:"):
        planner.load_state_dict(state)
    assert_same(snapshot(planner), before)
