"""The state of a hierarchical predictor holds everything but the embeddings, which are registered again."""

import numpy as np
import pytest

from allotment.errors import InvalidInputError, StateError, UnknownPromptError
from allotment.prediction import HierarchicalPredictor, HierarchicalRegression
from allotment.state import load_state, save_state

PROMPTS = 40
X = np.random.default_rng(0).normal(size=(PROMPTS, 5)).astype(np.float32)
FEATURES = np.random.default_rng(1).normal(size=(PROMPTS, 2)).astype(np.float32)
LATE = np.full((1, 5), 0.3, dtype=np.float32)


def observe(predictor, seed, prompts=PROMPTS, steps=6):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows, trials = rng.choice(prompts, 9, replace=False), rng.integers(0, 9, 9)
        if isinstance(predictor, HierarchicalPredictor):
            predictor.observe(rows, rng.binomial(trials, 0.3), trials)
        else:
            predictor.observe(rows, rng.normal(size=9), rng.uniform(0.1, 1, 9))
    return predictor


def reloaded(state, tmp_path, predictor):
    save_state(tmp_path / "state", state, kind="test")
    predictor.load_state_dict(load_state(tmp_path / "state", kind="test"))
    return predictor


def beliefs(predictor, ids):
    belief = predictor.predict(ids)
    return np.array(belief if isinstance(belief, tuple) else (belief.mean, belief.variance))


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


@pytest.mark.parametrize("make", [HierarchicalPredictor, HierarchicalRegression])
@pytest.mark.parametrize("steps", [0, 6])
@pytest.mark.parametrize("register_first", [True, False])
def test_a_run_goes_on_bit_for_bit(make, steps, register_first, tmp_path):
    one = make(X[:30], rank=12, memory=np.inf, seed=3)
    observe(one, 1, prompts=30, steps=steps)
    one.register([*range(30, PROMPTS), "late"], np.vstack([X[30:], LATE]))
    other, order = make(), np.random.default_rng(2).permutation(PROMPTS)
    if steps == 0:  # the landmarks are yet to be drawn from what is registered, in its order
        order = np.arange(PROMPTS)
    if not register_first:
        reloaded(one.state_dict(), tmp_path, other)
    for part in np.split(order, [13, 14]):
        other.register(part, X[part])
    other.register(["late"], LATE)
    if register_first:
        reloaded(one.state_dict(), tmp_path, other)
    assert other.settings == one.settings
    for seed in (3, 4):
        ids = [*np.random.default_rng(seed).permutation(PROMPTS), "late"]
        np.testing.assert_array_equal(beliefs(one, ids), beliefs(other, ids))
        observe(one, seed), observe(other, seed)
        assert_same_state(one.state_dict(), other.state_dict())


def test_it_holds_no_embeddings():
    few, many = HierarchicalPredictor(X, rank=8), HierarchicalPredictor(X, rank=8)
    many.register(range(PROMPTS, 10 * PROMPTS), np.random.default_rng(0).normal(size=(9 * PROMPTS, 5)))
    sizes = [sum(np.size(value) for value in observe(p, 1).state_dict().values()) for p in (few, many)]
    assert sizes[0] == sizes[1]


