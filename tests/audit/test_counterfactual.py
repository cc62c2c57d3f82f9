"""The same rollouts spent otherwise: splits against the exact one, figures against closed forms and drawn rollouts."""

import dataclasses
import math

import numpy as np
import pytest
from audit_cases import Believed, Scripted, simulated
from hypothesis import given
from hypothesis import strategies as st

from allotment.allocation import allocate_exact
from allotment.audit import Log, Settings, replay, summarise
from allotment.audit.counterfactual import counterfactuals
from allotment.audit.counting import nested_counts
from allotment.audit.equivalence import MOST_UNITS, equivalence, units
from allotment.audit.shape import Tokens, noise, shapes
from allotment.errors import InfeasibleBudgetError
from allotment.planning.gradient_size import USUAL_KAPPA
from allotment.prediction import DiscountedCounts, GaussianProcess
from allotment.pricing import RLOO, ShrinkagePrice, WeightedPrice
from audit_coverage import coverage


@given(st.data(), st.integers(1, 7), st.integers(2, 4), st.integers(0, 6), st.booleans())
def test_nested_counts_are_the_exact_split_of_each_budget(data, prompts, lower, room, believes):
    few = st.sampled_from([0.0, 0.1, 0.1, 0.25])  # equal gains are common
    a, v = (np.array(data.draw(st.lists(few, min_size=prompts, max_size=prompts))) for _ in range(2))
    price = ShrinkagePrice(a, v) if believes else WeightedPrice(a, RLOO)
    upper, keys = lower + room, np.array(data.draw(st.permutations(range(prompts))))
    budgets = data.draw(st.lists(st.integers(prompts * lower, prompts * upper), min_size=1, max_size=5))
    found = nested_counts(price, budgets, lower, upper, keys)
    for counts, budget in zip(found, budgets, strict=True):
        exact = allocate_exact(price, budget, lower=lower, upper=upper, tie_keys=keys)
        np.testing.assert_array_equal(counts, exact.counts)
    with pytest.raises(InfeasibleBudgetError):
        nested_counts(price, [prompts * upper + 1], lower, upper, keys)


def ways(log, predictor, settings=None, **more):
    played = replay(log, predictor, settings or Settings(batch=len(log.ids)), **more)
    found = counterfactuals(played, equivalence(played)).found
    return {(way.what, way.rollouts_per_prompt): way for way in found}


def half_dead(prompts=64, visits=3):
    """Every other prompt always fails; the others have 4 of 8, and completions a third as long."""
    prompt, visit = np.tile(np.arange(prompts), visits), np.repeat(np.arange(1, visits + 1), prompts)
    live = prompt % 2 == 0
    lengths = np.where(live, 8 * 10.0, 8 * 30.0)
    trials = np.full(len(prompt), 8)
    return Log(tuple(range(prompts)), prompt, visit, np.where(live, 4, 0), trials, step=visit, lengths=lengths)


def test_an_oracle_on_half_dead_prompts_in_closed_form():
    sure = Scripted([0.5 if q % 2 == 0 else 1e-12 for q in range(64)])
    found = ways(half_dead(), sure)
    split = found["split", 8]
    assert list(split.by_range) == ["1", "2", "3-10", "all"]
    for cell in split.by_range.values():  # the dead have 3 each, the live 2 b - 3
        assert cell.variance.value == pytest.approx(7 / 12)
        assert cell.rollouts.value == pytest.approx(5.5 / 8, rel=1e-5)
        assert cell.rollouts.low < 5.4 / 8 < 5.6 / 8 < cell.rollouts.high  # with more of the dead fewer would do
        assert cell.tokens.value == pytest.approx((8 * 10 + 3 * 30) / 320, rel=1e-5)
    assert split.worth.value == pytest.approx(13.0)
    assert found["split", 4].whole.variance.value == pytest.approx(3 / 4)  # 5 and 3
    # Certain beliefs as baseline leave a / n, and the dead have one rollout: 2 b - 1 for the live. The estimate of
    # (p - 1/2)^2 from 4 of 8 is below 0 by as much as that of p (1 - p) is above 1/4.
    a = 4 * 4 / 56
    error = 4 * 3 / 56 - 1 / 4
    for n in (8, 4, 2):
        variance = (a + error) / (2 * n - 1) / (a / (n - 1))
        assert found["split, belief", n].whole.variance.value == pytest.approx(variance, rel=1e-5)


