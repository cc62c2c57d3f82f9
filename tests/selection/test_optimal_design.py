"""G-optimal designs (Kiefer-Wolfowitz, known designs) and the coverage number."""

import subprocess
import sys

import cvxpy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import eigh
from scipy.special import expit

from allotment.errors import InvalidInputError
from allotment.methods.objectives.optimal_design import (
    coverage_number,
    g_optimal_design,
    leverages,
    preferential_design,
    within_group_covariance,
)


def arms(seed, size=40, dimensions=4):
    return np.random.default_rng(seed).normal(size=(size, dimensions))


def log_det(candidates, weights):
    return np.linalg.slogdet((candidates * weights[:, None]).T @ candidates)[1]


def d_optimal(candidates):
    """The largest log-determinant of any design, by an interior-point solver."""
    weights = cvxpy.Variable(len(candidates), nonneg=True)
    information = candidates.T @ cvxpy.diag(weights) @ candidates
    problem = cvxpy.Problem(cvxpy.Maximize(cvxpy.log_det(information)), [cvxpy.sum(weights) == 1])
    return problem.solve(solver="CLARABEL")


@pytest.mark.parametrize("seed", range(4))
def test_known_designs(seed):
    design = g_optimal_design(arms(seed), iterations=5000, tolerance=0)
    assert design.iterations == 5000
    assert design.gap == pytest.approx(0.0025, abs=5e-4)  # 4.0025
    assert 4 <= len(design.support) <= 10
    assert design.weights_K[design.support].sum() > 0.99


@given(st.integers(0, 200), st.integers(1, 5), st.integers(0, 300))
def test_weights_times_leverages_are_the_rank_at_every_iterate(seed, dimensions, iterations):
    candidates = arms(seed, size=12, dimensions=dimensions)
    design = g_optimal_design(candidates, iterations=iterations, tolerance=0)
    assert design.weights_K @ design.leverages_K == pytest.approx(dimensions, rel=1e-8)
    assert design.weights_K.sum() == pytest.approx(1)
    assert (design.weights_K >= 0).all()
    assert design.gap >= -1e-8
    information = (candidates * design.weights_K[:, None]).T @ candidates
    direct = np.einsum("kd,kd->k", candidates @ np.linalg.inv(information), candidates)
    np.testing.assert_allclose(design.leverages_K, direct, rtol=1e-5)
    np.testing.assert_allclose(leverages(candidates, design.weights_K), direct, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_design_is_d_optimal_too(seed):
    candidates = arms(seed)
    design = g_optimal_design(candidates, iterations=5000, tolerance=0)
    best = d_optimal(candidates)
    assert best - 0.003 < log_det(candidates, design.weights_K) < best + 1e-5
    rng = np.random.default_rng(seed)
    for other in rng.dirichlet(np.full(40, 0.2), size=200):
        assert leverages(candidates, other).max() > 4


def test_each_step_is_the_best_towards_its_candidate():
    candidates = arms(1)
    before, after = (g_optimal_design(candidates, iterations=n, tolerance=0) for n in (7, 8))
    best = np.argmax(before.leverages_K)
    towards = np.eye(len(candidates))[best]
    reached = log_det(candidates, after.weights_K)
    grid = [log_det(candidates, (1 - s) * before.weights_K + s * towards) for s in np.linspace(0, 0.5, 2001)]
    assert reached >= max(grid) - 1e-12
    assert reached > grid[0]


def test_the_search_stops_where_the_certificate_says_so():
    loose, tight = (g_optimal_design(arms(0), tolerance=tolerance) for tolerance in (0.1, 0.02))
    assert 0.02 * 4 < loose.gap <= 0.1 * 4
    assert tight.gap <= 0.02 * 4
    assert loose.iterations < tight.iterations < 1000


@given(st.integers(0, 50), st.floats(1e-6, 1e6))
def test_candidates_that_span_less_are_treated_in_their_span(seed, scale):
    rng = np.random.default_rng(seed)
    inside = arms(seed, size=15, dimensions=3)
    outside = scale * inside @ rng.normal(size=(3, 7))
    first, second = (g_optimal_design(x, iterations=60, tolerance=0) for x in (inside, outside))
    assert first.rank == second.rank == 3
    np.testing.assert_allclose(first.weights_K, second.weights_K, atol=1e-6)
    np.testing.assert_allclose(first.leverages_K, second.leverages_K, rtol=1e-5)


def test_one_direction_and_fewer_candidates_than_dimensions():
    line = g_optimal_design([[1.0, 2.0], [-3.0, -6.0], [0.0, 0.0]])
    assert (line.rank, line.weights_K.tolist(), line.gap) == (1, [0, 1, 0], pytest.approx(0))
    few = g_optimal_design(arms(0, size=2, dimensions=5))
    np.testing.assert_allclose(few.weights_K, 0.5)
    assert few.rank == 2


def test_what_no_measurement_informs_on_has_infinite_leverage():
    np.testing.assert_allclose(leverages(np.eye(3), [0.5, 0.5, 0]), [2, 2, np.inf])


@given(st.integers(0, 50))
def test_preferential_leverage_is_weighted_by_the_slope_of_the_sigmoid(seed):
    rng = np.random.default_rng(seed)
    pairs, margins = arms(seed, size=20, dimensions=3), rng.normal(size=20) * 2
    design = preferential_design(pairs, margins, iterations=100, tolerance=0)
    slopes = expit(margins) * (1 - expit(margins))
    information = (pairs * (design.weights_K * slopes)[:, None]).T @ pairs
    expected = slopes * np.einsum("kd,kd->k", pairs @ np.linalg.inv(information), pairs)
    np.testing.assert_allclose(design.leverages_K, expected, rtol=1e-6)
    assert design.weights_K @ design.leverages_K == pytest.approx(3)
    flat = preferential_design(pairs, np.zeros(20), iterations=100, tolerance=0)
    np.testing.assert_allclose(flat.weights_K, g_optimal_design(pairs, iterations=100, tolerance=0).weights_K)


def test_pairs_whose_outcome_is_certain_are_not_asked_for():
    pairs = np.concatenate([np.eye(2), 3 * np.eye(2)])
    chosen = preferential_design(pairs, [0, 0, 12, -12]).support
    assert chosen.tolist() == [0, 1]
    assert preferential_design(pairs, np.zeros(4)).support.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (np.zeros((0, 3)), "shape"),
        ([1.0, 2.0], "shape"),
        (np.ones((4, 0)), "shape"),
        ([[1.0, np.nan], [0, 1]], "1 rows not finite"),
        ([[np.inf, 1.0]], "1 rows not finite"),
        (np.zeros((3, 2)), "all 0"),
    ],
)
def test_candidates_without_a_design_are_refused(candidates, message):
    for design in (lambda: g_optimal_design(candidates), lambda: preferential_design(candidates, np.zeros(3))):
        with pytest.raises(InvalidInputError, match=message):
            design()


