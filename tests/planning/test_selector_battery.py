"""The battery over every selector, on the rollouts of a toy: what fits, invariances, no look ahead, state, cost."""

import copy
import dataclasses

import numpy as np
import pytest
from battery_cases import BUDGET, CASES, MAY_EMPTY_GROUPS, SELECTOR_CASES, selector_cases
from planning_cases import IDS, assert_same

from allotment.registry import SELECTORS
from allotment.selection import Selection, Selector, SelectorEntry, Stateless, check_selection, emptied_groups
from theory.toy import Policy, Toy

every_selector = pytest.mark.parametrize("name", SELECTOR_CASES)
P = np.linspace(0.05, 0.95, len(IDS))
SURE = np.where(np.arange(len(IDS)) % 2, 1e-12, 1 - 1e-12)


class Recorder:
    """The selector, and everything it was shown and chose."""

    def __init__(self, selector):
        self.selector, self.scored, self.selections = selector, [], []
        self.window = selector.window

    def select(self, scored):
        self.scored.append(scored)
        self.selections.append(check_selection(self.selector.select(scored), scored))
        return self.selections[-1]


def shown(name, *, steps=5, p=P, then=None, planner="uniform"):
    """What a selector was shown and chose in a run; with ``then`` the policy is another from step 3 on."""
    recorder = Recorder(SELECTOR_CASES[name](0))
    toy = Toy(Policy.of(p), CASES[planner].make(), recorder, steps=steps)
    for step in range(steps):
        if then is not None and step == 3:
            toy.policy = Policy.of(then)
        yield toy.step(), recorder


def run(name, **settings):
    *_, (_, recorder) = shown(name, **settings)
    return recorder


def assert_same_selection(one, other, order=slice(None)):
    """Those of the same rollouts, the other in another order."""
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a[order], b)
        else:
            assert a == b


class Everything(Stateless):
    """A selector of another package."""

    def __init__(self, seed=0):
        self.seed = seed

    def select(self, scored):
        return Selection(np.ones(len(scored)))


def test_a_selector_of_another_package_is_in_the_battery():
    SELECTORS.register("everything", SelectorEntry(Everything))
    try:
        every = selector_cases()
        assert {*every} == {*SELECTORS.names}
        assert isinstance(every["everything"](3), Everything)
        assert every["everything"](3).seed == 3
    finally:
        SELECTORS.unregister("everything")
    assert {*selector_cases()} == {*SELECTORS.names} < {*SELECTOR_CASES}


@every_selector
def test_a_selector_needs_and_brings_what_it_declares(name):
    case = SELECTOR_CASES[name]
    needs = case.entry.needs
    assert needs == case(0).NEEDS
    assert case(0).window == 1 or needs.looks_back
    for selection in run(name).selections:
        assert (selection.advantages_N is not None) == ("advantages" in needs.brings)
        assert (selection.rewards_N is not None) == ("rewards" in needs.brings)


@every_selector
@pytest.mark.parametrize("planner", ["uniform", "vip", "coba-rl"])
def test_what_is_kept_fits_and_costs_no_more_than_what_was_generated(name, planner):
    for step, recorder in shown(name, planner=planner):
        scored, selection = recorder.scored[-1], recorder.selections[-1]
        assert isinstance(recorder.selector, Selector)
        assert name in MAY_EMPTY_GROUPS or emptied_groups(selection, scored) == 0
        assert step.trained_Q.sum() == selection.is_kept.sum() <= len(scored)
        assert step.generated_Q.sum() == BUDGET
        assert np.isfinite(step.gradient_QA).all()


@every_selector
def test_groups_whose_rewards_are_all_equal(name):
    for step, recorder in shown(name, p=SURE):
        assert recorder.selections[-1].is_kept.any()
        assert not step.gradient_QA.any()


@every_selector
def test_a_single_prompt(name):
    recorder = Recorder(SELECTOR_CASES[name](0))
    toy = Toy(Policy.of([0.4]), CASES["uniform"].make(budget=8), recorder)
    for _ in range(4):
        toy.step()
        assert recorder.selections[-1].is_kept.any()


@every_selector
def test_the_order_of_the_rollouts_does_not_matter(name):
    """Also not to what a selector has learnt from steps before."""
    recorder, turned = run(name), SELECTOR_CASES[name](0)
    rng = np.random.default_rng(0)
    for scored, selection in zip(recorder.scored, recorder.selections, strict=True):
        order = rng.permutation(len(scored))
        columns = {f.name: getattr(scored, f.name) for f in dataclasses.fields(scored) if f.name.endswith("_N")}
        other = {name: np.array(column)[order] for name, column in columns.items() if column is not None}
        other["answers_N"] = tuple(other["answers_N"].tolist())
        assert_same_selection(selection, turned.select(dataclasses.replace(scored, **other)), order)


@every_selector
def test_no_selection_uses_what_comes_after_it(name):
    plain, forked = run(name), run(name, then=P[::-1])
    assert any((a.rewards_N != b.rewards_N).any() for a, b in zip(plain.scored[3:], forked.scored[3:], strict=True))
    for step in range(3):
        assert_same_selection(plain.selections[step], forked.selections[step])


@every_selector
def test_a_selector_restored_at_any_time_goes_on_bit_for_bit(name):
    recorder = run(name)
    for at in range(len(recorder.scored)):
        saved = SELECTOR_CASES[name](0)
        for scored in recorder.scored[:at]:
            saved.select(scored)
        state = copy.deepcopy(saved.state_dict())
        restored = SELECTOR_CASES[name](0)
        restored.load_state_dict(state)
        for scored, selection in zip(recorder.scored[at:], recorder.selections[at:], strict=True):
            assert_same_selection(selection, restored.select(scored))
        assert_same(restored.state_dict(), recorder.selector.state_dict())
