"""The bootstrap and the equivalent budgets, against closed forms and by simulation."""

import math

import numpy as np
import pytest
from audit_cases import Scripted, simulated

from allotment.audit import Log, Settings, replay, summarise
from allotment.audit.equivalence import Interval, equivalence, resampled_sums
from allotment.prediction import DiscountedCounts
from allotment.pricing import get_estimator


def half_dead(n_prompts=60, n_visits=3):
    """Every other prompt always fails; the others have 4 of 8."""
    prompt = np.tile(np.arange(n_prompts), n_visits)
    visit = np.repeat(np.arange(1, n_visits + 1), n_prompts)
    successes = np.where(prompt % 2 == 0, 4, 0)
    return Log(tuple(range(n_prompts)), prompt, visit, successes, np.full(len(prompt), 8), step=visit)


@pytest.mark.parametrize("estimator", ["rloo", "dr_grpo"])
@pytest.mark.parametrize("budget", [6, 8, 10])
def test_an_oracle_on_half_dead_prompts_in_closed_form(estimator, budget):
    log, settings = half_dead(), Settings(budget, 3, 32, estimator)
    result = equivalence(replay(log, Scripted([0.5 if q % 2 == 0 else 1e-9 for q in range(60)]), settings))
    live, g = 2 * budget - 3, get_estimator(estimator).variance  # the dead have 3 each
    assert result.variance_ratio.value == pytest.approx(float(g(live) / g(budget)))
    assert result.uniform_rollouts.value == pytest.approx(live, rel=1e-5)
    assert result.rollouts.value == pytest.approx((budget + 3) / 2, rel=1e-5)
    # Every live prompt is like every other: resamples differ in how many live, and these share what the dead leave.
    living = np.random.default_rng(0).binomial(60, 0.5, 20_000) / 60
    shared = (budget - 3 * (1 - living)) / living
    ends = np.quantile(g(shared) / g(budget), [0.025, 0.975])
    assert (result.variance_ratio.low, result.variance_ratio.high) == pytest.approx(ends, rel=0.04)
    needed = 3 * (1 - living) + budget * living  # as many for a living prompt as uniform gives it
    ends = np.quantile(needed, [0.025, 0.975])
    assert (result.rollouts.low, result.rollouts.high) == pytest.approx(ends, rel=0.02)


def test_the_equivalent_budget_has_uniforms_variance():
    log, p = simulated(np.random.default_rng(0), n_prompts=1000)
    played = replay(log, Scripted(p), Settings(batch=500))
    result = equivalence(played)
    found = result.rollouts.value
    assert 3 < found < 8 < result.uniform_rollouts.value
    weights = log.successes * (8 - log.successes)
    there, uniform = (weights / (played.counts_at([found])[0] - 1)).sum(), weights.sum() / 7
    assert there == pytest.approx(uniform, rel=0.002)
    assert result.rollouts.low < found < result.rollouts.high
    assert (np.diff(result.worth) > 0).all()


def test_uniform_is_worth_itself():
    log, _ = simulated(np.random.default_rng(1), n_prompts=50, n_visits=2)
    result = equivalence(replay(log, Scripted([0.3] * 50), Settings(batch=50)))
    assert result.variance_ratio == Interval(1.0, 1.0, 1.0)
    assert result.rollouts.value == pytest.approx(8, rel=1e-6)


def test_an_allocation_that_cannot_reach_uniform_is_said_so():
    wrong = Scripted([1e-9 if q % 2 == 0 else 0.5 for q in range(60)])
    result = equivalence(replay(half_dead(), wrong, Settings(8, 3, 9)))
    assert result.variance_ratio.value == pytest.approx(7 / 6, rel=1e-9)  # the live have 7 of at most 9
    assert 8 < result.rollouts.value < 9
    result = equivalence(replay(half_dead(), wrong, Settings(8, 3, 32)))
    assert result.rollouts.value == math.inf


