"""What holds for every predictor: states survive the disk bit for bit, and bad input changes nothing."""

from functools import partial

import numpy as np
import pytest

from allotment.errors import (
    AllotmentError,
    DuplicatePromptError,
    InvalidInputError,
    StateError,
    UnknownPromptError,
)
from allotment.prediction import (
    DiscountedCounts,
    GaussianProcess,
    GlobalMean,
    HierarchicalPredictor,
    HierarchicalRegression,
    KNearest,
    LastValue,
    Predictor,
    RewardVarianceGaussianProcess,
    Ridge,
)
from allotment.state import load_state, save_state

IDS = [7, "7", "täsk/3", 0, -5, "x", 10**12, "y"]
X = np.random.default_rng(0).normal(size=(len(IDS), 3))

MAKERS = {
    "GaussianProcess": lambda: GaussianProcess(X, ids=IDS, epsilon=0.01, prior_mean=-0.3),
    "Ridge": lambda: Ridge(X, ids=IDS, penalty=0.7, window=11),
    "KNearest": lambda: KNearest(X, ids=IDS, neighbours=3, window=11),
    "GlobalMean": lambda: GlobalMean(window=11),
    "LastValue": lambda: LastValue(smoothing=0.3, global_forgetting=0.7),
    "DiscountedCounts": lambda: DiscountedCounts(forgetting=0.7, prior_strength=1.3, global_forgetting=0.8),
    "HierarchicalPredictor": lambda: HierarchicalPredictor(memory=np.inf, prompt_drift=0.01),
    "Embedded": lambda: HierarchicalPredictor(X, ids=IDS, rank=5, seed=3, bandwidth=0.7),
}
FRESH = {
    "GaussianProcess": GaussianProcess,
    "Ridge": Ridge,
    "KNearest": KNearest,
    "GlobalMean": GlobalMean,
    "LastValue": LastValue,
    "DiscountedCounts": DiscountedCounts,
    "HierarchicalPredictor": HierarchicalPredictor,
    "Embedded": partial(HierarchicalPredictor, X, ids=IDS),  # its state holds no embeddings
    "RewardVarianceGaussianProcess": RewardVarianceGaussianProcess,
}
REGISTERED = {
    "GaussianProcess": GaussianProcess,
    "Ridge": Ridge,
    "KNearest": KNearest,
    "Embedded": HierarchicalPredictor,
}


def tell(predictor, seed, steps=3):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        chosen, trials = rng.permutation(len(IDS))[:5], rng.integers(0, 9, 5)
        predictor.observe([IDS[i] for i in chosen], rng.binomial(trials, 0.4), trials)
    return predictor


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == other[key].dtype
            np.testing.assert_array_equal(value, other[key], err_msg=key)
        else:
            assert value == other[key]
            assert type(value) is type(other[key])


@pytest.fixture(params=MAKERS)
def name(request):
    return request.param


@pytest.fixture
def predictor(name):
    return tell(MAKERS[name](), seed=1)


def test_it_is_a_predictor(predictor):
    assert isinstance(predictor, Predictor)


@pytest.mark.parametrize("told_before", [0, 3])
def test_a_state_survives_the_disk_and_goes_on_bit_for_bit(name, told_before, tmp_path):
    predictor = tell(MAKERS[name](), seed=1, steps=told_before)
    save_state(tmp_path / "state", predictor.state_dict(), kind="test")
    loaded = FRESH[name]()
    loaded.load_state_dict(load_state(tmp_path / "state", kind="test"))
    assert_same_state(predictor.state_dict(), loaded.state_dict())
    for one in (predictor, loaded):
        tell(one, seed=2)
        if name in REGISTERED:
            one.register(["late"], [[0.1, 0.2, 0.3]])
    assert_same_state(predictor.state_dict(), loaded.state_dict())
    asked = [*IDS, "late"]
    np.testing.assert_array_equal(predictor.predict(asked).mean, loaded.predict(asked).mean)
    np.testing.assert_array_equal(predictor.predict(asked).variance, loaded.predict(asked).variance)


def test_the_reward_variance_state_survives_the_disk(tmp_path):
    predictor = RewardVarianceGaussianProcess(X, ids=IDS, floor=1e-3)
    predictor.observe_variance(IDS[:3], [0.0, 0.2, 3.0])
    save_state(tmp_path / "state", predictor.state_dict(), kind="test")
    loaded = RewardVarianceGaussianProcess()
    loaded.load_state_dict(load_state(tmp_path / "state", kind="test"))
    for one in (predictor, loaded):
        one.observe_variance(IDS[2:5], [0.5, 0.0, 1.0])
    assert_same_state(predictor.state_dict(), loaded.state_dict())


def test_a_state_is_a_copy(name, predictor):
    before = predictor.state_dict()
    kept = {key: np.copy(value) if isinstance(value, np.ndarray) else value for key, value in before.items()}
    tell(predictor, seed=5)
    assert_same_state(before, kept)
    loaded = FRESH[name]()
    loaded.load_state_dict(before)
    tell(loaded, seed=5)
    assert_same_state(before, kept)


