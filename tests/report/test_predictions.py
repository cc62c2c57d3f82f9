"""Calibration and counts, worked out by hand and against scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_rows import group
from scipy import stats

from allotment.report.data import read_study
from allotment.report.predictions import (
    binomial_deviation,
    bins,
    calibration_error,
    ideal_counts,
    predictions,
    wilson_interval,
)


def made(write_run, rollouts):
    (arm,) = read_study([write_run("a", rollouts=rollouts)]).arms
    return predictions(arm)


def test_bins_by_hand(write_run):
    found = bins(made(write_run, [group(4, 1, 0.2), group(12, 5, 0.24), group(4, 4, 1.0), group(4, 0, 0.05)]))
    assert [(b.lower, b.prompts, b.rollouts) for b in found] == [(0.0, 1, 4), (0.2, 2, 16), (0.9, 1, 4)]
    middle = found[1]
    assert middle.predicted == pytest.approx((4 * 0.2 + 12 * 0.24) / 16)  # by rollouts
    assert middle.observed == pytest.approx(6 / 16)
    assert middle.mean_prediction == pytest.approx(0.22)  # by prompts
    assert middle.mean_count == 8
    assert calibration_error(found) == pytest.approx((4 * 0.05 + 16 * (0.375 - 0.23) + 0) / 24)


def test_mean_absolute_error_by_hand(write_run):
    found = made(write_run, [group(4, 1, 0.5), group(2, 2, 0.5)])
    assert found.mean_absolute_error == pytest.approx((0.25 + 0.5) / 2)
    assert found.chance_error == pytest.approx((0.1875 + 0.25) / 2)  # E|S-2|/4 = .75/4, E|S-1|/2 = .5/2


def test_null_predictions_are_left_out_and_counted(write_run):
    found = made(write_run, [group(4, 1, None), group(4, 1, 0.3), group(0, 0, 0.3)])
    assert (len(found), found.without) == (1, 1)


def test_no_predictions_at_all(write_run):
    found = made(write_run, [group(4, 1, None)])
    assert (len(found), found.without, found.equal_counts) == (0, 1, False)


def test_the_first_visit_of_a_prompt_is_marked_run_by_run(write_run):
    visits = [group(4, 1, 0.2, 1, "a"), group(4, 1, 0.2, 1, "a"), group(4, 1, 0.3, 2, "b"), group(4, 1, 0.4, 2, "a")]
    (arm,) = read_study([write_run("s0", rollouts=visits), write_run("s1", seed=1, rollouts=visits[3:])]).arms
    found = predictions(arm)
    assert found.first.tolist() == [True, True, True, False, True]  # two rounds of one step are one visit
    assert found.only(~found.first).names == ["a"]


def test_equal_counts_are_noticed(write_run):
    assert made(write_run, [group(4, 1, 0.2), group(4, 1, 0.3)]).equal_counts


def test_sample_is_spread_evenly_and_never_repeats(write_run):
    found = made(write_run, [group(4, 1, 0.2)] * 101)
    np.testing.assert_array_equal(found.sample(5), [0, 25, 50, 75, 100])
    np.testing.assert_array_equal(found.sample(1000), np.arange(101))


@settings(deadline=None)
@given(st.integers(1, 40), st.floats(0, 1, allow_subnormal=False).filter(lambda p: p == 0 or p > 1e-9))
def test_binomial_deviation_is_the_expectation(n, p):
    outcomes = np.arange(n + 1)
    expected = (stats.binom.pmf(outcomes, n, p) * np.abs(outcomes / n - p)).sum()
    assert binomial_deviation(np.array([p]), np.array([n]))[0] == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(st.integers(1, 500), st.floats(0, 1))
def test_wilson_interval_is_scipys(trials, share):
    successes = round(share * trials)
    reference = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((reference.low, reference.high), abs=1e-9)


def test_ideal_counts_spend_what_was_spent_and_are_the_best_split(write_run):
    found = made(write_run, [group(4, 1, 0.1), group(9, 1, 0.5), group(6, 1, 0.8)])
    ideal = ideal_counts(found, found.predicted)
    assert ideal.sum() == pytest.approx(19)
    marginal = found.predicted * (1 - found.predicted) / (ideal - 1) ** 2  # equal at the optimum of sum p(1-p)/(n-1)
    np.testing.assert_allclose(marginal, marginal[0])
