"""VIP with a budget of tokens, through ask and tell."""

import numpy as np
import pytest
from planning_cases import IDS, assert_same, assert_same_plan, rewards_for, snapshot

from allotment import VIP
from allotment.allocation import TokenAllocation
from allotment.errors import InfeasibleBudgetError, InvalidInputError, StateError
from allotment.prediction import LengthPredictor

MEANS = dict(zip(IDS, np.linspace(20, 400, len(IDS)), strict=True))


class Constant(LengthPredictor):
    """Learns nothing."""

    def observe(self, ids, rows_N, lengths_N):
        pass


def tokens(budget=15_000, **settings):
    return VIP(**{"budget": budget, "bounds": (3, 12), "unit": "tokens", **settings})


def one_step(planner, rng, ids=IDS):
    plan = planner.ask(ids)
    rewards, groups = rewards_for(plan, rng)
    lengths = np.array([MEANS[g] for g in groups]) * rng.uniform(0.5, 1.5, len(groups))
    return plan, planner.tell(plan, rewards, groups, lengths=lengths)


def test_learns_lengths_and_keeps_to_the_budget():
    planner, rng = tokens(), np.random.default_rng(0)
    first = one_step(planner, rng)[0]
    assert first.counts.tolist() == [3] * len(IDS)  # nothing is known of lengths: the least that is allowed
    used = []
    for _ in range(30):
        plan, outcome = one_step(planner, rng)
        assert isinstance(plan.allocation, TokenAllocation)
        assert plan.allocation.expected_tokens <= 15_000
        assert plan.allocation.expected_tokens > 15_000 - 600  # less than one rollout is left over
        used.append(outcome.lengths_N.sum())
    assert np.mean(used) == pytest.approx(15_000, rel=0.03)
    assert planner.lengths.used_tokens == pytest.approx(sum(used))
    assert planner.lengths.predicted_tokens == pytest.approx(sum(used), rel=0.03)


def test_short_prompts_get_more_where_beliefs_are_equal():
    planner = tokens()
    planner.lengths.observe(IDS, np.repeat(np.arange(len(IDS)), 32), np.repeat(list(MEANS.values()), 32))
    counts = planner.ask(IDS).counts
    assert (np.diff(counts) <= 0).all()
    assert counts[0] > counts[-1]


def test_equal_lengths_are_a_budget_of_rollouts():
    """The same plans as without lengths, at every step: also ties."""
    planner, plain = tokens(75 * 64 + 40, unit=Constant(typical_length=64)), VIP(budget=75, bounds=(3, 12))
    rng = np.random.default_rng(3)
    for _ in range(5):
        one, other = planner.ask(IDS), plain.ask(IDS)
        np.testing.assert_array_equal(one.counts, other.counts)
        rewards, groups = rewards_for(one, rng)
        planner.tell(one, rewards, groups, lengths=np.full(len(groups), 64))
        plain.tell(other, rewards, groups)


def test_a_typical_length_spends_the_first_budget():
    planner = tokens(unit=LengthPredictor(typical_length=200))
    assert planner.ask(IDS).counts.sum() == 75


def test_lengths_must_be_told():
    planner = tokens()
    plan = planner.ask(IDS)
    before = snapshot(planner)
    with pytest.raises(InvalidInputError, match=r"lengths=\[") as caught:
        planner.tell(plan, *rewards_for(plan, np.random.default_rng(0)))
    assert "fix:" in str(caught.value)
    assert_same(snapshot(planner), before)


def test_a_budget_that_cannot_pay_says_what_would():
    planner = tokens(unit=LengthPredictor(typical_length=500))
    with pytest.raises(InfeasibleBudgetError, match="at least 18000 predicted tokens"):
        planner.ask(IDS)


def test_goes_on_bit_for_bit(tmp_path):
    planner, rng = tokens(), np.random.default_rng(0)
    for _ in range(4):
        one_step(planner, rng)
    plan = planner.ask(IDS[:5], budget=4000)
    planner.tell(plan, [1.0, 0.0], [IDS[0]] * 2, lengths=[30, 40], final=False)
    planner.save(tmp_path / "state")
    loaded = tokens().load(tmp_path / "state")
    for again in (planner, loaded):
        again.tell(again.open_plans[0], [0.0], [IDS[1]], lengths=[77], allow_missing_groups=True)
    for seed in range(3):
        one, other = (one_step(both, np.random.default_rng(seed))[0] for both in (planner, loaded))
        assert_same_plan(one, other)
    assert_same(loaded.state_dict(), planner.state_dict())
    with pytest.raises(StateError, match="unit"):
        VIP(budget=15_000, bounds=(3, 12)).load(tmp_path / "state")


def test_a_state_that_fails_late_loads_nothing():
    planner, fresh = tokens(), tokens()
    one_step(planner, np.random.default_rng(0))
    before = snapshot(fresh)
    state = planner.state_dict()
    state["predictor"]["lengths"]["pooled"] = np.zeros(1)
    with pytest.raises(StateError):
        fresh.load_state_dict(state)
    assert_same(snapshot(fresh), before)


@pytest.mark.parametrize(
    "settings",
    [
        {"unit": "words"},
        {"unit": 3},
        {"split": "relaxed"},
        {"rounds": 2},
        {"unit": LengthPredictor(), "split": "relaxed"},
        {"unit": LengthPredictor(), "rounds": 2},
    ],
)
def test_refuses_what_cannot_be(settings):
    with pytest.raises(InvalidInputError, match="unit") as caught:
        tokens(**settings)
    assert "fix:" in str(caught.value)
