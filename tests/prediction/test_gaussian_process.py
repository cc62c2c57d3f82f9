"""The paper's recursion against a naive transcription with the whole Q x Q matrix, and its invariances."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logit

from allotment.prediction import GaussianProcess, RewardVarianceGaussianProcess, gaussian_process
from allotment.prediction.gaussian_process import median_distance

seeds = st.integers(0, 10**6)
TRIALS = 8


def scenario(seed, prompts=12, dimension=3, steps=4):
    """Embeddings [M, D] and a list of batches (rows, successes)."""
    rng = np.random.default_rng(seed)
    batches = [rng.choice(prompts, rng.integers(1, prompts), replace=False) for _ in range(steps)]
    return rng.normal(size=(prompts, dimension)), [(rows, rng.integers(0, TRIALS + 1, len(rows))) for rows in batches]


def label(successes, epsilon=1e-6):
    return logit(np.clip(successes / TRIALS, epsilon, 1 - epsilon))


def dense_kernel(x, h):
    return np.array([[np.exp(-np.sum((a - b) ** 2) / (2 * h * h)) for b in x] for a in x])


def algorithm_1(x, batches, h, jitter, mean=0.0, labels=label):
    """VIP Algorithm 1, literally: all prompts' covariance, explicit inverse."""
    sigma, m = dense_kernel(x, h), np.full(len(x), mean)
    for rows, successes in batches:
        g = labels(successes)
        alpha = np.linalg.inv(sigma[np.ix_(rows, rows)] + jitter * np.eye(len(rows))) @ (g - m[rows])
        m = m + sigma[:, rows] @ alpha
        m[rows] = g
    return m


def all_pairs_median(x):
    return np.median([np.linalg.norm(x[i] - x[j]) for i in range(len(x)) for j in range(i)])


def run(predictor, batches, names=None):
    for rows, successes in batches:
        ids = rows if names is None else [names[r] for r in rows]
        predictor.observe(ids, successes, np.full(len(rows), TRIALS))
    return predictor