def test_a_state_of_another_kind_is_refused(predictor):
    loaded = type(predictor)()
    with pytest.raises(StateError, match="another kind"):
        loaded.load_state_dict({**predictor.state_dict(), "kind": "Other"})
    with pytest.raises(StateError, match="not a dict"):
        loaded.load_state_dict(None)


def test_missing_keys_are_named_and_nothing_is_loaded(predictor):
    state = predictor.state_dict()
    for key in state.keys() - {"kind"}:
        loaded = type(predictor)()
        before = loaded.state_dict()
        with pytest.raises(StateError, match=key):
            loaded.load_state_dict({k: v for k, v in state.items() if k != key})
        assert_same_state(loaded.state_dict(), before)


def spoiled(key, value, kind):
    """Values of a state entry that cannot be right."""
    if key == "ids":
        return [value[:-1]]
    if isinstance(value, np.ndarray):
        wrong = [value.astype(np.float32)] + ([np.full_like(value, np.nan)] if value.dtype == np.float64 else [])
        if not value.size:
            return wrong[:1]
        return wrong if kind == "GlobalMean" else [*wrong, value[:-1]]  # a shorter window of rates is a state as well
    return ["nonsense", float("nan")] + ([] if key == "prior_mean" else [-1e9])


def test_values_that_do_not_fit_are_refused_and_nothing_is_loaded(predictor):
    state = predictor.state_dict()
    for key in state.keys() - {"kind"}:
        for bad in spoiled(key, state[key], state["kind"]):
            loaded = type(predictor)()
            before = loaded.state_dict()
            with pytest.raises(StateError):
                loaded.load_state_dict({**state, key: bad})
            assert_same_state(loaded.state_dict(), before)


BAD_OBSERVATIONS = {
    "more successes than trials": (["x", "y"], [1, 5], [4, 4], InvalidInputError),
    "negative": (["x", "y"], [1, -1], [4, 4], InvalidInputError),
    "fractional": (["x", "y"], [1, 0.5], [4, 4], InvalidInputError),
    "fractional trials": (["x", "y"], [1, 1], [4, 4.5], InvalidInputError),
    "nan": (["x", "y"], [1, float("nan")], [4, 4], InvalidInputError),
    "infinite": (["x", "y"], [1, float("inf")], [4, float("inf")], InvalidInputError),
    "text": (["x", "y"], ["many", 1], [4, 4], InvalidInputError),
    "none": (["x", "y"], None, [4, 4], InvalidInputError),
    "too few counts": (["x", "y"], [1], [4, 4], InvalidInputError),
    "two dimensions": (["x", "y"], [[1, 1]], [[4, 4]], InvalidInputError),
    "twice": (["x", "y", "x"], [1, 1, 1], [4, 4, 4], DuplicatePromptError),
    "a boolean id": (["x", True], [1, 1], [4, 4], InvalidInputError),
    "a float id": (["x", 1.0], [1, 1], [4, 4], InvalidInputError),
    "a lone string": ("xy", [1, 1], [4, 4], InvalidInputError),
    "no ids": (None, [1, 1], [4, 4], InvalidInputError),
}


@pytest.mark.parametrize("case", BAD_OBSERVATIONS)
def test_bad_observations_change_nothing(predictor, case):
    ids, successes, trials, error = BAD_OBSERVATIONS[case]
    before = predictor.state_dict()
    with pytest.raises(error) as caught:
        predictor.observe(ids, successes, trials)
    assert isinstance(caught.value, AllotmentError)
    assert_same_state(predictor.state_dict(), before)


@pytest.mark.parametrize("ids", ["x", None, [None], [1.5], [True]])
def test_bad_ids_cannot_be_predicted(predictor, ids):
    with pytest.raises(InvalidInputError):
        predictor.predict(ids)


def test_an_empty_observation_changes_nothing(predictor):
    before = predictor.state_dict()
    predictor.observe([], [], [])
    assert_same_state(predictor.state_dict(), before)


