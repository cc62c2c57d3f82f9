"""The variance of the shrinkage estimator at a visit: against enumeration, without bias, with its limits."""

import itertools

import numpy as np
import pytest
from audit_cases import Believed, Scripted, simulated
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import comb

from allotment.audit import Log, Settings, replay
from allotment.audit.equivalence import equivalence
from allotment.audit.figures import unbiased_variance
from allotment.audit.scoring import shrinkage_variance, unbiased_square_error, unbiased_variance_square
from allotment.errors import InvalidInputError
from allotment.prediction import DiscountedCounts
from allotment.pricing import RLOO, ShrinkagePrice

probabilities, shares = st.floats(0.0, 1.0), st.floats(0.0, 1.0)


def enumerated_variance(p, m, w, n):
    """Of ``(1/n) sum (r_i - b_i) z_i`` with independent signs z: all outcomes of rewards and signs."""
    total = 0.0
    for rewards in itertools.product((0, 1), repeat=n):
        r = np.array(rewards)
        others = (r.sum() - r) / (n - 1) if n > 1 else np.zeros(1)
        advantages = r - (w * m + (1 - w) * others)
        chance = np.prod(np.where(r == 1, p, 1 - p))
        squares = [(advantages @ signs / n) ** 2 for signs in itertools.product((-1, 1), repeat=n)]
        total += chance * np.mean(squares)
    return total


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize(("p", "m", "w"), [(0.3, 0.8, 0.6), (0.0, 0.2, 1.0), (0.5, 0.5, 0.0)])
def test_the_variance_is_that_of_all_outcomes(p, m, w, n):
    w = w if n > 1 else 1.0  # nobody else to compare with
    expected = enumerated_variance(p, m, w, n)
    assert shrinkage_variance(p * (1 - p), (p - m) ** 2, w, n) == pytest.approx(expected, abs=1e-12)


@given(probabilities, probabilities, st.integers(2, 9))
def test_what_a_visit_tells_is_right_on_average(p, m, n):
    k = np.arange(n + 1)
    chance, trials = comb(n, k) * p**k * (1 - p) ** (n - k), np.full(n + 1, n)  # binom.pmf overflows at tiny p
    assert chance @ unbiased_variance(k, trials) == pytest.approx(p * (1 - p), abs=1e-9)
    assert chance @ unbiased_square_error(k, trials, np.full(n + 1, m)) == pytest.approx((p - m) ** 2, abs=1e-9)
    if n > 3:
        squares = unbiased_variance_square(k, trials)
        assert chance @ squares == pytest.approx((p * (1 - p)) ** 2, abs=1e-9)
    else:
        assert np.isnan(unbiased_variance_square(k, trials)).all()


@given(st.floats(0.01, 0.25), st.floats(0.0, 1.0), st.integers(2, 40))
def test_no_share_of_the_belief_is_rloo(a, error, n):
    assert shrinkage_variance(a, error, 0.0, n) == pytest.approx(a * float(RLOO.variance(n)), rel=1e-12)


@given(st.integers(2, 12), st.data(), probabilities, shares, st.integers(1, 40))
def test_no_visit_scores_below_zero(n, data, m, w, counts):
    k, trials = np.array([data.draw(st.integers(0, n))]), np.array([n])
    error = unbiased_square_error(k, trials, np.array([m]))
    assert shrinkage_variance(unbiased_variance(k, trials), error, w, counts) >= -1e-12


@pytest.mark.parametrize(("budget", "lower"), [(8, 3), (4, 1), (2, 1)])
def test_the_ratio_is_that_of_the_true_probabilities(budget, lower):
    """A wrong belief, three rollouts a visit: what is scored is the truth, not what the belief thinks of itself."""
    rng = np.random.default_rng(budget)
    p = rng.beta(0.5, 0.5, 60_000)
    prompt, visit = np.arange(60_000), np.ones(60_000, dtype=np.int64)
    log = Log(tuple(range(60_000)), prompt, visit, rng.binomial(3, p), np.full(60_000, 3))
    result = replay(log, Believed(1.0, 3.0), Settings(budget, lower, 32, "shrinkage", batch=60_000))
    m, v, a = 0.25, 0.25 * 0.75 / 5, 0.25 * 0.75 * 4 / 5  # of Beta(1, 3)
    assert set(result.counts.tolist()) == {budget}
    w = (a / (budget - 1)) / (a / (budget - 1) + v)
    mean_square = np.mean(p * (1 - p) + w**2 * (p - m) ** 2 + (1 - w) ** 2 * p * (1 - p) / (budget - 1)) / budget
    expected = mean_square / np.mean(p * (1 - p) / (budget - 1))
    assert result.figures().variance_ratio == pytest.approx(expected, rel=0.01)
    own = ShrinkagePrice(np.array([a]), np.array([v])).cost(np.array([budget]))[0] / (a / (budget - 1))
    assert abs(own - expected) > 0.05  # the belief thinks otherwise


