import numpy as np
import pytest
from battery_cases import World

from allotment.errors import InvalidInputError
from allotment.methods.planners.spo import SPO, BatchWhitening, drawn, whitened
from allotment.methods.planners.spo_tracker import BetaTracker, memory
from allotment.planning import Contract, make_planner
from allotment.selection import Scored

IDS = [f"p{q}" for q in range(40)]


def pseudo_counts(tracker, prompt="a"):
    posterior = tracker.predict([prompt])
    return [float(posterior.alpha[0]), float(posterior.beta[0])]


def test_the_tracker_by_hand():
    """From 1/2, 1/2: a success gives 1.4375 and .4375, a failure after it 1.2578 and 1.3828."""
    tracker = BetaTracker()
    tracker.observe(["a"], [1], [1])
    assert pseudo_counts(tracker) == pytest.approx([1.4375, 0.4375])
    tracker.observe(["a"], [0], [1])
    assert pseudo_counts(tracker) == pytest.approx([1.2578125, 1.3828125])
    tracker.observe(["b"], [3], [4])  # more rollouts than one are one visit
    assert pseudo_counts(tracker, "b") == pytest.approx([3.4375, 1.4375])


def test_what_is_left_halves_with_every_half_change_within_its_bounds():
    change_B = np.array([0.0, 0.006, 0.009, 0.06, 5.0])
    expected_B = [0.96, 2**-0.1, 2**-0.15, 0.875, 0.875]
    np.testing.assert_allclose(memory(change_B, 0.06), expected_B)


def test_a_change_that_is_told_takes_the_constant_s_place():
    told = {"a": 0.006, "b": 1.0}
    tracker = BetaTracker(change=lambda ids: np.array([told[i] for i in ids]))
    tracker.observe(["a", "b"], [1, 1], [1, 1])
    assert pseudo_counts(tracker, "a") == pytest.approx([2**-0.1 / 2 + 1, 2**-0.1 / 2])
    assert pseudo_counts(tracker, "b") == pytest.approx([1.4375, 0.4375])


@pytest.mark.parametrize(("smoothing", "share"), [(0.5, 6.5 / 9), (0.0, 6 / 8)])
def test_offline_rollouts_start_with_eight_pseudo_counts(smoothing, share):
    """Released code, paper."""
    tracker = BetaTracker(offline={"a": (6, 8)}, smoothing=smoothing)
    assert pseudo_counts(tracker) == pytest.approx([8 * share, 8 * (1 - share)])
    assert pseudo_counts(tracker, "unknown") == [0.5, 0.5]


def test_a_prompt_that_never_succeeded_has_a_belief_without_smoothing_too():
    tracker = BetaTracker(offline={"a": (0, 8)}, smoothing=0.0)
    assert tracker.predict(["a"]).success_probability()[0] < 1e-6
    assert np.isfinite(tracker.predict(["a"]).mean).all()


def test_prompts_are_drawn_one_after_another_in_proportion_to_their_weights():
    """The first of three, and both of a pair: w_a / (sum) and w_a w_b (1 / (sum - w_a) + 1 / (sum - w_b)) / sum."""
    weights_Q, times = np.array([0.55, 0.3, 0.05]), 20000
    rng = np.random.default_rng(0)
    first = [tuple(drawn(weights_Q, rng.random(3), 1)) for _ in range(times)]
    pairs = [tuple(drawn(weights_Q, rng.random(3), 2)) for _ in range(times)]
    assert first.count((0,)) / times == pytest.approx(0.55 / 0.9, abs=0.015)
    expected = 0.55 * 0.05 * (1 / 0.35 + 1 / 0.85) / 0.9
    assert pairs.count((0, 2)) / times == pytest.approx(expected, abs=0.01)
    assert tuple(drawn(weights_Q, rng.random(3), 9)) == (0, 1, 2)


def test_whitening_by_hand():
    np.testing.assert_allclose(whitened(np.array([0.5, -0.5, 0.0])), [1.0, -1.0, 0.0], rtol=1e-7)
    np.testing.assert_array_equal(whitened(np.array([0.3])), [0.0])
    np.testing.assert_array_equal(whitened(np.array([0.2, 0.2])), [0.0, 0.0])


def test_the_selector_whitens_what_the_trainer_computed():
    values_N, n = np.array([0.9, -0.1, 0.2, -0.6]), 4
    scored = Scored(
        step=1,
        progress=0.0,
        prompt_ids=tuple("abcd"),
        rows_N=np.arange(n),
        rewards_N=np.zeros(n),
        advantages_N=values_N,
        lengths_N=np.ones(n, dtype=np.int64),
        truncated_N=np.zeros(n, dtype=np.bool_),
        entropies_N=np.zeros(n),
        ages_Q=np.zeros(n, dtype=np.int64),
        numbers_N=np.arange(n),
        clip_fractions_N=np.zeros(n),
    )
    selection = BatchWhitening().select(scored)
    np.testing.assert_allclose(selection.advantages_N, (values_N - 0.1) / values_N.std(ddof=1), rtol=1e-7)
    assert selection.is_kept.all()


def test_groups_of_one_with_the_belief_of_before_the_step_as_baseline():
    planner, world = SPO(budget=10, seed=3), World(0.5)
    plan = planner.ask(IDS)
    assert sorted(plan.counts.tolist()) == [0] * 30 + [1] * 10
    np.testing.assert_array_equal(plan.baselines, np.full(40, 0.5))
    assert plan.baseline_shares is None
    assert plan.weights is None
    told = world.answer(plan)
    planner.tell(plan, **told)
    later = planner.ask(IDS)
    for prompt, reward in zip(told["group_ids"], told["rewards"], strict=True):
        expected = 1.4375 / 1.875 if reward else 0.4375 / 1.875
        assert later.baselines[IDS.index(prompt)] == pytest.approx(expected)


def test_fewer_prompts_than_the_budget_share_it():
    assert sorted(SPO(budget=10).ask(IDS[:4]).counts.tolist()) == [2, 2, 3, 3]


def test_rewards_of_minus_one_and_one_have_baselines_of_their_own():
    planner = SPO(budget=20, success_threshold=0.0)
    plan = planner.ask(IDS)
    rewards = [1.0 if i % 4 else -1.0 for i in range(20)]
    planner.tell(plan, rewards, plan.group_ids())
    high = round(2 * 1.4375 / 1.875 - 1, 6)
    assert set(np.round(planner.ask(IDS).baselines, 6)) == {-high, 0.0, high}


def test_by_name_with_its_contract():
    planner = make_planner("spo", budget=8, smoothing=0.0, offline={"a": [1, 8]})
    assert planner.contract == Contract(leaves_out=True, baselines=True, selects=BatchWhitening.NEEDS)
    assert planner.ask(["a", "b"]).baselines.tolist() == pytest.approx([1 / 8, 1 / 2])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"exploration": 0.0}, "exploration"),
        ({"forgetting": 1.5}, "forgetting"),
        ({"smoothing": -1.0}, "smoothing"),
        ({"offline": {"a": (9, 8)}}, "success count"),
    ],
)
def test_settings_without_meaning_are_refused(settings, said):
    with pytest.raises(InvalidInputError, match=said):
        SPO(budget=8, **settings)