@pytest.mark.parametrize("registered", REGISTERED)
class TestRegistration:
    def test_unknown_prompts_are_named(self, registered):
        predictor = tell(MAKERS[registered](), 1)
        before = predictor.state_dict()
        with pytest.raises(UnknownPromptError, match="stranger"):
            predictor.predict(["x", "stranger"])
        with pytest.raises(UnknownPromptError, match="stranger"):
            predictor.observe(["x", "stranger"], [1, 1], [4, 4])
        with pytest.raises(UnknownPromptError, match="8"):
            predictor.observe([8], [0], [0])
        assert_same_state(predictor.state_dict(), before)

    @pytest.mark.parametrize(
        ("ids", "vectors", "error"),
        [
            (["new", "nan"], [[0, 0, 0], [0, np.nan, 0]], InvalidInputError),
            (["new", "inf"], [[0, 0, 0], [0, np.inf, 0]], InvalidInputError),
            (["new"], [[0, 0]], InvalidInputError),
            (["new"], [0, 0, 0], InvalidInputError),
            (["new"], [[0, 0, 0], [1, 1, 1]], InvalidInputError),
            (["new"], [], InvalidInputError),
            ([], [[0, 0, 0]], InvalidInputError),
            (["new", "ragged"], [[0, 0, 0], [1, 1]], InvalidInputError),
            (["new"], [["a", "b", "c"]], InvalidInputError),
            (["new", "x"], [[0, 0, 0], [0, 0, 0]], InvalidInputError),
            (["new", "new"], [[0, 0, 0], [0, 0, 0]], DuplicatePromptError),
            ([True], [[0, 0, 0]], InvalidInputError),
        ],
    )
    def test_bad_embeddings_change_nothing(self, registered, ids, vectors, error):
        predictor = tell(MAKERS[registered](), 1)
        before = predictor.state_dict()
        with pytest.raises(error):
            predictor.register(ids, vectors)
        assert_same_state(predictor.state_dict(), before)

    def test_a_mapping_an_array_and_later_registration_are_the_same(self, registered):
        make = REGISTERED[registered]
        late = make()
        for prompt, vector in zip(IDS, X, strict=True):
            late.register([prompt], [vector])
        for other in (make(dict(zip(IDS, X, strict=True))), make(X, ids=IDS)):
            assert_same_state(tell(other, 1).state_dict(), tell(make(X, ids=IDS), 1).state_dict())
        assert_same_state(tell(late, 1).state_dict(), tell(make(X, ids=IDS), 1).state_dict())

    def test_ids_need_an_array(self, registered):
        for arguments in ((None, IDS), (dict(zip(IDS, X, strict=True)), IDS)):
            with pytest.raises(InvalidInputError, match="array of embeddings"):
                REGISTERED[registered](arguments[0], ids=arguments[1])

    def test_embeddings_without_ids_are_numbered(self, registered):
        assert len(REGISTERED[registered](X).predict(range(len(X)))) == len(X)
        with pytest.raises(UnknownPromptError):
            REGISTERED[registered](X).predict([len(X)])


BAD_HIERARCHICAL = [
    {"rank": 0},
    {"rank": 2.0},
    {"memory": 0.0},
    {"memory": float("nan")},
    {"prior_mean": float("inf")},
    {"prior_mean": "0"},
    {"prior_variance": 0.0},
    {"scale": -1.0},
    {"scale": None},
    {"bandwidth": 0.0},
    {"bandwidth": True},
    {"unseen_variance": float("inf")},
    {"prompt_variance": 0.0},
    {"prompt_drift": -1e-9},
    {"level_drift": float("nan")},
    {"learn": 1},
    {"seed": -1},
    {"band_width": 1.0},
]
BAD_SETTINGS = [
    (GaussianProcess, {"bandwidth": 0.0}),
    (GaussianProcess, {"bandwidth": float("nan")}),
    (GaussianProcess, {"epsilon": 0.0}),
    (GaussianProcess, {"epsilon": 0.5}),
    (GaussianProcess, {"jitter": -1e-9}),
    (GaussianProcess, {"jitter": 2.0}),
    (GaussianProcess, {"prior_mean": float("inf")}),
    (RewardVarianceGaussianProcess, {"floor": 0.0}),
    (Ridge, {"penalty": 0.0}),
    (Ridge, {"window": 0}),
    (Ridge, {"epsilon": 0.7}),
    (KNearest, {"neighbours": 0}),
    (GlobalMean, {"window": 0}),
    (LastValue, {"smoothing": 0.0}),
    (LastValue, {"global_forgetting": 1.1}),
    (DiscountedCounts, {"forgetting": 0.0}),
    (DiscountedCounts, {"forgetting": float("nan")}),
    (DiscountedCounts, {"prior_strength": 0.0}),
    (DiscountedCounts, {"global_forgetting": 0.0}),
    *((make, setting) for make in (HierarchicalPredictor, HierarchicalRegression) for setting in BAD_HIERARCHICAL),
]


@pytest.mark.parametrize(("make", "setting"), BAD_SETTINGS)
def test_settings_outside_their_range_are_named(make, setting):
    with pytest.raises(InvalidInputError, match=next(iter(setting))):
        make(**setting)


@pytest.mark.parametrize("variances", [[-0.1], [float("nan")], [float("inf")], [1.0, 2.0], ["much"], None])
def test_bad_reward_variances_change_nothing(variances):
    predictor = RewardVarianceGaussianProcess(X, ids=IDS)
    before = predictor.state_dict()
    with pytest.raises(InvalidInputError):
        predictor.observe_variance(["x"], variances)
    with pytest.raises(UnknownPromptError):
        predictor.observe_variance(["stranger"], [1.0])
    with pytest.raises(DuplicatePromptError):
        predictor.observe_variance(["x", "x"], [1.0, 1.0])
    assert_same_state(predictor.state_dict(), before)
