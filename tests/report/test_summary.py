"""Means, errors and paired differences, worked out by hand."""

import math

import numpy as np
import pytest
from report_rows import evaluation
from scipy import stats

from allotment.report.data import read_study
from allotment.report.summary import Estimate, critical_value, curve, summarise


def rows(paths):
    return {row.arm.label: row for row in summarise(read_study(paths))}


def study_of(write_run, uniform, vip, **settings):
    """Runs whose last held-out success is given, seed by seed."""
    for name, values in (("uniform", uniform), ("vip", vip)):
        for seed, value in enumerate(values):
            if value is not None:
                yield write_run(f"{name}-{seed}", planner=name, seed=seed, held_out=(0.1, 0.2, value), **settings)


def test_mean_and_standard_error():
    estimate = Estimate.of([0.2, 0.3, 0.7])
    assert estimate.mean == pytest.approx(0.4)
    assert estimate.standard_error == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2 / 3))  # deviations -.2 -.1 .3
    assert estimate.n == 3


def test_a_single_run_has_no_standard_error():
    assert Estimate.of([0.2]) == Estimate(0.2, None, 1)


def test_paired_difference_uses_the_pairs_not_the_spread_of_each(write_run):
    row = rows(study_of(write_run, uniform=[0.2, 0.5, 0.8], vip=[0.3, 0.7, 1.0]))["vip"]
    found = row.difference["held_out_success"]  # differences .1 .2 .2: mean 1/6, deviations -1/15 1/30 1/30
    assert found.mean == pytest.approx(1 / 6)
    assert found.standard_error == pytest.approx(math.sqrt((1 / 225 + 2 / 900) / 2 / 3))  # = 1/30
    assert found.n == 3
    assert row.success["held_out_success"].standard_error == pytest.approx(math.sqrt(0.37 / 3 / 3), rel=0.02)


def test_only_seeds_that_both_have_are_paired(write_run):
    row = rows(study_of(write_run, uniform=[0.2, None, 0.4], vip=[None, 0.9, 0.5]))["vip"]
    assert row.difference["held_out_success"] == Estimate(pytest.approx(0.1), None, 1)
    assert row.success["held_out_success"].n == 2


@pytest.mark.parametrize("other", [{"regime": "short"}, {"rollouts_per_prompt": 16}, {"estimator": "dr_grpo"}])
def test_no_pair_across_different_settings(write_run, other):
    found = rows([write_run("u", planner="uniform", **other), write_run("v", planner="vip")])
    (row,) = [row for label, row in found.items() if label.startswith("vip")]
    assert row.difference == {"pool_success": None, "held_out_success": None}


def rate_study(write_run, uniform_rates, **more):
    """Two seeds of vip at 1e-3, gaining .1 and .3 on uniform at the first of its rates, .2 more on each further one."""
    for seed, gain in enumerate((0.1, 0.3)):
        yield write_run(f"v{seed}", seed=seed, learning_rate=1e-3, held_out=(0.1, 0.2, 0.5 + gain), **more)
        for place, rate in enumerate(uniform_rates):
            uniform = {"planner": "uniform", "learning_rate": rate, "held_out": (0.1, 0.2, 0.5 - 0.2 * place)}
            yield write_run(f"u{seed}-{place}", seed=seed, **uniform)


def vip_row(paths):
    (row,) = [row for label, row in rows(paths).items() if label.startswith("vip")]
    return row


def test_arms_at_learning_rates_of_their_own_are_paired_and_the_rates_are_said(write_run):
    row = vip_row(rate_study(write_run, [3e-4]))
    assert row.reference.rates == (1e-3, 3e-4)
    assert row.difference["held_out_success"] == Estimate(pytest.approx(0.2), pytest.approx(0.1), 2)


def test_uniform_at_the_same_rate_is_taken_where_there_is_one(write_run):
    row = vip_row(rate_study(write_run, [3e-4, 1e-3]))
    assert row.reference.rates is None
    assert row.difference["held_out_success"] == Estimate(pytest.approx(0.4), pytest.approx(0.1), 2)


def test_one_rate_is_not_chosen_among_several_by_what_came_out(write_run):
    row = vip_row(rate_study(write_run, [3e-4, 3e-3]))
    assert row.difference["held_out_success"] is None
    assert "several learning rates (0.0003, 0.003), none of them its 0.001" in row.reference.missing


def test_all_pairs_of_an_arm_are_with_uniform_at_one_rate(write_run):
    """A seed that uniform has at another rate only is no pair beside those at the arm's own."""
    own = {"planner": "uniform", "seed": 0, "learning_rate": 1e-3, "held_out": (0.1, 0.2, 0.55)}
    row = vip_row([*rate_study(write_run, [3e-4]), write_run("own", **own)])
    assert row.reference.rates is None
    assert row.difference["held_out_success"] == Estimate(pytest.approx(0.05), None, 1)


