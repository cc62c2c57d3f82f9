"""The linear-Gaussian recursion against the exact posterior of all observations at once, in function space."""

import numpy as np
import pytest
from hierarchical_oracles import EXACT, dense_posterior, kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from allotment.prediction import HierarchicalRegression
from allotment.prediction.binomial import BatchPrior, drift_evidence
from allotment.prediction.hierarchy import STARTING_PRECISION, Candidates
from allotment.prediction.settings import log_normal_grid

seeds = st.integers(0, 10**6)


def scenario(seed, prompts=9, dimension=3, steps=6, batch=4):
    """Embeddings [N, D] in float32 and batches (rows [B], values [B], noise variances [B]) with revisits."""
    rng = np.random.default_rng(seed)
    batches = [
        (rng.choice(prompts - 2, batch, replace=False), 3 * rng.normal(size=batch), rng.uniform(0.05, 4.0, batch))
        for _ in range(steps)
    ]  # the last two prompts are never visited
    return rng.normal(size=(prompts, dimension)).astype(np.float32), batches


def run(predictor, batches):
    for rows, values, noise in batches:
        predictor.observe(rows, values, noise)
    return predictor


def together(batches):
    return [np.concatenate(part) for part in zip(*batches, strict=True)]


@settings(max_examples=25)
@given(seeds, st.floats(0.4, 2.0), st.floats(0.3, 3.0), st.floats(-2, 2))
def test_it_is_the_batch_gaussian_process(seed, bandwidth, scale, prior_mean):
    x, batches = scenario(seed)
    predictor = HierarchicalRegression(
        x, **EXACT, rank=len(x), bandwidth=bandwidth, scale=scale, prior_mean=prior_mean, prior_variance=1.3
    )
    mean, variance = run(predictor, batches).predict(range(len(x)))
    covariance = kernel(x, scale=scale, own=0.7, level=1.3, bandwidth=bandwidth)
    exact = dense_posterior(covariance, prior_mean, *together(batches))
    np.testing.assert_allclose(mean, exact[0], atol=2e-6)
    np.testing.assert_allclose(variance, exact[1], atol=2e-6)


def test_without_embeddings_it_is_the_exact_random_effects_model():
    _, batches = scenario(3)
    predictor = run(HierarchicalRegression(**EXACT, prior_variance=1.3, prior_mean=0.4), batches)
    covariance = np.full((10, 10), 1.3 + 1 / STARTING_PRECISION) + 0.7 * np.eye(10)
    exact = dense_posterior(covariance, 0.4, *together(batches))
    for got, expected in zip(predictor.predict(range(10)), exact, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-7)


