"""The judge: figures by hand, by identity and by simulation."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
from audit_cases import Scripted, simulated
from hypothesis import given
from hypothesis import strategies as st

from allotment.audit import Log, Settings, replay
from allotment.audit.figures import interval_coverage
from allotment.audit.predictors import Prompts, predictor_for
from allotment.errors import AllotmentError
from allotment.prediction import DiscountedCounts, GaussianProcess, HierarchicalPredictor, LastValue
from allotment.prediction.posteriors import BetaPosterior
from allotment.registry import PREDICTORS
from allotment.types import Posterior


def log_of(ids, rows):
    """rows: (prompt, visit, successes, trials)."""
    return Log(tuple(ids), *np.array(rows).T)


TWO = log_of("ab", [(0, 1, 2, 4), (1, 1, 2, 4)])


def test_all_figures_by_hand():
    # Weights .25 and .09; gains a/(n(n-1)) from n = 2: .125 .0417 .0208 | .045 .015, so four rollouts give n = 5, 3.
    # a = 2*2/(4*3) = 1/3 for both: (1/3)(1/4 + 1/2) against (1/3)(1/3 + 1/3) is 9/8.
    result = replay(TWO, Scripted({"a": 0.5, "b": 0.1}), Settings(4, 2, 6, batch=2))
    np.testing.assert_array_equal(result.counts, [5, 3])
    figures = result.figures()
    assert figures.variance_ratio == pytest.approx(9 / 8, rel=1e-12)
    assert figures.mae == pytest.approx((0 + 0.4) / 2, rel=1e-12)
    loss_b = -(2 * math.log(0.1) + 2 * math.log(0.9)) / 4
    assert figures.log_loss == pytest.approx((math.log(2) + loss_b) / 2, rel=1e-12)
    assert figures.calibration_error == pytest.approx(abs(4 * 0.1 - 2) / 8, rel=1e-9)
    # 2 of 4 at p = .5 lies from F(1) = .3125 to F(2) = .6875: inside. At p = .1 from .9477 to .9963: cut at .95.
    assert figures.coverage90 == pytest.approx((1 + (0.95 - 0.9477) / (0.9963 - 0.9477)) / 2, rel=1e-9)
    assert figures.visits == 2
    assert figures.success == 0.5  # 2 of 4 in each


def test_dr_grpo_is_scored_by_its_own_curve():
    result = replay(TWO, Scripted({"a": 0.5, "b": 0.1}), Settings(4, 3, 5, estimator="dr_grpo", batch=2))
    np.testing.assert_array_equal(result.counts, [5, 3])
    assert result.figures().variance_ratio == pytest.approx((4 / 25 + 2 / 9) / (3 / 16 + 3 / 16), rel=1e-12)


def test_the_calibration_error_nets_within_a_bin_and_adds_over_bins():
    log = log_of("abc", [(0, 1, 4, 4), (1, 1, 0, 4), (2, 1, 8, 8)])
    figures = replay(log, Scripted({"a": 0.52, "b": 0.58, "c": 0.95})).figures()
    assert figures.calibration_error == pytest.approx((abs(4 * 0.52 + 4 * 0.58 - 4) + 8 * 0.05) / 16, rel=1e-9)


def test_a_visit_of_one_rollout_has_no_say_in_the_variance_ratio():
    belief = {"a": 0.5, "b": 0.1, "c": 0.3}
    alone = log_of("abc", [(0, 1, 2, 4), (1, 1, 1, 1), (2, 1, 1, 1)])
    figures = replay(alone, Scripted(belief)).figures()
    kept = replay(alone, Scripted(belief)).counts[0]
    assert figures.variance_ratio == pytest.approx((1 / (kept - 1)) / (1 / 7), rel=1e-12)
    nothing = replay(log_of("ab", [(0, 1, 0, 8), (1, 1, 8, 8)]), Scripted(belief)).figures()
    assert math.isnan(nothing.variance_ratio)
    assert nothing.log_loss > 0


def test_a_prediction_of_certainty_has_a_finite_loss():
    log = log_of("a", [(0, 1, 8, 8)])
    figures = replay(log, Scripted({"a": 1e-300})).figures()
    assert figures.log_loss == pytest.approx(-math.log(1e-6))
    assert figures.coverage90 == 0


def test_every_batch_is_predicted_before_it_is_observed_and_the_order_is_the_same_in_every_epoch():
    log, p = simulated(np.random.default_rng(0), n_prompts=5, n_visits=3)
    spy = Scripted(p)
    replay(log, spy, Settings(batch=2, seed=4))
    order = np.random.default_rng(4).permutation(5).tolist()
    epoch = [order[:2], order[2:4], order[4:]]  # the last batch is not full
    predicted = [call[1] for call in spy.calls[0::2]]
    assert [call[0] for call in spy.calls] == ["predict", "observe"] * 9
    assert predicted == epoch * 3
    assert [call[1] for call in spy.calls[1::2]] == predicted
    told = [k for call in spy.calls[1::2] for k in call[2]]
    assert told == [int(log.successes[i * 3 + e]) for e in range(3) for i in order]


def test_prompts_without_an_nth_visit_sit_that_epoch_out():
    log = log_of("abc", [(0, 1, 1, 8), (0, 2, 1, 8), (1, 1, 2, 8), (2, 1, 3, 8), (2, 2, 4, 8)])
    batches = log.batches(2, seed=0)
    order = [int(i) for i in np.random.default_rng(0).permutation(3)]
    assert [[int(log.prompt[v]) for v in batch] for batch in batches] == [
        order[:2],
        order[2:],
        [i for i in order if i != 1],
    ]
    assert sorted(np.concatenate(batches).tolist()) == list(range(5))


def test_ranges_of_epochs():
    log, p = simulated(np.random.default_rng(1), n_prompts=4, n_visits=12)
    result = replay(log, Scripted(p))
    assert {name: figures.visits for name, figures in result.by_range().items()} == {
        "1": 4, "2": 4, "3-10": 32, "11+": 8
    }  # fmt: skip
    short = replay(simulated(np.random.default_rng(1), n_visits=2)[0], DiscountedCounts())
    assert list(short.by_range()) == ["1", "2"]


@pytest.mark.parametrize("estimator", ["rloo", "dr_grpo"])
def test_a_belief_that_knows_no_difference_is_exactly_uniform(estimator):
    log, _ = simulated(np.random.default_rng(2), n_prompts=77)
    result = replay(log, Scripted([0.3] * 77), Settings(estimator=estimator, batch=10))
    assert {figures.variance_ratio for figures in result.by_range().values()} == {1.0}


def test_an_oracle_beats_uniform_is_calibrated_and_beats_what_has_to_learn():
    log, p = simulated(np.random.default_rng(3))
    oracle, learner = replay(log, Scripted(p)), replay(log, DiscountedCounts(forgetting=1.0))
    figures = oracle.figures()
    weights, uniform = (p * (1 - p))[log.prompt], 1 / 7
    expected = (weights / (oracle.counts - 1)).sum() / (weights * uniform).sum()
    assert figures.variance_ratio == pytest.approx(expected, abs=0.01)  # 3,600 visits
    assert figures.variance_ratio < 0.9
    assert figures.coverage90 == pytest.approx(0.9, abs=0.02)
    assert figures.calibration_error < 0.01
    for span, mine in oracle.by_range().items():
        other = learner.by_range()[span]
        assert (mine.variance_ratio, mine.log_loss) < (other.variance_ratio, other.log_loss)
        assert mine.log_loss < other.log_loss


def test_an_overconfident_belief_is_found_out():
    log, p = simulated(np.random.default_rng(4))
    far = replay(log, Scripted(1 / (1 + ((1 - p) / p) ** 3))).figures()
    near = replay(log, Scripted(p)).figures()
    assert far.coverage90 < near.coverage90 - 0.1
    assert far.calibration_error > near.calibration_error + 0.02


@pytest.mark.parametrize("make", [DiscountedCounts, LastValue, "paper"])
def test_names_of_prompts_do_not_matter(make):
    rng = np.random.default_rng(5)
    log, _ = simulated(rng, n_prompts=60, n_visits=4)
    renamed = dataclasses.replace(log, ids=tuple(f"prompt-{i}" if i % 2 else 1000 - i for i in range(60)))
    x = rng.normal(size=(60, 6))
    results = [
        replay(which, GaussianProcess(x, ids=which.ids) if make == "paper" else make(), Settings(batch=16)).by_range()
        for which in (log, renamed)
    ]
    assert results[0] == results[1]


def test_ties_rotate():
    log = log_of(range(8), [(q, visit, 1, 8) for q in range(8) for visit in range(1, 30)])
    settings = Settings(budget_per_prompt=3, lower=2, upper=4, batch=8)
    result = replay(log, Scripted([0.3] * 8), settings)
    assert set(result.counts.tolist()) == {3}
    half = replay(log, Scripted([0.01] * 7 + [0.5]), settings)  # the eighth takes one rollout from an equal
    loser = half.counts.reshape(8, 29)[:7].argmin(axis=0)
    assert len(set(loser.tolist())) > 4


beliefs = st.one_of(
    st.tuples(st.floats(0.2, 30), st.floats(0.2, 30)).map(
        lambda ab: BetaPosterior.from_counts(np.array([ab[0]]), np.array([ab[1]]))
    ),
    st.tuples(st.floats(-4, 4), st.floats(0, 6)).map(lambda mv: Posterior(np.array([mv[0]]), np.array([mv[1]]))),
)


@given(beliefs, st.integers(1, 20))
def test_coverage_of_a_right_belief_is_nine_tenths_exactly(belief, trials):
    counts = np.arange(trials + 1)
    fields = {name: np.repeat(value, trials + 1) for name, value in vars(belief).items()}
    many, n = type(belief)(**fields), np.full(trials + 1, trials)
    probability = many.count_cdf(counts, n) - many.count_cdf(counts - 1, n)
    assert (probability * interval_coverage(many, counts, n)).sum() == pytest.approx(0.9, abs=1e-9)


def test_the_default_and_the_paper_are_what_they_are_called():
    log, _ = simulated(np.random.default_rng(6), n_prompts=40, n_visits=3)
    x = np.random.default_rng(7).normal(size=(40, 5))
    assert PREDICTORS["gaussian-process"].plug_in
    mine = replay(log, predictor_for("gaussian-process", Prompts(log.ids, x)), plug_in=True)
    other = replay(log, GaussianProcess(x, ids=log.ids), plug_in=True)
    np.testing.assert_array_equal(mine.counts, other.counts)
    known = ({}, {"embeddings": x}, {"embeddings": x, "features": x[:, :2]})
    for about in known:
        mine = replay(log, predictor_for("hierarchical", Prompts(log.ids, **about)))
        other = replay(log, HierarchicalPredictor(**about, ids=log.ids if about else None))
        np.testing.assert_array_equal(mine.counts, other.counts)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"budget_per_prompt": 2}, "3 (sum of the lower bounds)"),
        ({"budget_per_prompt": 33}, "32 (sum of the upper bounds)"),
        ({"lower": 1}, "convex"),
        ({"lower": 2, "estimator": "dr_grpo"}, "convex"),
        ({"lower": 9, "upper": 8}, "lower"),
        ({"estimator": "grpo"}, "grpo"),
        ({"batch": 0}, "batch"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_are_checked_before_anything_runs(settings, said):
    with pytest.raises(AllotmentError) as caught:
        Settings(**settings)
    assert said in str(caught.value)
    assert "fix:" in str(caught.value)


def test_importing_the_audit_loads_nothing_heavy():
    heavy = {"torch", "tokenizers", "reasoning_gym", "plotly", "pyarrow"}
    code = f"import sys, allotment.audit; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