def test_counts_are_split_by_the_price_of_the_belief():
    """No rollout is worth more with another prompt, by the price that a planner would have."""
    log, _ = simulated(np.random.default_rng(3), n_prompts=50, n_visits=3)
    result, belief = replay(log, DiscountedCounts(), Settings(2, 1, 32, "shrinkage", batch=50)), DiscountedCounts()
    for batch in log.batches(50, 0):
        ids, counts = [log.ids[row] for row in log.prompt[batch]], result.counts[batch]
        gains = ShrinkagePrice.of(belief.predict(ids)).gains(np.arange(1, 40))
        rows, several = np.arange(50), counts > 1
        assert counts.sum() == 100
        assert gains[rows, counts - 1].max() <= gains[rows[several], counts[several] - 2].min() + 1e-15
        belief.observe(ids, log.successes[batch], log.trials[batch])
    assert result.counts.min() == 1
    np.testing.assert_array_equal(result.counts_at([2])[0], result.counts)


def test_uniform_rloo_is_one_and_a_belief_of_no_use_is_not_better():
    log, _ = simulated(np.random.default_rng(2), n_prompts=60, n_visits=4)
    flat = replay(log, Scripted([0.3] * 60), Settings(8, 1, 32, "shrinkage", batch=60))
    plain = replay(log, Scripted([0.3] * 60), Settings(8, 3, 32, batch=60))
    assert plain.figures().variance_ratio == 1.0
    np.testing.assert_array_equal(plain.uniform_variances(), flat.uniform_variances())
    assert flat.figures().variance_ratio > 1  # certain of .3, and wrong
    assert equivalence(flat).rollouts.value > 8


def test_a_visit_of_one_rollout_says_nothing():
    belief = Believed(2.0, 2.0)
    whole = Log(("a", "b"), np.array([0, 1]), np.array([1, 1]), np.array([2, 1]), np.array([4, 1]))
    result = replay(whole, belief, Settings(4, 1, 8, "shrinkage"))
    assert result.variances(result.counts)[1] == result.uniform_variances()[1] == 0
    nothing = Log(("a", "b"), np.array([0, 1]), np.array([1, 1]), np.array([0, 1]), np.array([8, 1]))
    worth = equivalence(replay(nothing, belief, Settings(4, 1, 8, "shrinkage")))
    assert all(np.isnan(i.value) for i in (worth.variance_ratio, worth.rollouts, worth.uniform_rollouts))


def test_equivalent_rollouts_below_two_are_said():
    """A certain belief: V(n) falls as 1 / n, so a true one is worth more than two rollouts, a wrong one less."""
    log, _ = simulated(np.random.default_rng(5), n_prompts=60, n_visits=20)
    half = Log(log.ids, log.prompt, log.visit, np.full(len(log.visit), 4), log.trials)
    sure = replay(half, Scripted([0.5] * 60), Settings(2, 1, 8, "shrinkage", batch=60))
    worth = equivalence(sure)
    ratio = 2 * sure.variances(np.ones(len(log.visit)))[0] / (4 * 4 / 56)  # (p - .5)^2 as k = 4 of 8 estimates it
    assert worth.variance_ratio.value == pytest.approx(ratio / 4, rel=1e-9)
    whole = worth.budgets == np.round(worth.budgets)  # others are split unevenly
    np.testing.assert_allclose(worth.worth[whole], 1 + worth.budgets[whole] * 2 / ratio, rtol=1e-4)
    wrong = replay(half, Scripted([0.9] * 60), Settings(2, 1, 8, "shrinkage", batch=60))
    assert equivalence(wrong).worth[0] < 2


def test_what_was_not_allotted_need_not_be_learnt():
    log, _ = simulated(np.random.default_rng(6), n_prompts=40, n_visits=6)
    told = []

    class Spy(DiscountedCounts):
        def observe(self, ids, successes, trials):
            told.append((np.array(successes), np.array(trials)))
            super().observe(ids, successes, trials)

    def settings(observe):
        return Settings(3, 1, 32, "shrinkage", batch=40, observe=observe)

    result = replay(log, Spy(), settings("allotted"))
    batches = log.batches(40, 0)
    for (successes, trials), batch in zip(told, batches, strict=True):
        np.testing.assert_array_equal(trials, np.minimum(result.counts[batch], 8))
        assert (successes <= np.minimum(trials, log.successes[batch])).all()
        assert (trials - successes <= 8 - log.successes[batch]).all()
    richer = replay(log, DiscountedCounts(), settings("logged"))
    assert richer.figures(2).mae < result.figures(2).mae


def test_what_does_not_go_together_is_refused():
    log, p = simulated(np.random.default_rng(7), n_prompts=4, n_visits=1)
    with pytest.raises(InvalidInputError, match="how uncertain"):
        replay(log, Scripted(p), Settings(8, 1, 32, "shrinkage"), plug_in=True)
    with pytest.raises(InvalidInputError, match="no leave-one-out baseline"):
        Settings(1, 1, 32, "shrinkage")
    with pytest.raises(InvalidInputError, match="observe"):
        Settings(observe="nothing")
