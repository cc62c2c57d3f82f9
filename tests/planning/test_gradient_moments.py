"""VIP(price="gradient_moments") through the interface that trainers use."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import IDS, assert_same, assert_same_plan, make, rewards_for, snapshot

from allotment import VIP
from allotment.errors import InvalidInputError, StateError
from allotment.prediction import DiscountedCounts, GradientMoments, LengthPredictor

few = settings(deadline=None, max_examples=8)
P = np.linspace(0.1, 0.9, len(IDS))
SPREAD = np.geomspace(0.3, 8, len(IDS))


def priced(**changes):
    predictor = {} if "embeddings" in changes else {"predictor": DiscountedCounts()}  # fast
    return make("VIP", price="gradient_moments", **predictor, **changes)


def default(**changes):
    return make("VIP", predictor=DiscountedCounts(), **changes)


def scores_for(plan, rewards, random, spread, gap=1.0, sketches=2):
    """Scores of each prompt's own size, with a mean that goes with the reward."""
    spread_N = np.array([spread[IDS.index(group)] for group in plan.group_ids()])
    return spread_N[:, None] * (gap * rewards[:, None] + random.normal(size=(plan.budget, sketches)))


def steps(planner, count, spread=SPREAD, gap=1.0, factor=1.0, seed=0, with_scores=True, ids=IDS, p=P, budget=75):
    """The plans of some steps; rollouts are drawn prompt by prompt, so that they do not depend on the counts."""
    plans = []
    for step in range(count):
        random = np.random.default_rng([seed, step])
        plan = planner.ask(ids, budget=budget)
        rewards, groups = rewards_for(plan, random, p)
        scores = factor * scores_for(plan, rewards, random, spread, gap) if with_scores else None
        planner.tell(plan, rewards, groups, scores=scores)
        plans.append(plan)
    return [*plans, planner.ask(ids, budget=budget)]


def test_without_scores_it_is_the_default():
    for one, other in zip(steps(default(), 5, with_scores=False), steps(priced(), 5, with_scores=False), strict=True):
        assert_same_plan(one, other)


def test_prompts_with_large_scores_get_more():
    even = np.full(len(IDS), 0.5)
    last = steps(priced(), 12, p=even)[-1]
    assert last.counts[-3:].min() > last.counts[:6].max()
    assert last.allocation.is_certified


def test_equal_scores_everywhere_come_to_the_default():
    """No gap, one variance: the counts differ from the default's by what is left of the noise."""
    one = steps(default(bounds=(3, 32)), 25, with_scores=False, budget=120)[-1]
    other = steps(priced(bounds=(3, 32)), 25, spread=np.ones(len(IDS)), gap=0.0, budget=120)[-1]
    different = steps(priced(bounds=(3, 32)), 25, budget=120)[-1]
    assert np.abs(one.counts - other.counts).mean() < 2.0 < np.abs(one.counts - different.counts).mean()


@few
@given(factor=st.sampled_from([2.0**-20, -2.0, 2.0**15]), seed=st.integers(0, 99))
def test_the_unit_of_the_scores_does_not_matter(factor, seed):
    for one, other in zip(steps(priced(), 4, seed=seed), steps(priced(), 4, seed=seed, factor=factor), strict=True):
        np.testing.assert_array_equal(one.counts, other.counts)


@few
@given(seed=st.integers(0, 99))
def test_order_and_parts_do_not_matter(seed):
    one, other = priced(), priced()
    for step in range(3):
        random = np.random.default_rng([seed, step])
        plan, same = one.ask(IDS), other.ask(IDS)
        assert_same_plan(plan, same)
        rewards, groups = rewards_for(plan, random, P)
        scores = scores_for(plan, rewards, random, SPREAD)
        one.tell(plan, rewards, groups, scores=scores)
        order = random.permutation(plan.budget)
        first, rest = order[:30], order[30:]
        other.tell(same, rewards[first], [groups[i] for i in first], scores=scores[first], final=False)
        other.tell(same, rewards[rest], [groups[i] for i in rest], scores=scores[rest])
    assert_same(one.state_dict(), other.state_dict())


