"""GRESO (arXiv 2506.02177): who is skipped with which probability, how the bases move, how many are drawn."""

import math

import numpy as np
import pytest
from planning_cases import assert_same

from allotment.errors import InvalidInputError, StateError
from allotment.methods.planners.dapo import DAPO
from allotment.methods.planners.greso import GRESO, visit_rate

IDS = [f"p{q}" for q in range(16)]


def make(**settings):
    return GRESO(**{"budget": 8 * 16, "bounds": (2, 32), **settings})


def one_step(planner, kinds, ids=IDS, rng=None):
    """The plans of a step; a kind is the success probability of a prompt, "mixed" is one success and failures."""
    rng, plans = rng or np.random.default_rng(0), []
    while True:
        plan = planner.ask(ids)
        rewards = [
            float(j == 0) if kind == "mixed" else float(rng.random() < kind)
            for kind, n in zip(kinds, plan.counts, strict=True)
            for j in range(n)
        ]
        planner.tell(plan, rewards, plan.group_ids())
        plans.append(plan)
        if planner.done:
            return plans


def drawn(plans):
    return np.array([plan.counts > 0 for plan in plans])


def test_skipping_grows_with_the_run_of_zero_variance_visits():
    """1 - max(p^z, 0.01) for easy and for hard ones; a mixed visit, or one of the other kind, starts anew."""
    for kind in (1.0, 0.0):
        planner, seen = make(adjustment=0, budget=8), []
        for _ in range(8):
            one_step(planner, [kind], ["x"])
            seen += planner.keep_probability(("x",)).tolist()
        assert seen == [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.01, 0.01]
    planner = make(adjustment=0, budget=8)
    for kind, expected in [(1.0, 0.5), (1.0, 0.25), (0.0, 0.5), ("mixed", 1.0), (0.0, 0.5), (1.0, 0.5)]:
        one_step(planner, [kind], ["x"])
        assert planner.keep_probability(("x",)).tolist() == [expected]
    assert planner.keep_probability(("new",)).tolist() == [1.0]


def test_a_skipped_prompt_keeps_its_record():
    planner, kinds = make(adjustment=0), [1.0] * 5 + [0.0] * 5 + ["mixed"] * 6
    skipped = 0
    for _ in range(8):
        before_Q = planner.keep_probability(tuple(IDS))
        seen_Q = drawn(one_step(planner, kinds)).any(axis=0)
        expected_Q = np.where(seen_Q & (np.arange(16) < 10), np.maximum(before_Q / 2, 0.01), before_Q)
        np.testing.assert_allclose(planner.keep_probability(tuple(IDS)), expected_Q)
        skipped += (~seen_Q).sum()
    assert skipped > 20


def test_candidates_pass_as_often_as_that_says():
    planner = make(adjustment=0)
    one_step(planner, [1.0] * 4 + [0.0] * 4 + ["mixed"] * 8)
    passed = []
    for _ in range(600):
        plan = planner.ask(IDS)
        planner.cancel(plan)
        passed.append(plan.counts > 0)
        assert set(plan.counts[plan.counts > 0]) == {8}  # C / Q each: with no spare candidates the budget shrinks
    np.testing.assert_allclose(np.mean(passed, axis=0), [0.5] * 8 + [1] * 8, atol=4 * 0.5 / 600**0.5)


def test_both_kinds_have_a_base_of_their_own_that_moves_towards_the_target():
    """Targets 8.3 % easy and 16.7 % hard of what is generated; steps of 0.01 within [0.05, 0.95]."""
    planner = make()
    one_step(planner, [1.0] * 8 + ["mixed"] * 8)
    assert planner.bases == (0.5, 0.5)  # all were new: the first epoch
    new = iter(range(100, 10**6))

    def step(easy, hard):
        """A step of which these many of 12 groups are easy and hard; one prompt has a history, and is mixed."""
        ids = [IDS[-1], *(next(new) for _ in range(11))]
        one_step(planner, ["mixed"] * (12 - easy - hard) + [1.0] * easy + [0.0] * hard, ids)
        return planner.bases

    assert step(1, 1) == pytest.approx((0.49, 0.51))  # 1 / 12 is the target of the easy ones
    assert step(0, 2) == pytest.approx((0.50, 0.50))  # 2 / 12 that of the hard ones
    for _ in range(60):
        bases = step(2, 0)
    assert bases == pytest.approx((0.05, 0.95))


