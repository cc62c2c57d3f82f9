"""Numbers over the course of a run, by hand and by other means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_rows import group

from allotment.report.data import read_study
from allotment.report.predictions import (
    Window,
    gini,
    lorenz,
    mean_counts,
    prediction_history,
    variance_ratios,
    visits,
    windows,
)


def arm_of(write_run, rollouts, **config):
    (arm,) = read_study([write_run("a", rollouts=rollouts, **config)]).arms
    return arm


def test_rounds_of_a_step_are_one_visit_with_the_first_prediction(write_run):
    made = visits(arm_of(write_run, [group(4, 1, 0.2, 1, "a"), group(3, 3, 0.9, 1, "a"), group(5, 0, 0.4, 2, "a")]))
    assert (made.n.tolist(), made.successes.tolist(), made.predicted.tolist()) == ([7, 5], [4, 0], [0.2, 0.4])


@given(st.integers(1, 500), st.integers(1, 30))
def test_windows_cover_every_step_once(last, most):
    found = windows(np.array([last]), most)
    assert [step for window in found for step in range(window.first, window.last + 1)] == list(range(1, last + 1))
    assert len(found) == min(most, last)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_lorenz_and_gini(counts):
    n_V = np.array(counts)
    x, y = lorenz(n_V, points=len(n_V))
    assert gini(n_V) == pytest.approx(1 - 2 * np.trapezoid(y, x), abs=1e-12)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, pytest.approx(1))
    assert np.all(y <= x + 1e-12)
    differences = np.abs(n_V[:, None] - n_V).mean()
    assert gini(n_V) == pytest.approx(differences / (2 * n_V.mean()), abs=1e-12)


def test_mean_counts_by_hand(write_run):
    rows = [group(4, 1, 0.24, 1, "a"), group(8, 1, 0.21, 1, "b"), group(3, 1, 1.0, 2, "a"), group(9, 1, None, 2, "b")]
    counts_BW = mean_counts(visits(arm_of(write_run, rows)), [Window(1, 1), Window(2, 2)])
    expected = np.full((10, 2), np.nan)
    expected[2, 0], expected[9, 1] = 6, 3
    np.testing.assert_array_equal(counts_BW, expected)


def test_prediction_history_by_hand(write_run):
    rows = [group(4, 1, 0.5, 1, "a"), group(2, 2, 0.5, 1, "b"), group(2, 2, None, 2, "b")]
    ((_, prompts, error, chance, bias),) = prediction_history(
        visits(arm_of(write_run, rows)), [Window(1, 1), Window(2, 2)]
    )
    assert (prompts, error, chance) == (2, pytest.approx(0.375), pytest.approx((0.1875 + 0.25) / 2))
    assert bias == pytest.approx((3 - 3) / 6)


def test_variance_ratios_by_hand(write_run):
    rows = [group(2, 1, 0.5, 1, "a"), group(6, 3, 0.5, 1, "b"), group(4, 0, 0.1, 2, "a"), group(4, 4, 0.9, 2, "b")]
    metrics = [{"step": 1, "objective": 3.0, "uniform_objective": 4.0}, {"step": 2, "predicted_variance_ratio": 0.5}]
    arm = arm_of(write_run, rows, metrics=metrics, estimator="rloo")
    first, second = variance_ratios(arm, visits(arm), [Window(1, 1), Window(2, 2)])
    # rloo: 1 / (n - 1); unbiased variances 1 * 1 / 2 and 3 * 3 / 30; equal counts are 4 and 4
    assert first.realised == pytest.approx((0.5 / 1 + 0.3 / 5) / (0.8 / 3))
    assert (first.predicted, second.predicted, second.realised) == (0.75, 0.5, None)


def test_the_error_of_a_ratio_is_that_of_its_linearisation(write_run):
    rng = np.random.default_rng(0)
    rows = [group(n, int(rng.binomial(n, 0.4)), 0.4, s, str(n)) for s in range(1, 401) for n in (4, 6, 14)]
    arm = arm_of(write_run, rows, metrics=[])
    made = visits(arm)
    (whole,) = variance_ratios(arm, made, [Window(1, 400)])
    parts = [r.realised for r in variance_ratios(arm, made, windows(made.step, most=20))]
    assert whole.standard_error == pytest.approx(np.std(parts, ddof=1) / np.sqrt(20), rel=0.5)