@pytest.mark.parametrize("settings", [{"iterations": -1}, {"tolerance": -0.1}, {"tolerance": np.inf}])
def test_a_search_that_cannot_be_is_refused(settings):
    with pytest.raises(InvalidInputError, match="no such search"):
        g_optimal_design(np.eye(2), **settings)


@pytest.mark.parametrize("margins", [[0.0], [0, np.nan], [[0, 0]]])
def test_margins_that_do_not_fit_are_refused(margins):
    with pytest.raises(InvalidInputError, match="margins do not fit"):
        preferential_design(np.eye(2), margins)


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.6], [1.5, -0.5], [np.nan, 1]])
def test_weights_that_are_no_design_are_refused(weights):
    with pytest.raises(InvalidInputError, match="no design of these candidates"):
        leverages(np.eye(2), weights)


def test_coverage_number_is_the_largest_generalised_eigenvalue():
    sampler, target = np.cov(arms(0).T), np.cov(arms(1).T)
    assert coverage_number(sampler, target) == pytest.approx(eigh(target, sampler, eigvals_only=True)[-1])
    directions = np.random.default_rng(0).normal(size=(5000, 4))
    ratios = np.einsum("nd,dc,nc->n", directions, target, directions) / np.einsum(
        "nd,dc,nc->n", directions, sampler, directions
    )
    assert 0.9 * coverage_number(sampler, target) < ratios.max() <= coverage_number(sampler, target)
    assert coverage_number(sampler, 3 * sampler) == pytest.approx(3)