@settings(max_examples=10)
@given(seeds)
def test_the_order_of_steps_does_not_matter(seed):
    x, batches = scenario(seed)
    makers = [lambda: HierarchicalRegression(x, **EXACT), lambda: HierarchicalRegression(**EXACT)]
    for make in makers:
        forwards, backwards = run(make(), batches), run(make(), batches[::-1])
        for one, other in zip(forwards.predict(range(9)), backwards.predict(range(9)), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_order_within_a_step_does_not_matter():
    x, batches = scenario(1, steps=8)
    one = run(HierarchicalRegression(x), batches)
    other = run(HierarchicalRegression(x), [tuple(part[::-1] for part in batch) for batch in batches])
    for got, expected in zip(one.predict(range(9)), other.predict(range(9)), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-7)


@settings(max_examples=25)
@given(seeds, st.floats(0.01, 30.0), st.booleans())
def test_variance_never_grows_without_process_noise(seed, noise, has_embeddings):
    x, batches = scenario(seed)
    predictor = HierarchicalRegression(x if has_embeddings else None, **EXACT)
    before = predictor.predict(range(9))[1] if not has_embeddings else np.full(9, np.inf)
    for rows, values, scale in batches:
        predictor.observe(rows, values, noise * scale)
        after = predictor.predict(range(9))[1]
        assert (after <= before + 1e-9).all()
        before = after


def test_a_level_that_drifts_is_a_random_walk():
    """Fresh prompts every step: covariance of the levels at steps s and t is prior + drift * min(s, t)."""
    rng, drift, steps = np.random.default_rng(0), 0.3, 7
    predictor = HierarchicalRegression(**{**EXACT, "level_drift": drift}, prior_variance=2.0)
    batches = [(np.arange(3) + 3 * t, rng.normal(size=3), rng.uniform(0.1, 1, 3)) for t in range(steps)]
    run(predictor, batches)
    when = np.append(np.repeat(np.arange(steps), 3), steps)  # the last prompt is asked for after the last step
    levels = 2.0 + 1 / STARTING_PRECISION + drift * np.minimum(when[:, None], when)
    exact = dense_posterior(levels + 0.7 * np.eye(len(when)), 0.0, *together(batches))
    mean, variance = predictor.predict(["never seen"])
    assert mean[0] == pytest.approx(exact[0][-1], abs=1e-7)
    assert variance[0] == pytest.approx(exact[1][-1], abs=1e-7)


def test_own_drift_takes_a_record_back_to_the_common_opinion():
    known_level = {**EXACT, "prompt_drift": 0.2, "prior_variance": 1e-9}
    predictor = HierarchicalRegression(**known_level, prior_mean=1.0)
    predictor.observe(["old"], [5.0], [0.1])
    means, variances = [], []
    for step in range(40):
        mean, variance = predictor.predict(["old"])
        means.append(mean[0]), variances.append(variance[0])
        age = step + 1  # a record of noise 0.1 + drift * age, against a prior variance of 0.7
        gain = 0.7 / (0.7 + 0.1 + 0.2 * age)
        assert means[-1] == pytest.approx(1.0 + gain * 4.0, abs=1e-6)
        assert variances[-1] == pytest.approx(0.7 * (1 - gain), abs=1e-6)
        predictor.observe([f"another {step}"], [1.0], [0.1])
    assert (np.diff(means) < 0).all()
    assert (np.diff(variances) > 0).all()
    assert variances[-1] < 0.7


def test_a_drift_of_the_level_moves_prompts_that_are_not_visited():
    predictor = HierarchicalRegression(**{**EXACT, "level_drift": 0.5})
    predictor.observe(["a", "b"], [0.0, 0.0], [0.01, 0.01])
    before = predictor.predict(["a", "never seen"])
    predictor.observe(["b"], [3.0], [0.01])
    after = predictor.predict(["a", "never seen"])
    assert (after[0] > before[0] + 1.0).all()


def test_memory_forgets_what_was_said_of_level_and_weights_but_never_their_priors():
    x, batches = scenario(2)
    quiet = [(np.array([0]), np.array([0.0]), np.array([1e9]))] * 60
    for memory, is_forgotten in ((6.0, True), (np.inf, False)):
        predictor = HierarchicalRegression(x, **{**EXACT, "memory": memory}, prior_mean=0.4, prior_variance=2.0)
        before = run(predictor, batches).predict([7, 8])
        after = run(predictor, quiet).predict([7, 8])
        assert (after[1] > before[1] + 0.1).all() == is_forgotten
        if is_forgotten:
            np.testing.assert_allclose(after[0], 0.4, atol=0.01)
            np.testing.assert_allclose(after[1], 2.0 + 1.0 + 0.7, atol=0.01)  # level, Gaussian process, own effect


def test_fixed_settings_are_not_learnt():
    x, batches = scenario(4, steps=10)
    predictor = run(HierarchicalRegression(x, **EXACT), batches)
    model = predictor._model
    assert [c.mean for c in (model.prompt_variance, model.unseen_variance, model.prompt_drift)] == [0.7, 0.7, 0.0]
    assert len(model.members) == 1


class TestDriftEvidence:
    def test_it_is_the_likelihood_ratio_of_a_common_shift(self):
        rng = np.random.default_rng(0)
        prior = BatchPrior(rng.normal(size=6), rng.normal(size=(5, 6)), rng.uniform(0.1, 2, 6))
        noise, value, drifts = rng.uniform(0.1, 2, 6), 2 * rng.normal(size=6), np.array([0.0, -0.05, 1e-4, 0.1, 3.0])
        covariance = prior.root.T @ prior.root + np.diag(prior.variance + noise)
        density = [multivariate_normal.logpdf(value, prior.mean, covariance + d) for d in drifts]
        got = drift_evidence(prior, value, prior.variance + noise, drifts)
        np.testing.assert_allclose(got, np.array(density) - density[0], atol=1e-9)


class TestCandidates:
    def test_weights_follow_bayes(self):
        candidates = Candidates(np.array([1.0, 2.0, 5.0]), np.log([0.2, 0.5, 0.3]), forgetting=1.0)
        assert candidates.mean == pytest.approx(0.2 + 1.0 + 1.5)
        candidates.observe(np.log([0.1, 0.1, 0.4]))
        candidates.observe(np.log([0.5, 0.1, 0.1]))
        weights = np.array([0.2 * 0.05, 0.5 * 0.01, 0.3 * 0.04])
        assert candidates.mean == pytest.approx(weights @ [1.0, 2.0, 5.0] / weights.sum())
        assert candidates.best == 2

    def test_what_was_earned_fades_and_the_prior_does_not(self):
        candidates = Candidates(np.array([1.0, 2.0]), np.log([0.2, 0.8]), forgetting=0.5)
        candidates.observe(np.array([3.0, 0.0]))
        candidates.observe(np.zeros(2))
        odds = 0.25 * np.exp(1.5)
        assert candidates.mean == pytest.approx((odds + 2) / (odds + 1))
        for _ in range(60):
            candidates.observe(np.full(2, -7.0))
        assert candidates.mean == pytest.approx(1.8)

    def test_the_first_of_equals_is_best(self):
        assert Candidates(np.arange(3.0), np.zeros(3), 1.0).best == 0

    def test_candidates_are_spread_by_factors(self):
        values, log_prior = log_normal_grid(3.0, 2.0, 2, 1, spread=np.log(2.0))
        np.testing.assert_allclose(values, [0.75, 1.5, 3.0, 6.0])
        np.testing.assert_allclose(log_prior, [-2.0, -0.5, 0.0, -0.5])
