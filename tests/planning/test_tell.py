"""What comes back is ragged, late and sometimes wrong: all of it counted, nothing of it guessed."""

import itertools
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import (
    IDS,
    NAMES,
    SUCCESS_NAMES,
    Known,
    assert_same,
    assert_same_plan,
    make,
    rewards_for,
    snapshot,
    with_history,
)

from allotment import VIP, Plan
from allotment.errors import InvalidInputError, RewardMismatchError, UnknownPromptError

every_planner = pytest.mark.parametrize("name", NAMES)
few = settings(deadline=None, max_examples=8)


def real_rewards(plan, seed):
    """Rewards that are neither 0 nor 1, so that sums depend on their order in the last bits."""
    return np.random.default_rng(seed).normal(0.4, 1.0, plan.budget), plan.group_ids()


@every_planner
@few
@given(seed=st.integers(0, 99))
def test_the_order_of_the_rewards_does_not_matter(name, seed):
    one, other = (with_history(make(name)) for _ in range(2))
    plan, same = one.ask(IDS), other.ask(IDS)
    rewards, groups = real_rewards(plan, seed)
    order = np.random.default_rng(seed).permutation(plan.budget)
    one.tell(plan, rewards, groups)
    other.tell(same, rewards[order], [groups[i] for i in order])
    assert_same(one.state_dict(), other.state_dict())
    assert_same_plan(one.ask(IDS), other.ask(IDS))


