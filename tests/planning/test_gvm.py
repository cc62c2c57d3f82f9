"""GVM-RAFT (arXiv 2505.02391): counts in proportion to G / sqrt(p + alpha / p^(beta - 1)), G from score sketches."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import Known, assert_same, rewards_for, snapshot

from allotment.errors import InvalidInputError, StateError
from allotment.methods.planners.gvm import GVM
from allotment.prediction.posteriors import ScoreMoments


class KnownMoments:
    """A belief about scores that is told the truth."""

    is_informed = True

    def __init__(self, within_Q2, gap_Q):
        self.moments = ScoreMoments(np.asarray(within_Q2), np.asarray(gap_Q))

    def predict(self, ids):
        return self.moments


def knowing(p, **changes):
    p = np.asarray(p, dtype=float)
    logits = np.log(np.maximum(p, 1e-320)) - np.log(np.maximum(1 - p, 1e-320))
    return GVM(**{"budget": 8 * len(p), "predictor": Known(dict(enumerate(logits))), **changes})


def ratio(p, g=1.0, alpha=1e-3, beta=2.0):
    """The rule as printed."""
    return g / np.sqrt(p + alpha / p ** (beta - 1))


def test_counts_are_proportional():
    p = np.array([0.02, 0.05, 0.2, 0.5, 0.8, 1.0])
    shares = ratio(p) / ratio(p).sum()
    counts = knowing(p, budget=6000, bounds=(2, 6000)).ask(range(6)).counts
    assert np.abs(counts - 6000 * shares).max() < 1
    norms = np.array([3.0, 0.1, 1.0, 2.0, 5.0, 0.5])
    moments = KnownMoments(np.stack([np.ones(6), norms**2], axis=1), np.zeros(6))
    counts = knowing(p, budget=6000, bounds=(2, 6000), moments=moments).ask(range(6)).counts
    assert np.abs(counts - 6000 * ratio(p, norms) / ratio(p, norms).sum()).max() < 1


@pytest.mark.parametrize(("alpha", "beta"), [(1e-3, 2.0), (1e-2, 2.0), (1e-3, 3.0), (0.1, 1.0)])
def test_alpha_and_beta_say_how_hard_a_prompt_may_be(alpha, beta):
    p = np.arange(1, 100) / 100
    counts = knowing(p, budget=9900, bounds=(2, 9900), alpha=alpha, beta=beta).ask(range(99)).counts
    peak = (alpha * (beta - 1)) ** (
        1 / beta
    )  # where p + alpha / p^(beta - 1) is least; at beta = 1 it falls throughout
    assert p[counts.argmax()] == pytest.approx(max(peak, 0.01), abs=0.011)


@given(p=st.lists(st.floats(0.005, 1.0), min_size=1, max_size=4), budget=st.integers(0, 20), upper=st.integers(2, 12))
@settings(deadline=None, max_examples=50)
def test_no_integers_within_the_bounds_have_less_variance(p, budget, upper):
    budget = min(max(budget, 2 * len(p)), upper * len(p))
    counts = knowing(p, budget=budget, bounds=(2, upper)).ask(range(len(p))).counts
    splits = [n for n in itertools.product(range(2, upper + 1), repeat=len(p)) if sum(n) == budget]
    least = (ratio(np.array(p)) ** 2 / np.array(splits)).sum(axis=1).min()
    assert (ratio(np.array(p)) ** 2 / counts).sum() == pytest.approx(least, rel=1e-12)


def test_prompts_that_never_succeed_get_what_no_other_can_take():
    planner = knowing([0.0, 0.5, 0.5], bounds=(2, 12))
    assert planner.ask(range(3), budget=20).counts.tolist() == [2, 9, 9]
    assert planner.ask(range(3), budget=30).counts.tolist() == [6, 12, 12]


def test_the_norm_is_that_of_successes():
    """A softmax over five answers, two of them right, its score along one direction: exact moments, exact norm."""
    random = np.random.default_rng(0)
    chances = random.dirichlet(np.ones(5), size=3)
    directions = random.normal(size=(3, 5))
    scores = directions - (chances * directions).sum(axis=1, keepdims=True)  # of each answer
    right = np.arange(5) < 2
    p = chances[:, right].sum(axis=1)

    def moment(power, of):
        return (chances[:, of] * scores[:, of] ** power).sum(axis=1) / chances[:, of].sum(axis=1)

    within = [moment(2, of) - moment(1, of) ** 2 for of in (~right, right)]
    gap = (moment(1, right) - moment(1, ~right)) ** 2
    planner = knowing(p, budget=3000, bounds=(2, 3000), moments=KnownMoments(np.stack(within, axis=1), gap))
    shares = ratio(p, np.sqrt(moment(2, right)))
    assert np.abs(planner.ask(range(3)).counts - 3000 * shares / shares.sum()).max() < 1


def steps(planner, count, loud, seed=0):
    """Steps at p = 1/2 in which prompt q's score has standard deviation ``loud[q, r]`` at reward r; the next plan."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        plan = planner.ask(range(len(loud)))
        rewards, groups = rewards_for(plan, random, 0.5)
        spread_N = np.asarray(loud)[groups, rewards.astype(int)]
        planner.tell(plan, rewards, groups, scores=spread_N[:, None] * random.normal(size=(plan.budget, 16)))
    return planner.ask(range(len(loud)))