@settings(deadline=None, max_examples=40)
@given(seeds, st.floats(0.3, 3.0), st.floats(-2, 2))
def test_it_is_algorithm_1(seed, bandwidth, prior_mean):
    x, batches = scenario(seed)
    predictor = run(GaussianProcess(x, bandwidth=bandwidth, prior_mean=prior_mean), batches)
    expected = algorithm_1(x, batches, bandwidth, 1e-4, prior_mean)
    np.testing.assert_allclose(predictor.predict(range(len(x))).mean, expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_the_default_bandwidth_is_the_median_distance(seed):
    x, batches = scenario(seed)
    predictor = GaussianProcess(x)
    assert predictor.bandwidth is None
    run(predictor, batches)
    assert predictor.bandwidth == pytest.approx(all_pairs_median(x), rel=1e-12)
    expected = algorithm_1(x, batches, all_pairs_median(x), 1e-4)
    np.testing.assert_allclose(predictor.predict(range(len(x))).mean, expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_prompts_of_the_batch_have_exactly_their_labels_and_prior_variance(seed):
    x, batches = scenario(seed)
    predictor = run(GaussianProcess(x), batches)
    rows, successes = batches[-1]
    belief = predictor.predict(rows)
    np.testing.assert_array_equal(belief.mean, label(successes))
    np.testing.assert_array_equal(belief.variance, np.ones(len(rows)))


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_neither_order_nor_names_matter(seed):
    x, batches = scenario(seed)
    plain = run(GaussianProcess(x), batches).predict(range(len(x))).mean
    rng = np.random.default_rng(seed)
    shuffled = [(rows[p], successes[p]) for rows, successes in batches for p in [rng.permutation(len(rows))]]
    np.testing.assert_allclose(run(GaussianProcess(x), shuffled).predict(range(len(x))).mean, plain, atol=1e-6)
    order, names = rng.permutation(len(x)), [f"prompt {r}" if r % 2 else int(r) + 100 for r in range(len(x))]
    renamed = run(GaussianProcess(x[order], ids=[names[r] for r in order]), batches, names)
    np.testing.assert_allclose(renamed.predict(names).mean, plain, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_with_a_length_scale_near_zero_it_is_the_last_value(seed):
    x, batches = scenario(seed)
    predictor = run(GaussianProcess(x, bandwidth=1e-4, prior_mean=-1.0), batches)
    last = np.full(len(x), -1.0)
    for rows, successes in batches:
        last[rows] = label(successes)
    # jitter scales the update of no prompt: those of the batch get their label itself
    np.testing.assert_allclose(predictor.predict(range(len(x))).mean, last, atol=1e-12)


def test_the_first_prediction_is_one_half_everywhere():
    predictor = GaussianProcess({"a": [0.0, 1.0], 5: [1.0, 0.0]})
    np.testing.assert_array_equal(predictor.predict(["a", 5, "a"]).plug_in_probability(), [0.5] * 3)


def test_zero_trials_are_no_observation():
    x, _ = scenario(0)
    one, other = GaussianProcess(x), GaussianProcess(x)
    one.observe([0, 1, 2], [3, 0, 8], [8, 0, 8])
    other.observe([0, 2], [3, 8], [8, 8])
    np.testing.assert_array_equal(one.predict(range(12)).mean, other.predict(range(12)).mean)
    nothing = GaussianProcess(x)
    nothing.observe([4, 5], [0, 0], [0, 0])
    np.testing.assert_array_equal(nothing.predict(range(12)).mean, np.zeros(12))


def test_the_number_of_trials_does_not_matter_as_in_the_paper():
    x, _ = scenario(0)
    one, other = GaussianProcess(x), GaussianProcess(x)
    one.observe([0, 1], [1, 4], [4, 4])
    other.observe([0, 1], [8, 32], [32, 32])
    np.testing.assert_array_equal(one.predict(range(12)).mean, other.predict(range(12)).mean)


def test_a_late_prompt_starts_at_the_prior_mean_and_then_follows_its_neighbours():
    x, batches = scenario(3)
    predictor = run(GaussianProcess(x, bandwidth=1.0, prior_mean=-0.5), batches)
    before = predictor.predict(range(12)).mean
    new = x[:1] + 0.1
    predictor.register(["new"], new)
    assert predictor.predict(["new"]).mean == [-0.5]
    np.testing.assert_array_equal(predictor.predict(range(12)).mean, before)
    predictor.observe([0], [8], [8])
    similarity = np.exp(-np.sum((new - x[:1]) ** 2) / 2)
    expected = -0.5 + similarity * (label(np.array(8)) - before[0]) / (1 + 1e-4)
    assert predictor.predict(["new"]).mean[0] == pytest.approx(expected, rel=1e-9)


def test_registering_again_is_a_no_op_that_keeps_the_mean():
    x, batches = scenario(4)
    predictor = run(GaussianProcess(x), batches)
    before = predictor.predict(range(12)).mean
    predictor.register([3, 2], x[[3, 2]])
    predictor.register([], [])
    np.testing.assert_array_equal(predictor.predict(range(12)).mean, before)


def test_the_bandwidth_stays_when_prompts_are_registered_later():
    x, batches = scenario(5)
    predictor = run(GaussianProcess(x), batches)
    fixed = predictor.bandwidth
    predictor.register(["far"], [[1e3, 0, 0]])
    predictor.observe(["far", 0], [1, 2], [8, 8])
    assert predictor.bandwidth == fixed


@pytest.mark.parametrize(("copies", "median"), [(1, 5.0), (3, 2.5)])  # distances 5; 0 0 0 5 5 5
def test_while_all_prompts_lie_together_no_bandwidth_is_fixed(copies, median):
    x = [[1.0, 2.0]] * copies
    predictor = GaussianProcess(x)
    predictor.observe([0], [6], [8])
    assert predictor.bandwidth is None
    # Kernel entries are 1 (the jitter takes a 1e-4th from the others): all copies learn alike.
    np.testing.assert_allclose(predictor.predict(range(len(x))).mean, label(np.array(6)), rtol=2e-4)
    predictor.register(["other"], [[4.0, 6.0]])
    predictor.observe(["other"], [2], [8])
    assert predictor.bandwidth == median


def test_beyond_1024_prompts_the_median_is_over_an_evenly_spaced_sample():
    x = np.random.default_rng(0).normal(size=(1500, 2)) * np.linspace(1, 3, 1500)[:, None]
    rows = [round(i * 1499 / 1023) for i in range(1024)]
    distances = np.linalg.norm(x[rows][:, None] - x[rows][None], axis=2)[np.triu_indices(1024, 1)]
    assert median_distance(x) == pytest.approx(np.median(distances), rel=1e-12)
    assert median_distance(x[:1024]) != median_distance(x[:1025])


def test_no_matrix_of_all_prompts_is_ever_formed():
    x = np.random.default_rng(0).normal(size=(20_000, 4))  # the matrix would take 3.2 GB
    predictor = GaussianProcess(x)
    tracemalloc.start()
    predictor.observe(range(64), [3] * 64, [8] * 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


@pytest.mark.parametrize("entries", [1, 7, 40])
def test_cutting_the_kernel_in_pieces_changes_nothing(monkeypatch, entries):
    x, batches = scenario(6)
    whole = run(GaussianProcess(x), batches).predict(range(12)).mean
    monkeypatch.setattr(gaussian_process, "BLOCK_ENTRIES", entries)
    np.testing.assert_allclose(run(GaussianProcess(x), batches).predict(range(12)).mean, whole, rtol=1e-9, atol=1e-9)


class TestJitter:
    def test_duplicates_with_opposite_labels_leave_everything_finite(self):
        x, _ = scenario(7)
        x[1] = x[0]
        predictor = GaussianProcess(x, bandwidth=1.0, jitter=0.0)
        predictor.observe([0, 1, 2], [0, 8, 4], [8, 8, 8])
        mean = predictor.predict(range(12)).mean
        np.testing.assert_array_equal(mean[:3], label(np.array([0, 8, 4])))
        assert np.abs(mean[3:]).max() < 50

    def test_zero_jitter_escalates_to_1e_10_for_exact_duplicates(self):
        x = np.array([[0.0], [0.0], [0.5]])
        predictor = GaussianProcess(x, bandwidth=1.0, jitter=0.0)
        predictor.observe([0, 1], [6, 6], [8, 8])
        # both copies share one residual g: weights g / (2 + 1e-10) each
        expected = np.exp(-0.125) * 2 * label(np.array(6)) / (2 + 1e-10)
        assert predictor.predict([2]).mean[0] == pytest.approx(expected, rel=1e-6)

    def test_it_is_multiplied_by_ten_until_the_factor_exists(self, monkeypatch):
        tried = []
        real = gaussian_process.cholesky

        def refuse_small(matrix, lower):
            tried.append(matrix[0, 0] - 1)
            if tried[-1] < 0.05:
                raise np.linalg.LinAlgError
            return real(matrix, lower=lower)

        monkeypatch.setattr(gaussian_process, "cholesky", refuse_small)
        predictor = GaussianProcess([[0.0], [1.0]], bandwidth=1.0)
        predictor.observe([0], [6], [8])
        np.testing.assert_allclose(tried, [1e-4, 1e-3, 1e-2, 1e-1], rtol=1e-6)
        assert predictor.predict([1]).mean[0] == pytest.approx(np.exp(-0.5) * label(np.array(6)) / 1.1)

    def test_a_jitter_that_suffices_is_used_as_given(self):
        predictor = GaussianProcess([[0.0], [1.0]], bandwidth=1.0, jitter=0.25)
        predictor.observe([0], [6], [8])
        assert predictor.predict([1]).mean[0] == pytest.approx(np.exp(-0.5) * label(np.array(6)) / 1.25)


class TestRewardVariance:
    @settings(deadline=None, max_examples=20)
    @given(seeds)
    def test_it_is_the_same_recursion_with_a_softplus_link(self, seed):
        x, batches = scenario(seed)
        predictor = RewardVarianceGaussianProcess(x, bandwidth=1.0)
        observed = [(rows, 0.1 + successes / 5) for rows, successes in batches]
        for rows, variances in observed:
            predictor.observe_variance(rows, variances)
        latent = algorithm_1(x, observed, 1.0, 1e-4, labels=lambda s2: np.log(np.exp(s2) - 1))
        np.testing.assert_allclose(
            predictor.predict_variance(range(12)), np.log1p(np.exp(latent)), rtol=1e-5, atol=1e-9
        )
        rows, variances = observed[-1]
        np.testing.assert_allclose(predictor.predict_variance(rows), variances, rtol=1e-12)

    def test_before_data_it_is_softplus_of_the_prior_mean(self):
        assert RewardVarianceGaussianProcess([[0.0]]).predict_variance([0]) == pytest.approx(np.log(2))

    @pytest.mark.parametrize(
        ("observed", "floor", "predicted"), [(0.0, 1e-6, 1e-6), (0.0, 0.01, 0.01), (1e4, 1e-6, 1e4)]
    )
    def test_extreme_variances_are_floored_and_do_not_overflow(self, observed, floor, predicted):
        predictor = RewardVarianceGaussianProcess([[0.0], [1.0]], floor=floor)
        predictor.observe_variance([0], [observed])
        assert predictor.predict_variance([0]) == pytest.approx(predicted, rel=1e-9)
        assert np.isfinite(predictor.predict_variance([1])).all()
