"""Low-rank features: inner products are the Nystroem approximation of the kernel."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist

from allotment.prediction.features import Landmarks

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
