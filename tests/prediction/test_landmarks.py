"""Low-rank features: inner products are the Nystroem approximation of the kernel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist

from allotment.prediction import HierarchicalPredictor
from allotment.prediction import landmarks as module
from allotment.prediction.landmarks import Landmarks, Pool
from allotment.prompts.embeddings import EmbeddedPrompts

FACTORS = np.array([0.5, 1.0, 2.0])


def points(count, seed=0, dimension=3):
    return np.random.default_rng(seed).normal(size=(count, dimension))


def features(landmarks, x):
    """[H, Q, M] features of each bandwidth."""
    rows = [landmarks.features(x).rows(h) for h in range(len(landmarks.bandwidths))]
    assert all((part[0] == 1).all() and (part[1] == 0).all() for part in rows)  # level and drift
    return np.stack([part[2:].T for part in rows])


def kernel(x, z, bandwidth):
    return np.exp(-(cdist(x, z) ** 2) / (2 * bandwidth**2))


def test_bandwidths_are_factors_of_the_median_distance():
    x = points(9)
    np.testing.assert_allclose(Landmarks.at(x, FACTORS).bandwidths, FACTORS * np.median(pdist(x)))


def test_the_kernel_is_exact_among_the_landmarks():
    x = points(12)
    landmarks = Landmarks.at(x, FACTORS)
    for features_QM, bandwidth in zip(features(landmarks, x), landmarks.bandwidths, strict=True):
        np.testing.assert_allclose(features_QM @ features_QM.T, kernel(x, x, bandwidth), atol=1e-6)


def test_elsewhere_it_is_the_projection_on_the_landmarks():
    z, x = points(8), points(5, seed=1)
    landmarks = Landmarks.at(z, FACTORS)
    for features_QM, h in zip(features(landmarks, x), landmarks.bandwidths, strict=True):
        exact = kernel(x, z, h) @ np.linalg.solve(kernel(z, z, h), kernel(z, x, h))
        np.testing.assert_allclose(features_QM @ features_QM.T, exact, atol=1e-5)
        assert ((features_QM**2).sum(axis=1) <= 1 + 1e-9).all()


def test_far_from_all_landmarks_there_are_no_features():
    assert np.abs(features(Landmarks.at(points(8), FACTORS), points(3) + 1e3)).max() < 1e-12


@pytest.mark.parametrize("x", [np.ones((1, 3)), np.ones((4, 3)), np.repeat(points(3), 3, axis=0)])
def test_equal_landmarks_count_once(x):
    landmarks = Landmarks.at(x, FACTORS)
    for features_QM, bandwidth in zip(features(landmarks, x), landmarks.bandwidths, strict=True):
        assert np.isfinite(features_QM).all()
        np.testing.assert_allclose(features_QM @ features_QM.T, kernel(x, x, bandwidth), atol=1e-6)


def test_their_order_does_not_matter():
    z, x = points(10), points(4, seed=1)
    order = np.random.default_rng(0).permutation(10)
    one, other = Landmarks.at(z, FACTORS), Landmarks.at(z[order], FACTORS)
    np.testing.assert_allclose(features(one, x)[:, :, order], features(other, x), atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 5), st.data())
def test_kept_features_do_not_depend_on_when_prompts_were_registered(parts, block_rows, data):
    x = points(sum(parts), dimension=7).astype(np.float32)
    landmarks, asked = Landmarks.at(x[:4].astype(float), FACTORS), data.draw(st.permutations(range(len(x))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_ROWS", block_rows)
        at_once, in_parts = Pool(landmarks), Pool(landmarks)
        prompts, growing = EmbeddedPrompts(), EmbeddedPrompts()
        prompts.register(range(len(x)), x)
        for end, size in zip(np.cumsum(parts).tolist(), parts, strict=True):
            growing.register(range(end - size, end), x[end - size : end])
            for bandwidth in range(len(FACTORS)):
                in_parts.features(growing, np.arange(end)).rows(bandwidth)
        one, other = (pool.features(of, np.array(asked)) for pool, of in ((at_once, prompts), (in_parts, growing)))
        for bandwidth in range(len(FACTORS)):
            np.testing.assert_array_equal(one.rows(bandwidth), other.rows(bandwidth))
            direct = landmarks.features(x[asked]).rows(bandwidth)
            np.testing.assert_allclose(one.rows(bandwidth), direct, atol=1e-9)
            np.testing.assert_array_equal(one.take(np.arange(1)).rows(bandwidth), one.rows(bandwidth)[:, :1])
        np.testing.assert_array_equal(one.place, other.place)


def test_a_large_pool_is_believed_what_a_small_one_is(monkeypatch):
    x, beliefs = points(60, dimension=5), []
    for most in (60, 59):
        monkeypatch.setattr(module, "SMALL_POOL", most)
        predictor = HierarchicalPredictor(x)
        for step in range(4):
            ids = np.random.default_rng(step).choice(60, 20, replace=False).tolist()
            predictor.observe(ids, np.arange(20) % 5, np.full(20, 4))
        beliefs.append(predictor.predict(range(60)))
    np.testing.assert_allclose(beliefs[0].mean, beliefs[1].mean, atol=1e-6)
    np.testing.assert_allclose(beliefs[0].variance, beliefs[1].variance, atol=1e-6)