def test_other_shapes_are_those_of_the_shape_command():
    log, _ = simulated(np.random.default_rng(0), n_prompts=80, n_visits=2)
    settings = Settings(batch=20)
    found = ways(log, Believed(0.5, 0.5), settings)
    whole = noise(replay(log, Believed(0.5, 0.5), settings), USUAL_KAPPA)
    _, shaped = shapes(whole, (20, 8), 160, available=80, tokens=Tokens())
    by_size = {shape.rollouts_per_prompt: shape for shape in shaped}
    for what, n, expected in (
        ("more prompts", 4, by_size[4].rloo_interval),
        ("more prompts, belief", 4, by_size[4].shrinkage_interval),
        ("more prompts, belief", 2, by_size[2].shrinkage_interval),
    ):
        assert dataclasses.astuple(found[what, n].whole.variance) == pytest.approx(dataclasses.astuple(expected))
        assert found[what, n].prompts_read == pytest.approx(8 / n * expected.value)
    fewer = ways(log, Believed(0.5, 0.5), Settings(batch=40))
    assert ("more prompts, belief", 2) not in fewer  # it would take 160 prompts
    assert ("more prompts, belief", 4) in fewer


def test_the_ratio_of_the_replays_own_split_is_the_audits():
    log, p = simulated(np.random.default_rng(1), n_prompts=60, n_visits=4)
    for settings, what in ((Settings(), "split"), (Settings(8, 1, 32, "shrinkage"), "split, belief")):
        summary = summarise(replay(log, Scripted(p), settings))
        (way,) = [w for w in summary.counterfactuals.found if (w.what, w.rollouts_per_prompt) == (what, 8)]
        for mine, other in (
            (way.whole.variance, summary.equivalence.variance_ratio),
            (way.whole.rollouts, summary.equivalence.rollouts),
            (way.worth, summary.equivalence.uniform_rollouts),
        ):
            scale = 8 if mine is way.whole.rollouts else 1
            assert scale * np.array(dataclasses.astuple(mine)) == pytest.approx(dataclasses.astuple(other), rel=1e-4)


def test_a_price_at_the_mean_still_has_its_whole_belief_for_a_baseline():
    log, _ = simulated(np.random.default_rng(2), n_prompts=40, n_visits=3)
    x = np.random.default_rng(3).normal(size=(40, 4))
    plain, plug_in = (
        replay(log, GaussianProcess(x, ids=log.ids), Settings(batch=40), plug_in=plug_in) for plug_in in (False, True)
    )
    np.testing.assert_array_equal(plain.weights, plug_in.variance)
    belief = Settings(8, 1, 32, "shrinkage", batch=40)
    np.testing.assert_array_equal(plain.under(belief).counts, plug_in.under(belief).counts)


def test_nothing_is_said_where_nothing_is_known():
    log = Log(("a",), np.zeros(2, int), np.array([1, 2]), np.array([0, 8]), np.array([8, 8]))
    assert ways(log, DiscountedCounts()) == {}


def test_without_lengths_there_are_no_tokens():
    log, p = simulated(np.random.default_rng(4), n_prompts=30, n_visits=2)
    assert all(cell.tokens is None for way in ways(log, Scripted(p)).values() for cell in way.by_range.values())


def test_what_cannot_be_reached_is_infinite():
    wrong = Scripted([1e-9 if q % 2 == 0 else 0.5 for q in range(64)])
    way = ways(half_dead(), wrong)["split", 8]
    assert (way.whole.rollouts.value, way.whole.tokens.value) == (math.inf, math.inf)


def test_many_prompts_are_drawn_in_groups_of_equal_size():
    many = 3 * MOST_UNITS + 5
    log = Log(tuple(range(many)), np.arange(many), np.ones(many, int), np.ones(many, int), np.full(many, 2))
    unit_V, number = units(log)
    assert number == MOST_UNITS
    assert set(np.bincount(unit_V).tolist()) == {3, 4}


def test_intervals_cover_what_rollouts_of_the_known_p_leave():
    """The short form of ``benchmarks/audit_coverage.py``; the binomial error of each share is at most .03."""
    found = coverage(8, logs=80, seed=1, prompts=60, visits=3, make=DiscountedCounts)
    assert {c.way.rollouts_per_prompt for c in found} == {8, 4, 2}
    shares = [c.share for c in found if c.span in ("2", "all") and c.figure == "variance"]
    assert 0.88 <= np.mean(shares) <= 0.985
    assert min(shares) > 0.8
