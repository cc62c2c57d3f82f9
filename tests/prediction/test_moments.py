"""Beliefs about scores: what a visit says is unbiased, order, names and origin of the scores are all one."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allotment.errors import InvalidInputError, StateError, UnknownPromptError
from allotment.prediction import GradientMoments, HierarchicalRegression
from allotment.prediction.measured import ScoreVisit
from allotment.state import load_state, save_state

few = settings(deadline=None, max_examples=10)
V0, V1, D = 3.0, 0.5, 2.0
"""Score variance among failures and successes, gap of the means."""


def draw(random, is_success_N, sketches):
    """Scores with these moments, not normal: uniform around means that differ by D."""
    shape = (len(is_success_N), sketches)
    uniform = random.uniform(-np.sqrt(3), np.sqrt(3), shape)
    return np.where(is_success_N[:, None], D, 0.0) + uniform * np.sqrt(np.where(is_success_N[:, None], V1, V0))


@pytest.mark.parametrize(("n1", "n0"), [(1, 1), (1, 2), (3, 1), (4, 4), (5, 0), (0, 2), (1, 0)])
def test_a_visit_is_unbiased_given_its_rewards(n1, n0):
    """Monte Carlo over 40,000 groups of every composition, the smallest ones included."""
    groups, n = 40_000, n1 + n0
    is_success_N = np.tile(np.arange(n) < n1, groups)
    scores = draw(np.random.default_rng(0), is_success_N, 1)
    visit = ScoreVisit.of(tuple(range(groups)), np.repeat(np.arange(groups), n), is_success_N, scores)
    np.testing.assert_array_equal(visit.freedom(), np.tile([max(n0 - 1, 0), max(n1 - 1, 0)], (groups, 1)))
    pairs, truth_B2 = n1 * n0 / n, np.tile([V0, V1], (groups, 1))
    for got_B, expected in (
        (visit.within_B2[:, 0], max(n0 - 1, 0) * V0),
        (visit.within_B2[:, 1], max(n1 - 1, 0) * V1),
        (visit.gap(truth_B2), pairs * D**2),
    ):
        assert abs(got_B.mean() - expected) <= 4 * got_B.std() / np.sqrt(groups) + 1e-12
    np.testing.assert_allclose(visit.pairs(), pairs)


@st.composite
def steps(draw):
    """Two steps of five prompts with ragged groups: rows, successes, scores."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sketches = draw(st.integers(1, 4))
    made = []
    for _ in range(2):
        rows = np.repeat(np.arange(5), random.integers(0, 7, 5))
        is_success = random.random(len(rows)) < np.linspace(0, 1, 5)[rows]
        made.append((rows, is_success, random.normal(size=(len(rows), sketches)) * (1 + rows[:, None])))
    return made


def told(data, ids=(0, 1, 2, 3, 4), order=None, shift=0.0, factor=1.0):
    belief = GradientMoments()
    for rows, is_success, scores in data:
        order_N = np.arange(len(rows)) if order is None else np.random.default_rng(order).permutation(len(rows))
        scores = factor * (scores + shift * np.array([3.0, -5, 1, 40, 0.5])[rows][:, None])
        belief.observe(ScoreVisit.of(tuple(ids), rows[order_N], is_success[order_N], scores[order_N]))
    return belief


def assert_same_belief(one, other, ids=range(5), others=None, factor=1.0, exact=False):
    """Equal beliefs, up to ``factor`` between the squares of their scores."""
    if not one.is_informed:
        assert not other.is_informed
        return
    a, b = one.predict(tuple(ids)), other.predict(tuple(ids if others is None else others))
    for got, expected in ((b.within_Q2, factor * a.within_Q2), (b.gap_Q, factor * a.gap_Q)):
        if exact:
            np.testing.assert_array_equal(got, expected)
        else:
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-8 * factor * a.within_Q2.max())


@few
@given(steps(), st.integers(0, 99))
def test_the_order_of_the_rollouts_is_all_one(data, order):
    assert_same_belief(told(data), told(data, order=order), exact=True)


@few
@given(steps())
def test_adding_a_number_to_all_scores_of_a_prompt_changes_nothing(data):
    assert_same_belief(told(data), told(data, shift=2.0))


@few
@given(steps(), st.sampled_from([-4.0, 0.25, 1e6, 3.0]))
def test_the_belief_scales_with_the_scores(data, factor):
    assert_same_belief(told(data), told(data, factor=factor), factor=factor**2)


@few
@given(steps())
def test_names_do_not_matter(data):
    names = ["e", "d", 7, "b", "a"]
    assert_same_belief(told(data), told(data, ids=names), others=names, exact=True)


def long_history(belief, scale_Q, visits=60, n=8, seed=0, v1=V1, v0=V0, gap=D, p=0.5):
    random = np.random.default_rng(seed)
    rows = np.repeat(np.arange(len(scale_Q)), n)
    for _ in range(visits):
        is_success = random.random(len(rows)) < p
        spread = np.sqrt(np.where(is_success, v1, v0))[:, None]
        scores = np.where(is_success, gap, 0.0)[:, None] + spread * random.normal(size=(len(rows), 4))
        scores *= np.sqrt(scale_Q)[rows][:, None]
        belief.observe(ScoreVisit.of(tuple(range(len(scale_Q))), rows, is_success, scores))
    return belief


def test_it_learns_the_moments_of_each_prompt():
    scale_Q = np.geomspace(0.1, 10, 12)
    belief = long_history(GradientMoments(forgetting=1.0), scale_Q).predict(tuple(range(12)))
    expected_Q = 4 / 5 * scale_Q + 1 / 5 * scale_Q.mean()  # four sketches
    np.testing.assert_allclose(belief.within_Q2, expected_Q[:, None] * [V0, V1], rtol=0.15)
    np.testing.assert_allclose(belief.gap_Q, expected_Q * D**2, rtol=0.25)