def test_zero_one_and_minus_one_one_agree():
    one, other = priced(), priced()
    for step in range(3):
        random = np.random.default_rng(step)
        plan, same = one.ask(IDS), other.ask(IDS)
        rewards, groups = rewards_for(plan, random, P)
        scores = scores_for(plan, rewards, random, SPREAD)
        one.tell(plan, rewards, groups, scores=scores)
        other.tell(same, 2 * rewards - 1, groups, scores=scores)
    assert_same(one.state_dict(), other.state_dict())


def test_some_steps_may_go_without_scores():
    planner = priced()
    steps(planner, 2)
    before = planner.moments.state_dict()
    steps(planner, 2, with_scores=False)
    assert_same(planner.moments.state_dict(), before)
    steps(planner, 1)


def test_embeddings_inform_scales_of_prompts_never_seen():
    topic = np.arange(len(IDS)) % 2
    embeddings = np.eye(2)[topic] + 0.05 * np.random.default_rng(0).normal(size=(len(IDS), 2))
    planner = priced(embeddings=embeddings, ids=IDS)
    even = np.full(8, 0.5)
    steps(planner, 8, spread=np.where(topic, 5.0, 1.0), ids=IDS[:8], p=even, budget=64)
    counts = planner.ask(IDS[8:], budget=24).counts
    assert counts[1::2].min() > counts[::2].max()


def test_a_loaded_planner_goes_on_bit_for_bit(tmp_path):
    planner = priced()
    steps(planner, 4)
    planner.save(tmp_path / "planner")
    loaded = priced().load(tmp_path / "planner")
    assert_same(loaded.state_dict(), planner.state_dict())
    for one, other in zip(steps(planner, 3, seed=1), steps(loaded, 3, seed=1), strict=True):
        assert_same_plan(one, other)
    assert_same(loaded.state_dict(), planner.state_dict())
    for other in (default(), default(seed=1)):
        with pytest.raises(StateError, match="'price'"):
            other.load(tmp_path / "planner")


def test_scores_too_large_change_nothing():
    planner = priced()
    steps(planner, 2)
    plan = planner.ask(IDS)
    rewards, groups = rewards_for(plan, np.random.default_rng(0))
    before = snapshot(planner)
    with pytest.raises(InvalidInputError, match="too large"):
        planner.tell(plan, rewards, groups, scores=np.linspace(-1e200, 1e200, plan.budget))
    assert_same(snapshot(planner), before)
    planner.tell(plan, rewards, groups, scores=np.linspace(-1, 1, plan.budget))


def test_a_token_budget_of_equal_lengths_is_a_rollout_budget():
    one = priced()
    other = priced(budget=755, unit=LengthPredictor(typical_length=10.0))  # room for its noise
    for step in range(4):
        random = np.random.default_rng(step)
        plan, same = one.ask(IDS), other.ask(IDS)
        np.testing.assert_array_equal(plan.counts, same.counts)
        rewards, groups = rewards_for(plan, random, P)
        scores = scores_for(plan, rewards, random, SPREAD)
        one.tell(plan, rewards, groups, scores=scores)
        other.tell(same, rewards, groups, scores=scores, lengths=np.full(plan.budget, 10.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"price": "magic"},
        {"price": 3.0},
        {"rounds": 2},
        {"split": "relaxed"},
        {"estimator": "dr_grpo"},
        {"price": GradientMoments(), "rounds": 2},
        {"price": GradientMoments(), "split": "relaxed"},
        {"price": GradientMoments(), "estimator": "dr_grpo"},
    ],
)
def test_combinations_without_meaning_are_refused(changes):
    with pytest.raises(InvalidInputError, match="VIP cannot have this price"):
        VIP(**{"budget": 75, "price": "gradient_moments", **changes})