def test_a_log_without_signal_has_no_equivalent():
    log = Log(("a",), np.zeros(2, int), np.array([1, 2]), np.array([0, 8]), np.array([8, 8]))
    result = equivalence(replay(log, DiscountedCounts()))
    figures = (result.variance_ratio, result.uniform_rollouts, result.rollouts)
    assert all(math.isnan(x) for i in figures for x in (i.value, i.low, i.high))


def test_resampled_sums_have_the_moments_of_the_bootstrap():
    values = np.random.default_rng(2).gamma(1.0, size=(70, 2)) @ np.array([[1.0, 0.5], [0.0, 1.0]])
    sums = resampled_sums(values, resamples=20_000, seed=3)
    assert sums.mean(axis=0) == pytest.approx(values.sum(axis=0), rel=0.01)
    np.testing.assert_allclose(np.cov(sums.T), 70 * np.cov(values.T, ddof=0), rtol=0.06)


def test_resampling_in_parts_is_resampling_at_once(monkeypatch):
    values = np.random.default_rng(2).normal(size=(9, 2))
    whole = resampled_sums(values, resamples=100, seed=5)
    monkeypatch.setattr("allotment.audit.equivalence.AT_ONCE", 64)
    np.testing.assert_allclose(resampled_sums(values, resamples=100, seed=5), whole)


def test_intervals_cover_the_ratio_of_a_new_sample_of_prompts():
    rng, covered = np.random.default_rng(4), 0
    for seed in range(400):
        p = rng.beta(0.5, 0.5, 80)
        weight = p * (1 - p) * rng.gamma(5.0, 0.2, 80)
        gain = rng.uniform(0.4, 1.0, 80)  # independent of the weight, so the ratio of the sums tends to its mean, 0.7
        sums = resampled_sums(np.stack([weight * gain, weight], axis=1), resamples=500, seed=seed)
        interval = Interval.of(float((weight * gain).sum() / weight.sum()), sums[:, 0] / sums[:, 1])
        covered += interval.low < 0.7 < interval.high
    assert 0.91 <= covered / 400 <= 0.98


def test_the_summary_counts_the_log():
    log = half_dead(4, 2)
    summary = summarise(replay(log, Scripted([0.5, 1e-9, 0.5, 1e-9]), Settings()))
    assert (summary.waste.rollouts, summary.waste.all_failed, summary.waste.all_succeeded) == (64, 32, 0)
    assert summary.waste.without_signal == 0.5
    assert [(b.low, b.predicted, b.observed, b.rollouts) for b in summary.calibration] == [
        (0.0, pytest.approx(1e-9), 0.0, 32), (0.5, pytest.approx(0.5), 0.5, 32)
    ]  # fmt: skip
    assert [(c.name, c.prompts, c.logged, c.allotted) for c in summary.classes] == [
        ("none", 2, 8.0, 3.0), ("to 1/2", 2, 8.0, 13.0)
    ]  # fmt: skip
    np.testing.assert_array_equal(summary.shares.allotted, [13, 3, 13, 3])
    assert summary.lengths is None


def test_bins_add_up_to_the_calibration_error():
    log, _ = simulated(np.random.default_rng(6), n_prompts=50, n_visits=3)
    result = replay(log, DiscountedCounts())
    bins = summarise(result).calibration
    error = sum(b.rollouts * abs(b.predicted - b.observed) for b in bins) / sum(b.rollouts for b in bins)
    assert error == pytest.approx(result.figures().calibration_error)


def test_tokens_follow_the_rollouts_to_their_prompts():
    log = half_dead()
    lengths = np.where(log.prompt % 2 == 0, 8 * 10.0, 8 * 30.0)  # 10 tokens a rollout of the live, 30 of the dead
    played = replay(
        Log(log.ids, log.prompt, log.visit, log.successes, log.trials, log.step, lengths=lengths),
        Scripted([0.5 if q % 2 == 0 else 1e-9 for q in range(60)]),
    )
    cost = summarise(played).lengths
    assert (cost.unit, cost.logged, cost.uniform) == ("tokens", 180 * 160.0, 180 * 160.0)
    assert cost.allotted == pytest.approx(90 * (13 * 10 + 3 * 30))
    assert cost.equivalent == pytest.approx(90 * (8 * 10 + 3 * 30), rel=1e-5)
