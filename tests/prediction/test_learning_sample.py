"""Hyper-parameters are learnt from some prompts of a large step: which ones, and that it makes no difference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allotment.prediction import HierarchicalPredictor, hierarchy
from allotment.prediction.hierarchy import ALL_UNTIL, SCORED, Batch, Hierarchy
from allotment.prediction.settings import Settings

PROMPTS = 3 * SCORED
LEARNT = {"prompt_variance": 2.0, "unseen_variance": 2.0, "prompt_drift": 4.0}
"""By what factor candidates lie apart."""


def world(seed, embedded, steps=3):
    """Embeddings [N, 3] or None, and rounds of counts of nearly all prompts."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(PROMPTS, 3)).astype(np.float32)
    p = 1 / (1 + np.exp(-2 * x[:, 0] - rng.normal(size=PROMPTS)))
    rounds = []
    for _ in range(steps):
        rows = rng.choice(PROMPTS, PROMPTS - 7, replace=False)
        rounds.append((rows, rng.binomial(8, p[rows])))
    return x if embedded else None, rounds


def run(x, rounds, order=lambda rows: np.arange(len(rows)), asked=False, **settings):
    predictor = HierarchicalPredictor(x, rank=16, **settings)
    for rows, successes in rounds:
        moved = order(rows)
        if asked:
            predictor.predict(rows[moved])
        predictor.observe(rows[moved], successes[moved], np.full(len(rows), 8))
    return predictor


@pytest.mark.parametrize("embedded", [False, True])
def test_neither_the_order_of_the_batch_nor_names_decide_what_is_learnt(embedded):
    x, rounds = world(0, embedded)
    one = run(x, rounds)
    rng = np.random.default_rng(1)
    other = run(x, rounds, order=lambda rows: rng.permutation(len(rows)))
    np.testing.assert_allclose(one.state_dict()["evidence"], other.state_dict()["evidence"], atol=1e-6)
    one, other = one.predict(range(PROMPTS)), other.predict(range(PROMPTS))
    np.testing.assert_allclose(one.mean, other.mean, atol=1e-7)
    np.testing.assert_allclose(one.variance, other.variance, atol=1e-7)


@given(st.integers(0, 10**6), st.integers(SCORED + 1, 5 * SCORED), st.booleans())
def test_every_prompt_is_heard_about_as_often_and_sums_keep_their_expectation(seed, prompts, has_records):
    rng = np.random.default_rng(seed)
    record = rng.exponential(size=(prompts, 4)) * has_records
    batch = Batch(tuple(range(prompts)), record, None)
    outcomes = (rng.integers(0, 3, prompts).astype(float),)
    heard, steps = np.zeros(prompts), 60
    for step in range(steps):
        rows = batch.spread(SCORED, step, outcomes)
        assert len(set(rows.tolist())) == SCORED
        heard[rows] += 1
    share = SCORED / prompts
    assert (np.abs(heard / steps - share) < 0.06).all()
    assert heard @ outcomes[0] / steps == pytest.approx(share * outcomes[0].sum(), rel=0.02)


@pytest.mark.parametrize("embedded", [False, True])
def test_as_much_is_learnt_as_from_all(embedded, monkeypatch):
    x, rounds = world(2, embedded, steps=12)
    some = run(x, rounds)
    monkeypatch.setattr(hierarchy, "SCORED", PROMPTS)
    everyone = run(x, rounds)
    for name, factor in LEARNT.items():
        one, other = (getattr(predictor._model, name).mean for predictor in (some, everyone))
        assert abs(np.log(one / other)) < np.log(factor), name
    assert (some._model.members[some._model.member.best].scale > 0) == embedded
    one, other = some.predict(range(PROMPTS)), everyone.predict(range(PROMPTS))
    assert np.abs(one.success_probability() - other.success_probability()).mean() < 0.01


@pytest.mark.parametrize("epoch", [1, 5, 10, 12])
def test_candidate_kernels_take_even_turns_whatever_the_length_of_an_epoch(epoch):
    model = Hierarchy(Settings(), rank=4)
    heard, steps = np.zeros(len(model.members)), 400
    for model.step in range(ALL_UNTIL, ALL_UNTIL + epoch * steps, epoch):
        weight, members = model._heard()
        assert members[0] == model.member.best
        assert len(set(members)) == len(members)
        heard[members] += weight
    others = np.delete(heard, model.member.best) / steps
    np.testing.assert_allclose(others, 1.0, atol=0.1)
    model.step = ALL_UNTIL - 1
    assert sorted(model._heard()[1]) == list(range(len(model.members)))


@pytest.mark.parametrize("seed", [3, 4])
def test_as_much_is_learnt_in_turn_as_from_all_kernels(monkeypatch, seed):
    x, rounds = world(seed, embedded=True, steps=40)
    in_turn = run(x, rounds)
    monkeypatch.setattr(hierarchy, "ALL_UNTIL", 1000)
    together = run(x, rounds)
    assert not np.array_equal(*(each._model.member.evidence for each in (in_turn, together)))
    assert all(each._model.members[each._model.member.best].scale > 0 for each in (in_turn, together))
    one, other = in_turn.predict(range(PROMPTS)), together.predict(range(PROMPTS))
    assert np.abs(one.success_probability() - other.success_probability()).mean() < 0.01


def test_features_kept_from_a_plan_change_no_bit():
    x, rounds = world(3, True)
    one, other = run(x, rounds), run(x, rounds, asked=True)
    for key, value in one.state_dict().items():
        np.testing.assert_array_equal(value, other.state_dict()[key], err_msg=key)


def test_features_of_some_prompts_are_those_of_all():
    x, rounds = world(4, True, steps=1)
    predictor = run(x, rounds)
    features = predictor._batch(tuple(range(PROMPTS))).features
    features.rows(1)
    rows = np.array([5, 0, 77])
    part = features.take(rows)
    for bandwidth in range(3):
        np.testing.assert_allclose(part.rows(bandwidth), features.rows(bandwidth)[:, rows], atol=1e-12)