def test_coverage_is_infinite_outside_the_sampler_and_finite_with_a_ridge():
    sampler, target = np.diag([1.0, 2, 0]), np.diag([2.0, 1, 0.5])
    assert coverage_number(sampler, target) == np.inf
    assert coverage_number(sampler, np.diag([2.0, 1, 0])) == pytest.approx(2)
    assert coverage_number(sampler, target, ridge=0.1) == pytest.approx((0.5 + 0.1) / 0.1)
    assert coverage_number(np.zeros((2, 2)), np.zeros((2, 2))) == 1
    assert coverage_number(np.zeros((2, 2)), np.eye(2), ridge=1) == np.inf


@given(st.integers(0, 50), st.floats(0, 1))
def test_coverage_of_itself_is_one_and_does_not_care_about_units(seed, ridge):
    covariance, other = (np.cov(arms(seed + k, dimensions=3).T) for k in (0, 100))
    assert coverage_number(covariance, covariance, ridge) == pytest.approx(1, rel=1e-9)
    number = coverage_number(covariance, other, ridge)
    assert coverage_number(1e6 * covariance, 1e6 * other, ridge) == pytest.approx(number)


def test_covariance_is_centred_in_each_group_and_weighted():
    rng = np.random.default_rng(0)
    features, groups = rng.normal(size=(9, 2)), np.array([3, 3, 3, 3, 7, 7, 7, 7, 7])
    expected = (np.cov(features[:4].T, ddof=0) + np.cov(features[4:].T, ddof=0)) / 2
    np.testing.assert_allclose(within_group_covariance(features, groups), expected)
    order = rng.permutation(9)
    np.testing.assert_allclose(within_group_covariance(features[order], groups[order]), expected)
    moved = features + 100.0 * (groups == 7)[:, None]
    np.testing.assert_allclose(within_group_covariance(moved, groups), expected, atol=1e-10)
    counts = np.array([1, 2, 3, 1, 1, 1, 4, 2, 1])
    repeated = within_group_covariance(features.repeat(counts, 0), groups.repeat(counts))
    np.testing.assert_allclose(within_group_covariance(features, groups, 5.0 * counts), repeated)


@given(st.integers(0, 50))
def test_groups_of_equal_features_do_not_vary_not_even_by_rounding(seed):
    rng = np.random.default_rng(seed)
    groups = np.array([0, 0, 0, 1, 1, 1, 1])
    features = rng.normal(size=(2, 5))[groups]
    assert not within_group_covariance(features, groups, rng.random(7)).any()


def test_importance_weights_estimate_the_targets_covariance():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6, 2))
    sampler, target = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    drawn = rng.choice(6, size=40_000, p=sampler)
    estimate = within_group_covariance(features[drawn], weights_N=(target / sampler)[drawn])
    np.testing.assert_allclose(estimate, within_group_covariance(features, weights_N=target), atol=0.05)
    assert np.abs(within_group_covariance(features[drawn]) - estimate).max() > 0.1


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"features_ND": np.ones((0, 2))}, "cannot be used"),
        ({"features_ND": [[np.nan]]}, "not finite"),
        ({"features_ND": np.ones((3, 1)), "group_ids_N": [1, 2]}, r"group ids \(2,\)"),
        ({"features_ND": np.ones((2, 1)), "weights_N": [1.0, -1]}, "do not fit"),
        ({"features_ND": np.ones((2, 1)), "weights_N": [1.0, np.inf]}, "do not fit"),
        ({"features_ND": np.ones((2, 1)), "group_ids_N": [0, 1], "weights_N": [1.0, 0]}, "1 groups whose weights"),
    ],
)
def test_features_without_a_covariance_are_refused(given_, message):
    with pytest.raises(InvalidInputError, match=message):
        within_group_covariance(**given_)


@pytest.mark.parametrize(
    ("sampler", "target", "ridge"),
    [
        (np.eye(2), np.eye(3), 0),
        (np.ones(2), np.ones(2), 0),
        (np.zeros((0, 0)), np.zeros((0, 0)), 0),
        (np.eye(2), [[1.0, np.nan], [np.nan, 1]], 0),
        ([[1.0, 0.5], [0, 1]], np.eye(2), 0),
        (np.eye(2), np.eye(2), -1),
    ],
)
def test_matrices_without_a_coverage_number_are_refused(sampler, target, ridge):
    with pytest.raises(InvalidInputError, match="no coverage number"):
        coverage_number(sampler, target, ridge)


def test_no_torch_is_loaded():
    modules = "allotment.methods.objectives.optimal_design"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.strip() == b"False"
