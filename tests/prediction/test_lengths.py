"""Expected lengths: unbiased where lengths are heavy-tailed, shrunk where little is known, the same in any order."""

import copy

import numpy as np
import pytest

from allotment.errors import InvalidInputError, StateError
from allotment.prediction import LengthPredictor


def assert_same(one, other):
    """Equal values all through, arrays and nested dicts included."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    else:
        np.testing.assert_array_equal(one, other)


def visits(predictor, rng, means, spread, n, steps):
    """Log-normal lengths of these means and log standard deviation within each prompt."""
    prompts = len(means)
    for _ in range(steps):
        rows = np.repeat(np.arange(prompts), n)
        lengths = means[rows] * np.exp(rng.normal(-(spread**2) / 2, spread, prompts * n))
        predictor.observe(range(prompts), rows, lengths)


def expected(predictor, ids):
    return predictor.expected_length(ids, unknown=np.nan)


def test_before_anything_is_known():
    assert LengthPredictor().expected_length(["a", 3], unknown=7.5).tolist() == [7.5, 7.5]
    assert LengthPredictor(typical_length=300).expected_length(["a"], unknown=7.5).tolist() == [300]


class Given:
    """A model that says what it is told to, and keeps what it observes."""

    def predict(self, ids):
        return np.full(len(ids), 2.0), np.full(len(ids), 0.5)

    def observe(self, ids, values_B, noise_variance_B):
        self.observed = list(ids), values_B.tolist(), noise_variance_B.tolist()


def test_a_visit_by_hand():
    """Lengths 90 and 110: cv^2 = 2 * 0.01 over one degree of freedom, pooled with 8 rollouts' worth of 1/4."""
    predictor = LengthPredictor(model=Given())
    predictor.observe(["none", "a"], np.array([1, 1]), np.array([90.0, 110.0]))
    pooled = (0.9 * 8 * 0.25 + 0.02) / (0.9 * 8 + 1)
    noise = (8 * pooled + 0.02) / 9 / 2
    ids, values, noises = predictor.model.observed
    assert ids == ["a"]
    assert values == pytest.approx([np.log(100) + noise / 2])
    assert noises == pytest.approx([noise])
    assert expected(predictor, ["a", "b"]) == pytest.approx(np.exp(2.25))
    predictor.observe(["a"], np.array([0, 0]), np.array([6.0, 8.0]))
    assert (predictor.predicted_tokens, predictor.used_tokens) == (pytest.approx(2 * np.exp(2.25)), 14)
    assert expected(predictor, ["a"]) == pytest.approx(7)  # the model stays at exp(2.25): recent use corrects it


@pytest.mark.parametrize("spread", [0.2, 0.8])
@pytest.mark.parametrize("n", [3, 8])
def test_the_total_is_unbiased(spread, n):
    """Over many prompts the tokens expected are the tokens used, whatever the spread; the mean log would be too low."""
    rng = np.random.default_rng(0)
    means = np.exp(rng.normal(5, 0.5, 400))
    predictor = LengthPredictor()
    visits(predictor, rng, means, spread, n, steps=6)
    guess = expected(predictor, range(400))
    assert guess.sum() == pytest.approx(means.sum(), rel=0.04)
    assert np.corrcoef(np.log(guess), np.log(means))[0, 1] > 0.9
    assert predictor.predicted_tokens == pytest.approx(predictor.used_tokens, rel=0.06)


def test_unseen_prompts_get_the_level_and_seen_ones_their_own():
    predictor = LengthPredictor()
    rng = np.random.default_rng(1)
    visits(predictor, rng, np.array([50.0, 800.0]), 0.3, 8, steps=10)
    short, long, new = expected(predictor, [0, 1, "new"])
    assert short == pytest.approx(50, rel=0.15)
    assert long == pytest.approx(800, rel=0.15)
    assert short < new < long


def test_forgets():
    predictor = LengthPredictor()
    rng = np.random.default_rng(1)
    visits(predictor, rng, np.array([100.0, 100.0]), 0.3, 8, steps=20)
    visits(predictor, rng, np.array([300.0, 100.0]), 0.3, 8, steps=25)
    assert expected(predictor, [0, 1]) == pytest.approx([300, 100], rel=0.2)


def test_the_order_of_rollouts_and_prompts_does_not_matter():
    rng = np.random.default_rng(2)
    rows, lengths = rng.integers(0, 5, 40), rng.exponential(100, 40) + 1
    one, other = LengthPredictor(), LengthPredictor()
    one.observe(list("abcde"), rows, lengths)
    order, names = rng.permutation(40), rng.permutation(5)
    other.observe([list("abcde")[i] for i in names], np.argsort(names)[rows[order]], lengths[order])
    assert expected(one, list("abcdef")).tobytes() == expected(other, list("abcdef")).tobytes()


def test_state_round_trip_is_exact_and_all_or_nothing():
    predictor = LengthPredictor(typical_length=40)
    visits(predictor, np.random.default_rng(0), np.array([50.0, 80.0]), 0.3, 4, steps=3)
    state = predictor.state_dict()
    kept = copy.deepcopy(state)
    loaded = LengthPredictor()
    loaded.load_state_dict(state)
    for both in (predictor, loaded):
        visits(both, np.random.default_rng(1), np.array([50.0, 80.0, 20.0]), 0.3, 4, steps=2)
    assert expected(predictor, range(4)).tobytes() == expected(loaded, range(4)).tobytes()
    assert (loaded.predicted_tokens, loaded.used_tokens) == (predictor.predicted_tokens, predictor.used_tokens)
    assert_same(state, kept)
    before = expected(loaded, range(4))
    for damage in ({"observed": -1}, {"pooled": np.zeros(3)}, {"model": {}}):
        with pytest.raises(StateError):
            loaded.load_state_dict({**state, **damage})
        assert expected(loaded, range(4)).tobytes() == before.tobytes()


@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, np.nan])
def test_refuses_settings(value):
    with pytest.raises(InvalidInputError, match="typical_length"):
        LengthPredictor(typical_length=value)


def test_refuses_lengths_that_are_none():
    with pytest.raises(InvalidInputError, match="length"):
        LengthPredictor().observe(["a"], np.array([0, 0]), np.array([3.0, 0.0]))