def test_draws_and_refills_have_the_sizes_of_the_code():
    """1.5 B first (384 at 256); then 1.25 missing / (1 - zero-variance share), at least B / 4, at most the first."""
    ids = range(200)
    for mixed_first, refill in [(11, 3), (10, 4), (8, 11), (7, 16), (6, 18), (0, 18)]:  # of 18 drawn, where B = 12
        planner = make(budget=96, trained_prompts=12)
        plan = planner.ask(ids)
        assert (plan.counts > 0).sum() == 18
        rewards = np.zeros(plan.budget)
        rewards[: 8 * mixed_first : 8] = 1
        planner.tell(plan, rewards, plan.group_ids())
        assert (planner.ask(ids).counts > 0).sum() == refill


def test_a_step_is_never_empty():
    """Sixteen prompts that are let through once in a hundred times, all of them skipped in most steps."""
    planner = make(adjustment=0, exploration=0.05)
    counts = [int(drawn(one_step(planner, [1.0] * 16)).sum()) for _ in range(60)]
    assert min(counts) == 1
    assert np.mean(np.array(counts[10:]) == 1) > 0.6


def test_it_trains_on_mixed_groups_as_dapo_does():
    greso, dapo = make(trained_prompts=4, budget=32), DAPO(trained_prompts=4, budget=32, bounds=(2, 32))
    assert vars(greso.selector) == vars(dapo.selector)


def test_a_prompt_counts_by_how_often_it_is_let_through():
    """The effective weight relative to that of DAPO, in the long run, against its formula."""
    p_P = np.array([0.0, 0.02, 0.1, 0.3, 0.5, 0.8, 0.95, 1.0])
    ids, p_Q, rng = range(240), np.repeat(p_P, 30), np.random.default_rng(1)
    planner = make(budget=240 * 4, adjustment=0, floor=0.1)
    visits = np.array([drawn(one_step(planner, p_Q, ids, rng)).any(axis=0) for _ in range(260)])[60:].mean(0)
    measured_PC = visits.reshape(8, 30)
    error_P = measured_PC.std(1, ddof=1) / 30**0.5
    expected_P = visit_rate(p_P, 4, floor=0.1)
    assert (np.abs(measured_PC.mean(1) - expected_P) < 4 * error_P + 1e-3).all()
    np.testing.assert_allclose(expected_P[[0, -1]], 0.1)
    np.testing.assert_allclose(visit_rate(p_P, 4), visit_rate(1 - p_P, 4))


def test_the_visit_rate_is_one_over_the_mean_wait():
    """By summing a thousand runs."""
    e, h = 0.7**5, 0.3**5
    wait = 1 - e - h
    for z in range(1, 1000):
        wait += (1 - e) * e**z / max(0.6**z, 0.02) + (1 - h) * h**z / max(0.3**z, 0.02)
    np.testing.assert_allclose(visit_rate(0.7, 5, easy=0.6, hard=0.3, floor=0.02), 1 / wait)
    assert math.isclose(visit_rate(0.5, 64)[0], 1)


def test_saved_between_rounds_it_goes_on_bit_for_bit(tmp_path):
    def fresh():
        return make(trained_prompts=8, budget=64, draw=4)

    planner = fresh()
    for _ in range(3):
        one_step(planner, [1.0] * 5 + [0.0] * 5 + ["mixed"] * 6)
    plan = planner.ask(IDS)
    planner.tell(plan, np.zeros(plan.budget), plan.group_ids())
    assert not planner.done
    planner.save(tmp_path / "planner")
    other = fresh().load(tmp_path / "planner")
    assert other.bases == planner.bases != (0.5, 0.5)
    for _ in range(3):
        plans = [one_step(one, [0.3] * 16) for one in (planner, other)]
        np.testing.assert_array_equal(*(np.array([plan.counts for plan in its]) for its in plans))
    assert_same(other.state_dict(), planner.state_dict())


def test_a_state_that_cannot_be_is_refused_and_changes_nothing():
    planner = make()
    one_step(planner, [1.0] * 16)
    state = planner.state_dict()
    before = planner.keep_probability(tuple(IDS))
    broken = {**state["predictor"], "bases": {"kind": "Bases", "easy": 1.5, "hard": 0.5}}
    with pytest.raises(StateError, match="base probabilities"):
        planner.load_state_dict({**state, "predictor": broken})
    with pytest.raises(StateError, match="settings"):
        make(floor=0.5).load_state_dict(state)
    np.testing.assert_array_equal(planner.keep_probability(tuple(IDS)), before)


@pytest.mark.parametrize("wrong", [{"exploration": 1.0}, {"adjustment": -1}, {"zero_variance": 2}, {"floor": 0.0}])
def test_bad_settings_are_refused(wrong):
    with pytest.raises(InvalidInputError):
        make(**wrong)
