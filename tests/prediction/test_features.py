"""What is counted in a prompt's text, what all prompts share, and how features are weighed against embeddings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from allotment.errors import InvalidInputError, StateError
from allotment.prediction import HierarchicalPredictor, distinct_parts, text_features
from allotment.prediction.features import PATTERNS, scale_beside

words = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=5).map(" ".join)


def test_counts_by_hand():
    (row,) = np.expm1(text_features(["Find all $x$ with\n|x| <= 120/7. How many?"]))
    counted = dict(zip([*PATTERNS, "digits"], row.round(9), strict=True))
    assert counted == {
        "characters": 41,
        "words": 9,
        "numbers": 2,
        "dollars": 2,
        "backslashes": 0,
        "fractions": 1,
        "questions": 1,
        "relations": 2,
        "brackets": 0,
        "bars": 2,
        "all": 1,
        "prove": 0,
        "find": 1,
        "how many": 1,
        "compute": 0,
        "digits": 3,
    }


def test_shapes_and_bad_input():
    assert text_features([]).shape == (0, len(PATTERNS) + 1)
    assert not text_features([""]).any()
    for bad in ("text", [b"bytes"], [None]):
        with pytest.raises(InvalidInputError, match="strings"):
            text_features(bad)


@given(st.lists(words, min_size=2, max_size=5, unique=True), words, words)
def test_a_shared_frame_is_taken_off_and_words_stay_whole(texts, before, after):
    framed = [f"{before} {text} {after}" for text in texts]
    parts = distinct_parts(framed)
    starts = {whole[: whole.rindex(part)] for whole, part in zip(framed, parts, strict=True) if part}
    lost = {len(whole) - len(part) for whole, part in zip(framed, parts, strict=True)}
    assert len(lost) == 1  # the same of all
    assert lost.pop() >= len(before) + 1
    assert all(whole.startswith(before + " ") for whole in starts)
    assert len(set(parts)) == len(texts)
    assert len({part.split(" ")[0] for part in parts if " " in part}) != 1 or not all(" " in part for part in parts)


def test_a_frame_goes_on_both_sides():
    framed = [f"Solve: {text} Think step by step." for text in ("1 + 1 = ?", "2 + 2 = ?", "2 + 1")]
    assert [part.strip() for part in distinct_parts(framed)] == ["1 + 1 = ?", "2 + 2 = ?", "2 + 1"]


def test_nothing_is_taken_off_where_nothing_is_shared():
    for texts in (["one two", "three four"], ["alone"], ["same here", "same here"], [], ["prefix", "prefixed"]):
        assert distinct_parts(texts) == texts


def test_features_weigh_as_much_as_embeddings_and_each_the_same():
    random = np.random.default_rng(0)
    x_MD, features_MF = random.normal(size=(300, 7)), random.normal(size=(300, 3)) * [1e-3, 1.0, 50.0]
    scale_F = scale_beside(features_MF, x_MD)
    spread = (features_MF * scale_F).std(axis=0)
    np.testing.assert_allclose(spread, spread[0])
    np.testing.assert_allclose((pdist(features_MF * scale_F) ** 2).mean(), (pdist(x_MD) ** 2).mean())
    assert scale_beside(np.ones((4, 2)), x_MD[:4]).tolist() == [1.0, 1.0]


def learnt(signal_in, seed=0, n=60):
    """Belief about unseen prompts after a step, where difficulty shows in ``signal_in`` only."""
    random = np.random.default_rng(seed)
    easy = random.integers(0, 2, n)
    about = {"embeddings": random.normal(size=(n, 4)), "features": random.normal(size=(n, 2))}
    about[signal_in][:, 0] = 6.0 * easy + random.normal(size=n)
    predictor = HierarchicalPredictor(about["embeddings"], features=about["features"])
    for first in (0, 20):
        rows = np.arange(first, first + 20)
        predictor.observe(rows, np.where(easy[rows], 7, 1), np.full(20, 8))
    p = predictor.predict(range(40, n)).success_probability()
    return p[easy[40:] == 1].mean() - p[easy[40:] == 0].mean()


@pytest.mark.parametrize("signal_in", ["embeddings", "features"])
def test_difficulty_is_learnt_from_either(signal_in):
    assert learnt(signal_in) > 0.2


def test_later_prompts_bring_features_too_and_in_the_same_unit():
    random = np.random.default_rng(1)
    x_MD, features_MF = random.normal(size=(9, 4)), random.normal(size=(9, 2))
    whole, parts = (
        HierarchicalPredictor(x_MD, features=features_MF),
        HierarchicalPredictor(x_MD[:8], features=features_MF[:8]),
    )
    parts.register([8], x_MD[8:], features_MF[8:])
    np.testing.assert_allclose(parts._prompts.rows(np.array([8]))[0, :4], x_MD[8], rtol=1e-6)
    assert parts._prompts.dimension == whole._prompts.dimension == 6
    before = parts.state_dict()
    for bad in (None, features_MF[:1, :1], features_MF[:2], [[np.nan, 0.0]]):
        with pytest.raises(InvalidInputError):
            parts.register(["new"], x_MD[:1], bad)
    with pytest.raises(InvalidInputError, match="none at all"):
        HierarchicalPredictor(x_MD[:8]).register(["new"], x_MD[:1], features_MF[:1])
    np.testing.assert_array_equal(parts.state_dict()["feature_scale"], before["feature_scale"])
    assert len(parts._prompts) == 9


def test_features_need_an_array_of_embeddings():
    for embeddings in (None, {"a": [1.0, 2.0]}):
        with pytest.raises(InvalidInputError, match="features only together with an array"):
            HierarchicalPredictor(embeddings, features=[[1.0]])


def test_a_state_knows_the_unit_of_its_features():
    random = np.random.default_rng(2)
    x_MD, features_MF = random.normal(size=(9, 4)), random.normal(size=(9, 2))
    saved = HierarchicalPredictor(x_MD, features=features_MF)
    saved.observe([0, 1], [1, 7], [8, 8])
    again = HierarchicalPredictor(x_MD, features=features_MF)
    again.load_state_dict(saved.state_dict())
    np.testing.assert_array_equal(again.predict(range(9)).mean, saved.predict(range(9)).mean)
    with pytest.raises(StateError, match="scaled differently"):
        HierarchicalPredictor(x_MD, features=3 * features_MF).load_state_dict(saved.state_dict())
