"""Count predictors against formulas worked out one prompt at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logit

from allotment.prediction import DiscountedCounts, GlobalMean, LastValue
from allotment.prompts.ids import enlarged

PROMPTS = ["a", "b", 3, 4, "5", 5]

visit = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda pair: (min(pair), max(pair)))
steps = st.lists(st.dictionaries(st.sampled_from(PROMPTS), visit, max_size=6), max_size=6)
fractions = st.floats(0.05, 1.0)


def tell(predictor, step, order=None):
    items = list(step.items())
    items = items if order is None else [items[i] for i in order]
    predictor.observe([k for k, _ in items], [s for _, (s, _) in items], [n for _, (_, n) in items])


def told(predictor, history):
    for step in history:
        tell(predictor, step)
    return predictor


def running_rate(history, forgetting):
    """Mean rate over prompts, one imaginary prompt at 1/2, from the definition: each step weighs forgetting^age."""
    history = [[s / n for s, n in step.values() if n] for step in history]
    history = [rates for rates in history if rates]  # a step without any rollout is no step
    weights = [forgetting**age for age in range(len(history))][::-1]
    total = sum(w * sum(rates) for w, rates in zip(weights, history, strict=True))
    return (total + 0.5) / (sum(w * len(rates) for w, rates in zip(weights, history, strict=True)) + 1)


def visits(history, prompt):
    return [step[prompt] for step in history if prompt in step and step[prompt][1]]


@settings(deadline=None)
@given(steps, fractions, st.floats(0.1, 10), fractions)
def test_discounted_counts_are_a_beta_posterior_by_hand(history, forgetting, strength, global_forgetting):
    predictor = DiscountedCounts(forgetting=forgetting, prior_strength=strength, global_forgetting=global_forgetting)
    belief = told(predictor, history).predict(PROMPTS)
    rate = running_rate(history, global_forgetting)
    for i, prompt in enumerate(PROMPTS):
        past = visits(history, prompt)[::-1]  # age 0 first
        alpha = strength * rate + sum(forgetting**age * s for age, (s, n) in enumerate(past))
        beta = strength * (1 - rate) + sum(forgetting**age * (n - s) for age, (s, n) in enumerate(past))
        assert belief.success_probability()[i] == pytest.approx(alpha / (alpha + beta), rel=1e-9)
        law = stats.beta(alpha, beta)
        assert belief.expected_variance()[i] == pytest.approx(law.mean() * (1 - law.mean()) - law.var(), rel=1e-9)


@settings(deadline=None)
@given(steps)
def test_without_forgetting_they_are_plain_counts(history):
    belief = told(DiscountedCounts(forgetting=1.0, prior_strength=2.0, global_forgetting=1.0), history).predict(["a"])
    rate = running_rate(history, 1.0)
    successes = sum(s for s, _ in visits(history, "a"))
    trials = sum(n for _, n in visits(history, "a"))
    np.testing.assert_allclose(belief.alpha, successes + 2 * rate, rtol=1e-12)
    np.testing.assert_allclose(belief.alpha + belief.beta, trials + 2, rtol=1e-12)


@settings(deadline=None)
@given(steps, st.randoms(use_true_random=False))
@pytest.mark.parametrize("make", [DiscountedCounts, LastValue])
def test_the_order_within_a_step_changes_not_one_bit(make, history, random):
    one, other = make(), make()
    for step in history:
        order = list(range(len(step)))
        random.shuffle(order)
        tell(one, step)
        tell(other, step, order)
    np.testing.assert_array_equal(one.predict(PROMPTS).mean, other.predict(PROMPTS).mean)


@settings(deadline=None)
@given(steps, st.floats(0.01, 5), fractions)
def test_last_value_remembers_the_last_visit_and_falls_back_to_the_mean_over_prompts(history, smoothing, forgetting):
    predictor = told(LastValue(smoothing=smoothing, global_forgetting=forgetting), history)
    belief = predictor.predict(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        past = visits(history, prompt)
        rate = running_rate(history, forgetting)
        if past:
            successes, trials = past[-1]
            rate = (successes + smoothing) / (trials + 2 * smoothing)
        assert belief.plug_in_probability()[i] == pytest.approx(rate, rel=1e-9)
    np.testing.assert_array_equal(belief.variance, 0)


@settings(deadline=None)
@given(steps, st.integers(1, 8))
def test_global_mean_is_the_mean_of_the_last_visits_of_any_prompt(history, window):
    belief = told(GlobalMean(window=window), history).predict(PROMPTS)
    rates = [s / n for step in history for s, n in step.values() if n][-window:]
    np.testing.assert_allclose(belief.plug_in_probability(), (sum(rates) + 0.5) / (len(rates) + 1), rtol=1e-9)
    np.testing.assert_array_equal(belief.variance, 0)


@pytest.mark.parametrize("make", [DiscountedCounts, LastValue, GlobalMean])
def test_before_any_data_everything_is_one_half(make):
    belief = make().predict(["new", 1])
    np.testing.assert_allclose(belief.success_probability(), 0.5, atol=1e-12)
    assert len(make().predict([])) == 0


def test_predicting_registers_nobody():
    predictor = DiscountedCounts()
    predictor.predict(range(100))
    assert len(predictor.state_dict()["counts"]) == 0


def test_prompts_weigh_alike_in_the_mean_whatever_their_rollouts():
    predictor = DiscountedCounts(global_forgetting=1.0)
    predictor.observe(["rare", "often"], [0, 30], [3, 30])
    assert predictor.predict(["new"]).success_probability()[0] == pytest.approx((0 + 1 + 0.5) / 3)


def test_after_32_rollouts_of_a_fixed_policy_the_default_is_near_the_plain_count_posterior():
    rng = np.random.default_rng(0)
    p = rng.beta(0.5, 0.5, size=2000)
    predictor, total = DiscountedCounts(), np.zeros(2000)
    for _ in range(4):
        successes = rng.binomial(8, p)
        total += successes
        predictor.observe(range(2000), successes, np.full(2000, 8))
    plain = (total + 0.5) / 33
    own = np.abs(predictor.predict(range(2000)).success_probability() - p).mean()
    assert own < 1.1 * np.abs(plain - p).mean()


def test_forgetting_follows_a_policy_that_changes():
    patient, quick = DiscountedCounts(forgetting=1.0), DiscountedCounts(forgetting=0.5)
    for successes in [0] * 10 + [8] * 2:
        for predictor in (patient, quick):
            predictor.observe(["q"], [successes], [8])
    assert quick.predict(["q"]).success_probability()[0] > 0.7 > 0.3 > patient.predict(["q"]).success_probability()[0]


def test_extreme_counts_give_finite_logits():
    for predictor in (DiscountedCounts(), LastValue(), GlobalMean()):
        for _ in range(30):
            predictor.observe(["zero", "one"], [0, 32], [32, 32])
        belief = predictor.predict(["zero", "one", "new"])
        assert np.isfinite(belief.mean).all()
        assert np.isfinite(belief.variance).all()
        assert (belief.expected_variance() > 0).all()


def test_the_last_value_of_a_mixed_batch_by_hand():
    predictor = LastValue()
    predictor.observe(["a", "b", "idle"], [0, 3, 0], [8, 4, 0])
    expected = logit([0.5 / 9, 3.5 / 5, (0 + 0.75 + 0.5) / 3])
    np.testing.assert_allclose(predictor.predict(["a", "b", "idle"]).mean, expected)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_growing_keeps_the_old_and_fills_the_new(sizes):
    array, copies, written = np.empty((0, 2)), 0, 0
    for size in sizes:
        written += size
        bigger = enlarged(array, written, fill=7.0)
        copies += bigger is not array
        np.testing.assert_array_equal(bigger[: len(array)], array)
        np.testing.assert_array_equal(bigger[len(array) :], 7.0)
        assert written <= len(bigger) <= max(2 * written, 1)
        array = bigger
        array[written - size : written] = size
    assert copies <= 2 + np.log2(written)