@pytest.mark.parametrize("sketches", [1, 4, 16])
def test_a_prompt_whose_sketches_show_nothing_keeps_a_part_of_the_common_price(sketches):
    random, rows = np.random.default_rng(0), np.repeat(np.arange(6), 8)
    belief = GradientMoments()
    for _ in range(40):
        scores = random.normal(size=(48, sketches)) * np.where(rows < 5, 1.0, 1e-9)[:, None]
        belief.observe(ScoreVisit.of(tuple(range(6)), rows, random.random(48) < 0.5, scores))
    within_Q2 = belief.predict(tuple(range(6))).within_Q2
    assert within_Q2[5].mean() == pytest.approx(5 / 6 / (sketches + 1), rel=0.35)


def test_prompts_with_equal_rewards_stay_alive():
    """Failures alone say how large the scores of a prompt are; what is not seen of it is taken to be larger too."""
    belief = long_history(GradientMoments(), np.array([1.0] * 9 + [16.0]), p=np.repeat([0.5] * 9 + [0.0], 8))
    moments = belief.predict((0, 9, "unseen"))
    assert moments.within_Q2[1, 0] == pytest.approx(16 * V0, rel=0.3)
    assert moments.within_Q2[1, 1] > 3 * V1
    assert moments.gap_Q[1] > 3 * D**2
    assert (moments.within_Q2[2] > 0).all()


def test_embeddings_tell_of_prompts_never_seen():
    """Two topics, one with scores 5 times as large: the unseen prompts of a topic follow its seen ones."""
    topic_M = np.arange(40) % 2
    embeddings = np.eye(2)[topic_M] + 0.05 * np.random.default_rng(1).normal(size=(40, 2))
    belief = GradientMoments(scale=HierarchicalRegression(embeddings, ids=range(40)))
    long_history(belief, np.where(topic_M[:30], 25.0, 1.0), visits=6)
    unseen = belief.predict(tuple(range(30, 40))).within_Q2[:, 0]
    assert (unseen[1::2] > 5 * unseen[::2]).all()  # a fifth of the belief is common to all


def test_equal_scales_are_learnt_to_be_equal():
    """Where scores have one variance everywhere and do not go with the reward, the belief tends to just that."""
    moments = long_history(GradientMoments(), np.ones(20), visits=80, v1=V0, gap=0.0).predict(tuple(range(20)))
    within_Q2 = moments.within_Q2 / moments.within_Q2.mean()
    assert within_Q2.std() < 0.1
    assert moments.gap_Q.mean() < 0.05 * V0


def test_scores_that_never_differ_inform_of_nothing():
    belief = told([(np.arange(5), np.zeros(5, bool), np.ones((5, 2)))] * 3)  # groups of one
    assert not belief.is_informed
    belief = told([(np.zeros(6, int), np.arange(6) < 3, np.full((6, 2), 7.0))])
    assert not belief.is_informed


def test_scores_too_large_to_square_are_refused():
    with pytest.raises(InvalidInputError, match="too large"):
        ScoreVisit.of((0,), np.zeros(3, int), np.array([True, True, False]), np.array([[1e200], [-1e200], [0.0]]))


def test_a_prompt_without_embedding_changes_nothing():
    belief = GradientMoments(scale=HierarchicalRegression(np.eye(3), ids=range(3)))
    long_history(belief, np.ones(3), visits=2)
    before = copy.deepcopy(belief.state_dict())
    with pytest.raises(UnknownPromptError):
        belief.observe(ScoreVisit.of((0, 3), np.array([0, 0, 1, 1]), np.zeros(4, bool), np.arange(4.0)[:, None]))
    assert_same_state(belief.state_dict(), before)


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            assert_same_state(value, other[key])
        elif isinstance(value, np.ndarray):
            assert value.dtype == other[key].dtype
            assert value.tobytes() == other[key].tobytes(), key
        else:
            assert value == other[key], key


def test_a_saved_belief_goes_on_bit_for_bit(tmp_path):
    belief = long_history(GradientMoments(forgetting=0.8), np.geomspace(1, 5, 6), visits=3)
    save_state(tmp_path / "state", belief.state_dict(), kind="test")
    loaded = GradientMoments()
    loaded.load_state_dict(load_state(tmp_path / "state", kind="test"))
    assert_same_state(loaded.state_dict(), belief.state_dict())
    for one in (belief, loaded):
        long_history(one, np.geomspace(1, 5, 7), visits=2, seed=9)
    assert_same_state(loaded.state_dict(), belief.state_dict())


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("kind", "Other"),
        ("forgetting", 0.0),
        ("ids", np.zeros(3, np.uint8)),
        ("records", np.zeros((2, 6))),
        ("records", np.full((6, 6), np.nan)),
        ("pool", np.zeros(5)),
        ("sketches", 0),
        ("sketches", 2.0),
        ("scale", {}),
    ],
)
def test_a_spoiled_state_loads_nothing(key, bad):
    state = long_history(GradientMoments(), np.ones(6), visits=2).state_dict()
    belief = long_history(GradientMoments(), np.ones(4), visits=1)
    before = copy.deepcopy(belief.state_dict())
    for spoiled in ({**state, key: bad}, {k: v for k, v in state.items() if k != key}):
        with pytest.raises(StateError, match="fix:"):
            belief.load_state_dict(spoiled)
        assert_same_state(belief.state_dict(), before)


@pytest.mark.parametrize("forgetting", [0.0, 1.1, float("nan")])
def test_settings_out_of_range_are_refused(forgetting):
    with pytest.raises(InvalidInputError, match="forgetting"):
        GradientMoments(forgetting=forgetting)