@pytest.mark.parametrize("other", [{"regime": "short"}, {"rollouts_per_prompt": 16}])
def test_a_rate_of_its_own_excuses_no_other_setting(write_run, other):
    assert vip_row(rate_study(write_run, [3e-4], **other)).difference["held_out_success"] is None


@pytest.mark.parametrize("method", [{"select": "pods"}, {"planner_settings": {"kappa": 7}}, {"candidate_prompts": 32}])
def test_a_method_with_its_settings_is_paired_with_plain_uniform(write_run, method):
    plain = write_run("u", planner="uniform", held_out=(0.1, 0.2, 0.3))
    selected = write_run("w", planner="uniform", select="random", held_out=(0.1, 0.2, 0.9))
    found = rows([selected, plain, write_run("v", planner="vip", held_out=(0.1, 0.2, 0.5), **method)])
    (row,) = [row for label, row in found.items() if label.startswith("vip")]
    assert row.difference["held_out_success"].mean == pytest.approx(0.2)


def test_runs_of_different_length_are_paired_at_the_same_step(write_run):
    uniform = write_run("u", planner="uniform", held_out=(0.1, 0.2, 0.3))
    vip = write_run("v", planner="vip", steps=10, held_out=(0.1, 0.25))
    row = rows([uniform, vip])["vip, steps 10"]
    assert row.step == 10
    assert row.difference["held_out_success"].mean == pytest.approx(0.05)


def test_uniform_is_not_compared_with_itself(write_run):
    assert rows([write_run("u", planner="uniform")])["uniform"].difference["pool_success"] is None


@pytest.mark.parametrize(
    ("estimate", "words"),
    [
        (Estimate(0.5, None, 1), "nothing can be concluded"),
        (Estimate(0.0, 0.0, 3), "the same as uniform"),
        (Estimate(0.042, 0.01, 3), "cannot be told apart"),  # critical value 4.303
        (Estimate(0.044, 0.01, 3), "higher than uniform"),
        (Estimate(-0.044, 0.01, 3), "lower than uniform"),
        (Estimate(0.025, 0.01, 5), "cannot be told apart"),  # 2.776
        (Estimate(0.025, 0.01, 12), "higher than uniform"),  # 2.201
    ],
)
def test_verdicts(estimate, words):
    assert words in estimate.verdict


def test_critical_value_is_students():
    assert critical_value(3) == pytest.approx(stats.t.ppf(0.975, 2))


def test_costs_are_those_up_to_the_step_compared(write_run):
    metrics = [
        evaluation(0, 0.1, 0.1),
        {
            "step": 1,
            "rollouts_total": 128,
            "tokens_total": 9,
            "zero_variance_groups": 0.2,
            "min_count": 4,
            "max_count": 9,
        },
        evaluation(2, 0.2, 0.2, tokens=1000, zero_variance_groups=0.4, min_count=5, max_count=11),
        {
            "step": 3,
            "rollouts_total": 384,
            "tokens_total": 9,
            "zero_variance_groups": 1.0,
            "min_count": 1,
            "max_count": 99,
        },
    ]
    (row,) = rows([write_run("a", metrics=metrics, seconds=[0.5, 0.1, 0.2])]).values()
    assert (row.step, row.rollouts, row.tokens, row.counts) == (2, 256, 1000, (4, 11))
    assert row.zero_variance == pytest.approx(0.3)
    assert row.seconds == pytest.approx(0.3)  # median of .5 and .1; step 3 is not part of it


def test_before_the_first_step_there_is_success_but_no_cost(write_run):
    (row,) = rows([write_run("a", held_out=(0.1,))]).values()
    assert (row.step, row.zero_variance, row.counts, row.seconds) == (0, None, None, None)
    assert row.success["held_out_success"].mean == pytest.approx(0.1)


def test_curve_is_the_mean_at_common_steps(write_run):
    a = write_run("a", seed=0, metrics=[evaluation(s, 0.5, 0.1 * (s + 1), tokens=100 * s) for s in (0, 1, 2)], steps=2)
    b = write_run("b", seed=1, metrics=[evaluation(s, 0.5, 0.2 * (s + 1), tokens=200 * s) for s in (0, 2)], steps=2)
    (arm,) = read_study([a, b]).arms
    found = curve(arm, "tokens_total", "held_out_success")
    assert found.step == [0, 2]
    np.testing.assert_allclose(found.x, [0, 300])
    np.testing.assert_allclose(found.mean, [0.15, 0.45])
    np.testing.assert_allclose(found.standard_error, [0.05, 0.15])


def test_curve_of_no_evaluation_is_empty(write_run):
    (arm,) = read_study([write_run("a", metrics=[])]).arms
    assert curve(arm, "tokens_total", "pool_success").step == []