def test_loud_successes_are_learnt_and_loud_failures_do_not_count():
    loud = [[1.0, 1.0]] * 4 + [[1.0, 4.0]] * 2 + [[4.0, 1.0]] * 2
    planner = GVM(budget=96, bounds=(2, 64))
    assert set(planner.ask(range(8)).counts) == {12}  # nothing told: 1 for all
    counts = steps(planner, 30, loud).counts
    assert counts[4:6].min() > 2.5 * counts[:4].max()
    assert counts[6:].max() < 1.7 * counts[:4].max()


def test_without_scores_the_norm_stays_one():
    planner, random = GVM(budget=48), np.random.default_rng(0)
    for _ in range(3):
        plan = planner.ask(range(4))
        planner.tell(plan, *rewards_for(plan, random))
    p = planner.ask(range(4)).posterior.success_probability()
    assert not planner.moments.is_informed
    assert planner.ask(range(4)).counts.tolist() == knowing(p, budget=48).ask(range(4)).counts.tolist()


def test_scores_too_large_change_nothing_and_the_state_goes_on(tmp_path):
    planner = GVM(budget=48)
    plan = steps(planner, 3, [[1.0, 2.0]] * 4)
    rewards, groups = rewards_for(plan, np.random.default_rng(0))
    before = snapshot(planner)
    with pytest.raises(InvalidInputError, match="too large"):
        planner.tell(plan, rewards, groups, scores=np.linspace(-1e200, 1e200, plan.budget))
    assert_same(snapshot(planner), before)
    planner.save(tmp_path / "planner")
    loaded = GVM(budget=48).load(tmp_path / "planner")
    for one in (planner, loaded):
        one.tell(one.open_plans[0], rewards, groups, scores=np.linspace(-1, 1, plan.budget))
    assert_same(planner.state_dict(), loaded.state_dict())
    for other in ({"alpha": 0.1}, {"beta": 3.0}):
        with pytest.raises(StateError, match=next(iter(other))):
            GVM(budget=48, **other).load(tmp_path / "planner")


def test_what_the_predictor_refuses_teaches_the_moments_nothing():
    planner = knowing([0.5, 0.5])
    plan = planner.ask(range(2))
    del planner.predictor.mean[1]  # a restored planner whose predictor lacks a prompt
    before = snapshot(planner)
    with pytest.raises(KeyError):
        planner.tell(plan, *rewards_for(plan, np.random.default_rng(0)), scores=np.arange(plan.budget))
    assert_same(snapshot(planner), before)


@pytest.mark.parametrize("setting", [{"alpha": 0.0}, {"alpha": float("nan")}, {"beta": 0.5}, {"beta": float("inf")}])
def test_settings_without_meaning_are_refused(setting):
    with pytest.raises(InvalidInputError, match=next(iter(setting))):
        GVM(budget=48, **setting)
