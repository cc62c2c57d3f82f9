"""Real-valued rewards: variances predicted from a prompt's own record, and what is planned from them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import assert_same_plan

from allotment.allocation import allocate_exact
from allotment.errors import InvalidInputError, StateError
from allotment.planning import RewardVarianceVIP
from allotment.planning.making import make_planner
from allotment.prediction import RecordedRewardVariance, RewardVarianceGaussianProcess
from allotment.prediction.reward_variance import STRENGTHS

IDS = list(range(16))


def visited(true_Q, steps, n=8, seed=0, **settings):
    """A predictor after visits of all prompts, with normal rewards of these variances."""
    rng, found = np.random.default_rng(seed), RecordedRewardVariance(**settings)
    for _ in range(steps):
        rewards_Qn = rng.normal(0.0, np.sqrt(true_Q)[:, None], (len(true_Q), n))
        found.observe_variance(range(len(true_Q)), rewards_Qn.var(axis=1, ddof=1), [n] * len(true_Q))
    return found


def test_one_visit_by_hand():
    found = RecordedRewardVariance()
    assert found.predict_variance(["a", "b"]).tolist() == [1.0, 1.0]
    found.observe_variance(["a", "b"], [4.0, 2.0], [5, 3])
    level, k = 3.0, found.strength
    np.testing.assert_allclose(
        found.predict_variance(["a", "b", "new"]), [(16 + k * 3) / (4 + k), (4 + k * 3) / (2 + k), level]
    )


def test_a_second_visit_by_hand():
    found = RecordedRewardVariance(forgetting=0.5, global_forgetting=0.25)
    found.observe_variance(["a"], [4.0], [5])
    found.observe_variance(["a"], [1.0], [3])
    level, k = (0.25 * 4 + 1) / (0.25 + 1), found.strength
    np.testing.assert_allclose(found.predict_variance(["a"]), (0.5 * 16 + 2 + k * level) / (0.5 * 4 + 2 + k))


def test_prompts_that_differ_are_told_apart_and_equal_ones_are_pooled():
    differing = np.exp(np.linspace(-4, 4, len(IDS)))
    apart, alike = visited(differing, 12), visited(np.ones(len(IDS)), 12)
    assert apart.strength < 2 < 32 < alike.strength
    error = np.log(apart.predict_variance(IDS) / differing)
    assert np.sqrt((error**2).mean()) < 0.6  # of logs that span 8
    assert np.abs(np.log(alike.predict_variance(IDS))).max() < 0.25


def test_the_prediction_beats_the_last_variance_and_the_mean_of_all():
    """Mean squared error relative to the truth, 30 draws of prompts that differ by a factor of about 2."""
    ours, last, mean = [], [], []
    for seed in range(30):
        rng = np.random.default_rng(100 + seed)
        true_Q = rng.gamma(3.0, 1 / 3.0, len(IDS))
        found = visited(true_Q, 6, n=4, seed=seed)
        newest = rng.normal(0, np.sqrt(true_Q)[:, None], (len(IDS), 4)).var(axis=1, ddof=1)
        for errors, guess in ((ours, found.predict_variance(IDS)), (last, newest), (mean, found.level)):
            errors.append(((guess - true_Q) ** 2).mean())
    assert np.mean(ours) < 0.7 * min(np.mean(last), np.mean(mean))


@settings(max_examples=25, deadline=None)
@given(unit=st.floats(1e-6, 1e6), order=st.permutations(IDS), seed=st.integers(0, 99))
def test_neither_the_unit_nor_the_order_matters(unit, order, seed):
    rng = np.random.default_rng(seed)
    one, other = RecordedRewardVariance(), RecordedRewardVariance()
    for _ in range(3):
        variances, rollouts = rng.exponential(size=len(IDS)), rng.integers(2, 9, len(IDS))
        one.observe_variance(IDS, variances, rollouts)
        other.observe_variance(order, unit**2 * variances[order], rollouts[order])
    np.testing.assert_allclose(other.predict_variance(IDS), unit**2 * one.predict_variance(IDS), rtol=1e-9)
    assert one.strength == other.strength


def test_rewards_that_never_vary_leave_something_to_allocate():
    found = visited(np.zeros(3), 4)
    assert (found.predict_variance([0, 1, 2, "new"]) > 0).all()


@pytest.mark.parametrize(
    ("variances", "rollouts"), [([-1.0], [3]), ([np.nan], [3]), ([1.0], [1]), ([1.0, 2.0], [3]), (["x"], [3])]
)
def test_what_is_no_variance_is_refused_and_changes_nothing(variances, rollouts):
    found = visited(np.ones(2), 1)
    before = found.predict_variance([0, 1, 2])
    with pytest.raises(InvalidInputError, match="reward variances cannot be used"):
        found.observe_variance([0], variances, rollouts)
    np.testing.assert_array_equal(found.predict_variance([0, 1, 2]), before)


@pytest.mark.parametrize("setting", [{"forgetting": 0.0}, {"global_forgetting": 1.5}])
def test_settings_out_of_range(setting):
    with pytest.raises(InvalidInputError, match=next(iter(setting))):
        RecordedRewardVariance(**setting)


def test_the_state_is_taken_over_whole_or_not_at_all():
    found, other = visited(np.arange(1.0, 5.0), 3), RecordedRewardVariance()
    other.load_state_dict(found.state_dict())
    np.testing.assert_array_equal(other.predict_variance([0, 1, 9]), found.predict_variance([0, 1, 9]))
    for key, value in (("record", -np.ones((4, 2))), ("losses", np.zeros(len(STRENGTHS) - 1)), ("forgetting", 2.0)):
        with pytest.raises(StateError):
            other.load_state_dict({**found.state_dict(), key: value})
    np.testing.assert_array_equal(other.predict_variance([0, 1, 9]), found.predict_variance([0, 1, 9]))


def test_the_planner_needs_no_embeddings_and_follows_real_valued_rewards():
    rng, sizes = np.random.default_rng(0), {"flat": 0.0, "narrow": 0.2, "wide": 3.0}
    planner = make_planner("reward-variance", budget=24, bounds=(3, 18))
    for _ in range(4):
        plan = planner.ask(list(sizes))
        groups = plan.group_ids()
        planner.tell(plan, [5.0 + sizes[g] * rng.normal() for g in groups], groups)
    flat, narrow, wide = planner.ask(list(sizes)).counts
    assert wide > narrow >= flat
    assert wide >= 12


def test_most_of_what_can_be_gained_is_gained():
    spread_Q, ids = np.geomspace(0.05, 5.0, 12), [f"p{i}" for i in range(12)]
    planner, rng = make_planner("reward-variance", budget=96, bounds=(3, 32)), np.random.default_rng(0)
    for _ in range(6):
        plan = planner.ask(ids)
        rows_N = np.repeat(np.arange(12), plan.counts)
        planner.tell(plan, rng.normal(-rows_N.astype(float), spread_Q[rows_N]), plan.group_ids())
    counts_Q, best = planner.ask(ids).counts, allocate_exact(spread_Q**2, 96, lower=3, upper=32)
    even = best.uniform_objective
    assert counts_Q.sum() == 96
    assert (spread_Q**2 / (counts_Q - 1)).sum() < even - 0.9 * (even - best.objective)


def test_by_name_embeddings_are_used_where_there_are_some():
    assert isinstance(make_planner("reward-variance", budget=96).predictor, RecordedRewardVariance)
    planner = make_planner("reward-variance", budget=96, offered={"embeddings": np.eye(3), "ids": [1, 2, 3]})
    assert isinstance(planner.predictor, RewardVarianceGaussianProcess)


def test_a_saved_planner_goes_on_bit_for_bit(tmp_path):
    planner, loaded = (make_planner("reward-variance", budget=24) for _ in range(2))
    plan = planner.ask(["a", "b"])
    planner.tell(plan, np.random.default_rng(0).normal(size=24), plan.group_ids())
    planner.save(tmp_path / "planner")
    assert_same_plan(loaded.load(tmp_path / "planner").ask(["a", "b", "new"]), planner.ask(["a", "b", "new"]))


def test_a_prompt_of_one_reward_says_nothing():
    planner = RewardVarianceVIP(budget=8, bounds=(2, 6))
    plan = planner.ask(["a", "b"])
    planner.tell(plan, [1.0], ["a"], allow_missing_groups=True)
    assert planner.predictor.predict_variance(["a", "b"]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("setting", [{"ids": [1, 2]}, {"gaussian_process": {"floor": 1e-3}}])
def test_settings_of_embeddings_without_embeddings_are_refused(setting):
    with pytest.raises(InvalidInputError, match=next(iter(setting))):
        RewardVarianceVIP(budget=8, **setting)