@every_planner
@few
@given(data=st.data())
def test_rewards_in_parts_are_as_good_as_at_once(name, data):
    one, other = (with_history(make(name)) for _ in range(2))
    plan, same = one.ask(IDS), other.ask(IDS)
    rewards, groups = real_rewards(plan, data.draw(st.integers(0, 99)))
    cuts = sorted(data.draw(st.lists(st.integers(0, plan.budget), max_size=4)))
    edges = [0, *cuts, plan.budget]
    one.tell(plan, rewards, groups)
    before = snapshot(other)
    for start, end in itertools.pairwise(edges):
        part = other.tell(same, rewards[start:end], groups[start:end], final=False)
        assert part.missing.sum() == plan.budget - end
        assert_same(snapshot(other)["predictor"], before["predictor"])  # nothing is learnt before the end
    outcome = other.tell(same, [], [])
    np.testing.assert_array_equal(outcome.rewards_N, rewards)
    assert_same(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("name", SUCCESS_NAMES)
def test_zero_one_and_minus_one_one_agree(name):
    one, other = make(name), make(name)
    for step in range(3):
        plan, same = one.ask(IDS), other.ask(IDS)
        assert_same_plan(plan, same)
        rewards, groups = rewards_for(plan, np.random.default_rng(step))
        one.tell(plan, rewards, groups)
        other.tell(same, 2 * rewards - 1, groups)
    assert_same(one.state_dict(), other.state_dict())


def test_what_the_predictor_hears():
    belief = Known({"a": 0.0, "b": 0.0, "c": 0.0})
    planner = VIP(budget=12, predictor=belief, success_threshold=0.7)
    plan = planner.ask(["a", "b", "c"])
    planner.tell(plan, [0.7, 0.69, 1, -3, 0.8], ["b", "b", "a", "b", "b"], allow_missing_groups=True)
    assert belief.observed == [(["a", "b"], [1, 2], [1, 4])]


def test_the_outcome():
    planner = make("VIP", budget=12)
    plan = planner.ask(["a", "b", "c"])
    assert plan.counts.tolist() == [4, 4, 4]
    outcome = planner.tell(plan, [1, 0, 3, 1, 5], ["c", "a", "a", "c", "b"])
    assert outcome.prompt_ids == ("a", "b", "c")
    assert outcome.rows_N.tolist() == [2, 0, 0, 2, 1]
    assert outcome.received.tolist() == [2, 1, 2]
    assert outcome.missing.tolist() == [2, 3, 2]
    assert outcome.successes(1.0).tolist() == [1, 1, 2]
    np.testing.assert_array_equal(outcome.reward_variance(), [4.5, np.nan, 0.0])


@few
@given(st.lists(st.lists(st.floats(-100, 100), max_size=5), min_size=1, max_size=6))
def test_reward_variance_is_numpys(groups):
    planner = make("VIP", budget=5 * len(groups), bounds=(3, 5))
    plan = planner.ask(range(len(groups)))
    flat = [(r, q) for q, rewards in enumerate(groups) for r in rewards]
    rewards, ids = [r for r, _ in flat], [q for _, q in flat]
    outcome = planner.tell(plan, rewards, ids, allow_missing_groups=True)
    expected = [np.var(rewards, ddof=1) if len(rewards) > 1 else np.nan for rewards in groups]
    np.testing.assert_allclose(outcome.reward_variance(), expected, rtol=1e-9, atol=1e-12)


REWARD_MAKES = {
    "list": lambda r: r.tolist(),
    "ints": lambda r: r.astype(int).tolist(),
    "bools": lambda r: r.astype(bool),
    "float32": lambda r: r.astype(np.float32),
    "strided": lambda r: np.stack([r, 1 - r], axis=1)[:, 0],
}


@pytest.mark.parametrize("kind", REWARD_MAKES)
@pytest.mark.parametrize("name", ["VIP", "RewardVarianceVIP"])
def test_rewards_of_any_make(name, kind):
    one, other = make(name), make(name)
    plan, same = one.ask(IDS), other.ask(IDS)
    rewards, groups = rewards_for(plan, np.random.default_rng(0))
    one.tell(plan, rewards, groups)
    other.tell(same, REWARD_MAKES[kind](rewards), groups)
    assert_same(one.state_dict(), other.state_dict())


def test_rewards_as_torch_tensors():
    torch = pytest.importorskip("torch")
    planner, other = make("VIP"), make("VIP")
    plan, same = planner.ask(IDS), other.ask(IDS)
    rewards, groups = rewards_for(plan, np.random.default_rng(0))
    for tensor in (torch.tensor(rewards, requires_grad=True), torch.tensor(rewards, dtype=torch.bfloat16)):
        with pytest.raises(InvalidInputError, match="detach"):
            planner.tell(plan, tensor, groups)
    planner.tell(plan, torch.tensor(rewards), groups)
    other.tell(same, rewards, groups)
    assert_same(planner.state_dict(), other.state_dict())


GROUP_MAKES = {"array": np.array, "objects": lambda g: np.array(g, dtype=object), "tuple": tuple, "iterator": iter}


@pytest.mark.parametrize("ids", [[3, 1, 2], ["c", "a", "b"]], ids=["int", "str"])
@pytest.mark.parametrize("kind", GROUP_MAKES)
def test_group_ids_of_any_make(ids, kind):
    planner = make("VIP", budget=12)
    plan = planner.ask(ids)
    outcome = planner.tell(plan, np.ones(12), GROUP_MAKES[kind](plan.group_ids()))
    assert outcome.received.tolist() == [4, 4, 4]


@pytest.mark.parametrize("final", [True, False])
@every_planner
def test_changing_the_rewards_afterwards_changes_nothing(name, final):
    planner = make(name)
    plan = planner.ask(IDS)
    rewards, groups = rewards_for(plan, np.random.default_rng(0))
    planner.tell(plan, rewards, groups, final=final)
    before = snapshot(planner)
    rewards[:] = 1 - rewards
    groups[:] = groups[::-1]
    assert_same(snapshot(planner), before)


def told_partly(name):
    """A planner with history and one open plan, of which one reward of each prompt was told; and the rest."""
    planner = with_history(make(name))
    plan = planner.ask(IDS)
    rewards, groups = rewards_for(plan, np.random.default_rng(1))
    first = np.concatenate([[0], np.cumsum(plan.counts)[:-1]])
    planner.tell(plan, rewards[first], list(plan.prompt_ids), final=False)
    rest = np.setdiff1d(np.arange(plan.budget), first)
    return planner, plan, rewards[rest], [groups[i] for i in rest]


def replaced(values, index, value):
    values = list(values)
    values[index] = value
    return values


BAD_TELLS = {
    "nan": (lambda r, g: (replaced(r, 5, float("nan")), g), InvalidInputError, "nan at index 5"),
    "none": (lambda r, g: (replaced(r, 5, None), g), InvalidInputError, "nan at index 5"),
    "inf": (lambda r, g: (replaced(r, 5, float("inf")), g), InvalidInputError, "inf at index 5"),
    "minus inf": (lambda r, g: (replaced(r, 5, -float("inf")), g), InvalidInputError, "index 5"),
    "text": (lambda r, g: (replaced(r, 5, "good"), g), InvalidInputError, "not an array of numbers"),
    "too large": (lambda r, g: (replaced(r, 5, 10**400), g), InvalidInputError, "not an array of numbers"),
    "complex": (lambda r, g: (replaced(r, 5, 1j), g), InvalidInputError, "not an array of numbers"),
    "nested": (lambda r, g: ([[1.0], [1.0, 0.0]], g[:2]), InvalidInputError, "not an array of numbers"),
    "dict": (lambda r, g: (dict(enumerate(r)), g), InvalidInputError, "not an array of numbers"),
    "column": (lambda r, g: (np.reshape(r, (-1, 1)), g), InvalidInputError, r"shape \(63, 1\)"),
    "scalar": (lambda r, g: (1.0, g), InvalidInputError, r"shape \(\)"),
    "one reward short": (lambda r, g: (r[:-1], g), InvalidInputError, "62.*63"),
    "one group short": (lambda r, g: (r, g[:-1]), InvalidInputError, "63.*62"),
    "stranger": (lambda r, g: (r, replaced(g, 5, "stranger")), UnknownPromptError, "'stranger'"),
    "int for str": (lambda r, g: (r, replaced(g, g.index("7"), 8)), UnknownPromptError, "8"),
    "bool group": (lambda r, g: (r, replaced(g, 5, True)), InvalidInputError, "bool"),
    "float group": (lambda r, g: (r, replaced(g, 5, 7.0)), InvalidInputError, "float"),
    "no groups": (lambda r, g: (r, None), InvalidInputError, "not a sequence"),
    "lone group": (lambda r, g: (r[:1], "x"), InvalidInputError, "not a sequence"),
    "more than planned": (lambda r, g: ([*r, 1.0], [*g, "x"]), RewardMismatchError, "'x'"),
    "all twice": (lambda r, g: ([*r, *r], [*g, *g]), RewardMismatchError, "more rewards than planned"),
}


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("name", ["VIP", "VIP.paper", "RewardVarianceVIP"])
@pytest.mark.parametrize("case", BAD_TELLS)
def test_bad_rewards_are_refused_and_change_nothing(name, case, final):
    spoil, error, mentions = BAD_TELLS[case]
    planner, plan, rewards, groups = told_partly(name)
    before = snapshot(planner)
    with pytest.raises(error, match=mentions) as caught:
        planner.tell(plan, *spoil(rewards, groups), final=final)
    assert "fix:" in str(caught.value)
    assert not str(caught.value).startswith(("'", '"'))
    assert_same(snapshot(planner), before)
    spared, same, *_ = told_partly(name)
    planner.tell(plan, rewards, groups)
    spared.tell(same, rewards, groups)
    assert_same(planner.state_dict(), spared.state_dict())


@every_planner
def test_missing_rollouts_are_counted_and_logged(name, caplog):
    planner = make(name)
    plan = planner.ask(IDS)
    rewards, groups = rewards_for(plan, np.random.default_rng(0))
    with caplog.at_level(logging.WARNING, logger="allotment"):
        outcome = planner.tell(plan, rewards[2:], groups[2:])
    assert outcome.missing.tolist() == [2] + [0] * (len(IDS) - 1)
    assert planner.missing_rollouts == 2
    assert [r.getMessage() for r in caplog.records] == ["step 0: 2 of 75 planned rollouts came back without a reward"]
    plan = planner.ask(IDS)
    planner.tell(plan, *rewards_for(plan, np.random.default_rng(0)))
    assert planner.missing_rollouts == 2
    assert len(caplog.records) == 1


@every_planner
def test_a_missing_group_is_refused_unless_allowed(name, caplog):
    planner = make(name)
    plan = planner.ask(IDS)
    rewards, groups = rewards_for(plan, np.random.default_rng(0))
    keep = [i for i, g in enumerate(groups) if g not in ("x", 0)]
    rewards, groups = rewards[keep], [groups[i] for i in keep]
    before = snapshot(planner)
    with pytest.raises(RewardMismatchError, match=r"2 of 12, the first \[0, 'x'\]"):
        planner.tell(plan, rewards, groups)
    with pytest.raises(RewardMismatchError, match="12 of 12"):
        planner.tell(plan, [], [])
    assert_same(snapshot(planner), before)
    outcome = planner.tell(plan, rewards, groups, allow_missing_groups=True)
    missing = plan.budget - len(keep)
    assert planner.missing_rollouts == outcome.missing.sum() == missing
    assert f"{missing} of 75" in caplog.text
    assert planner.open_plans == ()


@every_planner
def test_a_plan_of_which_nothing_came_back_teaches_nothing(name):
    planner = with_history(make(name))
    plan = planner.ask(IDS)
    before = snapshot(planner)
    planner.tell(plan, [], [], allow_missing_groups=True)
    assert_same(snapshot(planner)["predictor"], before["predictor"])
    assert planner.missing_rollouts == before["missing"] + 75


@every_planner
def test_a_plan_is_told_once(name):
    planner = make(name)
    plan = planner.ask(IDS)
    told = rewards_for(plan, np.random.default_rng(0))
    planner.tell(plan, *told)
    before = snapshot(planner)
    with pytest.raises(RewardMismatchError, match="not open"):
        planner.tell(plan, *told)
    with pytest.raises(RewardMismatchError, match="not open"):
        planner.cancel(plan)
    assert_same(snapshot(planner), before)


def test_plans_of_other_planners_are_refused():
    planner = make("VIP", seed=1)
    plan = planner.ask(IDS)
    before = snapshot(planner)
    others = {
        "other prompts": make("VIP", seed=1).ask(IDS[::-1]),
        "other step": next(p for p in [with_history(make("VIP", seed=1)).ask(IDS)]),
        "other counts": make("VIP", seed=2).ask(IDS),
        "other budget": make("VIP", seed=1).ask(IDS, budget=80),
        "other round": Plan(plan.prompt_ids, plan.counts, plan.step, 1),
        "other types": Plan(tuple(map(str, plan.prompt_ids)), plan.counts, plan.step),
    }
    for case, foreign in others.items():
        rewards, groups = np.zeros(1), [foreign.prompt_ids[0]]
        with pytest.raises(RewardMismatchError, match="not open"):
            planner.tell(foreign, rewards, groups, allow_missing_groups=True)
        with pytest.raises(RewardMismatchError, match="not open"):
            planner.cancel(foreign)
        assert_same(snapshot(planner), before, case)
    planner.tell(plan, *rewards_for(plan, np.random.default_rng(0)))


@every_planner
def test_several_plans_may_be_open_and_told_in_any_order(name):
    planner = make(name)
    batches = [IDS[:6], IDS[4:], IDS]
    plans = [planner.ask(batch, budget=6 * len(batch)) for batch in batches]
    assert [p.step for p in planner.open_plans] == [0, 1, 2]
    for left, i in ((2, 1), (1, 2), (0, 0)):
        outcome = planner.tell(plans[i], *rewards_for(plans[i], np.random.default_rng(i)))
        assert outcome.prompt_ids == tuple(batches[i])
        assert len(planner.open_plans) == left
    assert planner.ask(IDS).step == 3


def test_rewards_go_to_their_own_plan_when_prompts_overlap():
    belief = Known(dict.fromkeys("abc", 0.0))
    planner = VIP(budget=8, predictor=belief)
    first, second = planner.ask(["a", "b"]), planner.ask(["b", "c"])
    planner.tell(first, [0.0] * 4, ["a", "a", "b", "b"], final=False)
    planner.tell(second, [1.0] * 8, second.group_ids())
    planner.tell(first, [1.0] * 4, ["a", "a", "b", "b"])
    assert belief.observed == [(["b", "c"], [4, 4], [4, 4]), (["a", "b"], [2, 2], [4, 4])]


@every_planner
def test_a_cancelled_plan_leaves_no_trace_but_its_number(name):
    planner, other = with_history(make(name)), with_history(make(name))
    plan = planner.ask(IDS)
    rewards, groups = rewards_for(plan, np.random.default_rng(0))
    planner.tell(plan, rewards[:5], groups[:5], final=False)
    planner.cancel(plan)
    assert planner.open_plans == ()
    before, after = other.state_dict(), planner.state_dict()
    assert after.pop("step") == before.pop("step") + 1
    assert_same(after, before)
    with pytest.raises(RewardMismatchError, match="not open"):
        planner.tell(plan, rewards, groups)


def test_a_predictor_that_fails_leaves_the_plan_open():
    class Failing(Known):
        def observe(self, ids, successes, trials):
            if not self.observed:
                self.observed.append("tried")
                raise ZeroDivisionError
            super().observe(ids, successes, trials)

    belief = Failing({"a": 0.0, "b": 0.0})
    planner = VIP(budget=8, predictor=belief)
    plan = planner.ask(["a", "b"])
    before = snapshot(planner)
    with pytest.raises(ZeroDivisionError):
        planner.tell(plan, [1.0] * 6, plan.group_ids()[:6])
    assert_same(snapshot(planner), before)
    planner.tell(plan, [1.0] * 8, plan.group_ids())
    assert belief.observed[1:] == [(["a", "b"], [4, 4], [4, 4])]
    assert planner.missing_rollouts == 0