class TestAfterLoading:
    @pytest.fixture
    def state(self):
        return observe(HierarchicalPredictor(X, rank=8), 1).state_dict()

    def test_prompts_are_unknown_until_they_are_registered_again(self, state):
        predictor = HierarchicalPredictor()
        predictor.load_state_dict(state)
        for act in (lambda: predictor.predict([3]), lambda: predictor.observe([3], [1], [2])):
            with pytest.raises(UnknownPromptError, match=r"call register\(ids, embeddings\)"):
                act()
        assert_same_state(predictor.state_dict(), state)
        assert len(predictor.predict([])) == 0
        predictor.register([3], X[[3]])
        expected = observe(HierarchicalPredictor(X, rank=8), 1).predict([3])
        assert predictor.predict([3]).mean[0] == expected.mean[0]

    def test_embeddings_of_another_dimension_are_refused(self, state):
        predictor = HierarchicalPredictor()
        predictor.load_state_dict(state)
        with pytest.raises(InvalidInputError, match="shape"):
            predictor.register([3], [[1.0, 2.0]])
        assert_same_state(predictor.state_dict(), state)

    def test_a_predictor_with_other_embeddings_refuses_the_state(self, state):
        plain = observe(HierarchicalPredictor(), 1).state_dict()
        for embeddings, loaded in ((X[:, :3], state), (X, plain)):
            predictor = observe(HierarchicalPredictor(embeddings, rank=6), 2)
            before = predictor.state_dict()
            with pytest.raises(StateError, match="other embeddings"):
                predictor.load_state_dict(loaded)
            assert_same_state(predictor.state_dict(), before)

    def test_features_must_be_scaled_as_they_were(self):
        state = observe(HierarchicalPredictor(X, features=FEATURES, rank=8), 1).state_dict()
        same = HierarchicalPredictor(X, features=FEATURES)
        same.load_state_dict(state)
        later = HierarchicalPredictor()
        later.load_state_dict(state)
        later.register(range(PROMPTS)[::-1], X[::-1], FEATURES[::-1])
        np.testing.assert_array_equal(beliefs(same, range(PROMPTS)), beliefs(later, range(PROMPTS)))
        for other, wrong in (
            (HierarchicalPredictor(X, features=2 * FEATURES), "scaled"),
            (HierarchicalPredictor(X), "other embeddings"),
        ):
            with pytest.raises(StateError, match=wrong):
                other.load_state_dict(state)


DAMAGE = {
    "a record of negative precision": ("records", (0, 1), -0.5),
    "a visit in the future": ("records", (0, 3), 99.0),
    "a visit before the start": ("records", (0, 3), -1.0),
    "a matrix without inverse": ("precision", (0,), -1e9),
    "landmarks in infinity": ("landmarks", (0, 0), np.inf),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_numbers_that_cannot_be_are_refused(case):
    key, where, value = DAMAGE[case]
    state = observe(HierarchicalPredictor(X, rank=8), 1).state_dict()
    state[key][where] = value
    predictor = HierarchicalPredictor(X)
    with pytest.raises(StateError):
        predictor.load_state_dict(state)
    assert predictor.state_dict()["step"] == 0


def test_embeddings_cannot_come_after_outcomes():
    predictor = observe(HierarchicalPredictor(), 1)
    before = predictor.state_dict()
    with pytest.raises(InvalidInputError, match="too late"):
        predictor.register(range(PROMPTS), X)
    assert_same_state(predictor.state_dict(), before)
    observe(predictor, 2)
    assert len(predictor.predict(["anything"])) == 1


BAD_FEATURES = {
    "some prompts only": (X[:3], FEATURES[:2]),
    "one dimension": (X[:3], FEATURES[:3, 0]),
    "not finite": (X[:3], np.full((3, 2), np.nan)),
    "text": (X[:3], [["a", "b"]] * 3),
    "beside a lone vector": (X[0], FEATURES[:3]),
    "more than before": (X[:3], np.ones((3, 3))),
    "none": (X[:3], None),
}


@pytest.mark.parametrize("case", BAD_FEATURES)
def test_bad_features_change_nothing(case):
    predictor = HierarchicalPredictor(X, features=FEATURES)
    with pytest.raises(InvalidInputError):
        predictor.register(["a", "b", "c"], *BAD_FEATURES[case])
    with pytest.raises(UnknownPromptError):
        predictor.predict(["a"])
    np.testing.assert_array_equal(
        predictor.state_dict()["feature_scale"],
        HierarchicalPredictor(X, features=FEATURES).state_dict()["feature_scale"],
    )
