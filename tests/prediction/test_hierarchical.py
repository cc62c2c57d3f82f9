"""The predictor on counts: against dense inference, brute force, and what must hold whatever is approximated."""

import numpy as np
import pytest
from hierarchical_oracles import EXACT, brute_force, dense_posterior, dense_sites, exact_moments, kernel
from hypothesis import given, settings
from hypothesis import strategies as st

from allotment.prediction import HierarchicalPredictor

seeds = st.integers(0, 10**6)
COUNTS = [(4, 8), (0, 32), (32, 32), (0, 8), (1, 1)]
PINNED = {**EXACT, "prior_variance": 1e-9}
"""The level known to be the prior mean: prompts are tied to each other by embeddings alone."""


def scenario(seed, prompts=8, dimension=3, steps=5, batch=4, trials=8):
    """Embeddings [N, D] in float32 and batches (rows [B], successes [B], trials [B]) with revisits."""
    rng = np.random.default_rng(seed)
    rates, rounds = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0], prompts), []
    for _ in range(steps):
        rows, n = rng.choice(prompts - 2, batch, replace=False), rng.integers(1, trials + 1, batch)
        rounds.append((rows, rng.binomial(n, rates[rows]), n))
    return rng.normal(size=(prompts, dimension)).astype(np.float32), rounds


def run(predictor, rounds, names=None):
    for rows, successes, trials in rounds:
        predictor.observe(rows if names is None else [names[r] for r in rows], successes, trials)
    return predictor


def assert_close(one, other, atol=1e-7):
    np.testing.assert_allclose(one.mean, other.mean, atol=atol)
    np.testing.assert_allclose(one.variance, other.variance, atol=atol)


class TestAgainstDenseInference:
    @settings(max_examples=20)
    @given(seeds, st.floats(0.5, 2.0), st.floats(0.3, 2.0))
    def test_one_step_is_expectation_propagation_in_function_space(self, seed, bandwidth, scale):
        x, [(rows, s, n)] = scenario(seed, steps=1, batch=6)
        fixed = {"rank": len(x), "bandwidth": bandwidth, "scale": scale, "prior_mean": -0.5, "prior_variance": 1.3}
        predictor = run(HierarchicalPredictor(x, **EXACT, **fixed), [(rows, s, n)])
        covariance = kernel(x, scale=scale, own=0.7, level=1.3, bandwidth=bandwidth)
        value, precision = dense_sites(np.full(6, -0.5), covariance[np.ix_(rows, rows)], s, n)
        mean, variance = dense_posterior(covariance, -0.5, rows, value, 1 / precision)
        got = predictor.predict(range(len(x)))
        np.testing.assert_allclose(got.mean, mean, atol=5e-3)
        np.testing.assert_allclose(got.variance, variance, atol=5e-3)

    @pytest.mark.parametrize("first", COUNTS)
    @pytest.mark.parametrize("second", COUNTS)
    def test_it_is_close_to_the_true_posterior(self, first, second):
        x = np.array([[0.0], [1.0], [1.5]], dtype=np.float32)
        predictor = HierarchicalPredictor(x, **EXACT, rank=3, scale=1.2, prior_variance=0.5)
        s, n = np.array([first, second]).T
        predictor.observe([0, 1], s, n)
        covariance = kernel(x, scale=1.2, own=0.7, level=0.5)
        mean, variance = brute_force(np.zeros(3), covariance, np.append(s, 0), np.append(n, 0), points=61)
        got = predictor.predict(range(3))
        deviation = np.sqrt(variance)
        assert (np.abs(got.mean - mean) < 0.03 * deviation).all()
        assert (np.abs(np.sqrt(got.variance) / deviation - 1) < 0.03).all()

    @pytest.mark.parametrize(("s", "n"), COUNTS)
    def test_a_single_prompt_gets_its_exact_moments(self, s, n):
        predictor = HierarchicalPredictor(**EXACT, prior_mean=0.4, prior_variance=0.3)
        predictor.observe(["one"], [s], [n])
        got = predictor.predict(["one"])
        mean, variance, _ = exact_moments(0.4, 1.0, s, n)
        assert got.mean[0] == pytest.approx(mean, abs=1e-6)
        assert got.variance[0] == pytest.approx(variance, abs=1e-6)

    @pytest.mark.parametrize(("s", "n"), COUNTS)
    def test_trials_one_by_one_are_nearly_a_count(self, s, n):
        whole, parts = HierarchicalPredictor(**PINNED), HierarchicalPredictor(**PINNED)
        whole.observe(["one"], [s], [n])
        for i in range(n):
            parts.observe(["one"], [i * s // n < (i + 1) * s // n], [1])
        assert_close(whole.predict(["one"]), parts.predict(["one"]), atol=0.05 if n <= 8 else 0.15)


class TestInvariances:
    def test_the_order_within_a_step_does_not_matter(self):
        x, rounds = scenario(0)
        reversed_rounds = [tuple(part[::-1] for part in batch) for batch in rounds]
        for embeddings in (x, None):
            one = run(HierarchicalPredictor(embeddings), rounds)
            assert_close(
                one.predict(range(8)), run(HierarchicalPredictor(embeddings), reversed_rounds).predict(range(8))
            )

    def test_names_do_not_matter(self):
        x, rounds = scenario(1)
        names = [f"prompt {r}" if r % 2 else -r for r in range(8)]
        for embeddings, ids in ((x, names), (None, None)):
            numbered = run(HierarchicalPredictor(embeddings), rounds).predict(range(8))
            named = run(HierarchicalPredictor(embeddings, ids=ids), rounds, names).predict(names)
            np.testing.assert_array_equal(numbered.mean, named.mean)
            np.testing.assert_array_equal(numbered.variance, named.variance)

    @settings(max_examples=10)
    @given(seeds)
    def test_the_order_of_registration_does_not_matter_while_all_prompts_are_landmarks(self, seed):
        x, rounds = scenario(seed)
        order = np.random.default_rng(seed).permutation(8)
        one = run(HierarchicalPredictor(x), rounds)
        other = run(HierarchicalPredictor(x[order], ids=order), rounds)
        assert_close(one.predict(range(8)), other.predict(range(8)), atol=1e-5)

    def test_success_and_failure_are_symmetric(self):
        x, rounds = scenario(2)
        for embeddings in (x, None):
            one = run(HierarchicalPredictor(embeddings, prior_mean=0.3), rounds).predict(range(8))
            mirrored = HierarchicalPredictor(embeddings, prior_mean=-0.3)
            other = run(mirrored, [(rows, n - s, n) for rows, s, n in rounds]).predict(range(8))
            np.testing.assert_allclose(one.mean, -other.mean, atol=1e-6)
            np.testing.assert_allclose(one.variance, other.variance, atol=1e-6)

    @settings(max_examples=20)
    @given(seeds, st.sampled_from([1, 8, 1000]), st.booleans())
    def test_variance_never_grows_without_process_noise(self, seed, trials, has_embeddings):
        x, rounds = scenario(seed, trials=trials)
        predictor = HierarchicalPredictor(x if has_embeddings else None, **EXACT, scale=0.5)
        before = np.full(8, 1.0 + 0.25 + 0.7 + 1e-6)  # level, Gaussian process, own effect
        for batch in rounds:
            after = run(predictor, [batch]).predict(range(8)).variance
            assert (after <= before + 1e-8).all()
            before = after

    @settings(max_examples=20)
    @given(seeds)
    def test_a_narrow_kernel_leaves_independent_counts(self, seed):
        x, rounds = scenario(seed)
        together = run(HierarchicalPredictor(x, **PINNED, bandwidth=1e-3, scale=1.5), rounds)
        for prompt in range(8):
            alone = HierarchicalPredictor(
                **{**PINNED, "unseen_variance": 0.7 + 1.5**2, "prompt_variance": 0.7 + 1.5**2}
            )
            for rows, s, n in rounds:
                alone.observe([prompt], s[rows == prompt], n[rows == prompt]) if prompt in rows else None
            assert_close(together.predict([prompt]), alone.predict([prompt]), atol=1e-5)

    def test_equal_prompts_tie_in_any_order(self):
        rng = np.random.default_rng(0)
        x = np.repeat(rng.normal(size=(6, 16)), 5, axis=0).astype(np.float32)
        counts = np.repeat([0, 1, 4, 8, 2, 7], 5)
        predictor = HierarchicalPredictor(x, rank=4)
        for _ in range(3):
            order = rng.permutation(30)
            predictor.observe(order, counts[order], np.full(30, 8))
        for size in (1, 7, 30):
            order = rng.permutation(30)
            for start in range(0, 30, size):
                part = order[start : start + size]
                got, alone = predictor.predict(part), predictor.predict(part // 5 * 5)
                np.testing.assert_array_equal(got.mean, alone.mean)
                np.testing.assert_array_equal(got.variance, alone.variance)


class TestWhoIsBelieved:
    def test_an_unseen_prompt_has_its_prior_far_from_everything(self):
        x = np.vstack([np.random.default_rng(0).normal(size=(6, 3)), np.full((1, 3), 1e4)])
        predictor = HierarchicalPredictor(x, **PINNED, bandwidth=0.5, prior_mean=-0.7)
        for _ in range(10):
            predictor.observe(range(6), np.full(6, 7), np.full(6, 8))
        far = predictor.predict([6])
        assert far.mean[0] == pytest.approx(-0.7, abs=1e-6)
        assert far.variance[0] == pytest.approx(0.7 + HierarchicalPredictor.DEFAULTS.scale**2, abs=1e-6)

    def test_embeddings_speak_for_the_unseen_and_the_record_for_the_often_seen(self):
        """Two clusters, one solved, one not; one prompt in the solved cluster fails."""
        rng = np.random.default_rng(0)
        x = np.vstack([rng.normal(size=(20, 4)) + side for side in (-4, 4)])
        predictor, seen = HierarchicalPredictor(x, **{**EXACT, "learn": True}), [*range(19), *range(20, 39)]
        solved = np.array([7] * 19 + [1] * 19)
        solved[0] = 0
        for _ in range(12):
            predictor.observe(seen, solved, np.full(38, 8))
        belief = predictor.predict([0, 19, 39])
        rate = belief.success_probability()
        assert rate[0] < 0.1
        assert rate[1] > 0.7
        assert rate[2] < 0.3
        assert belief.variance[1] > 2 * predictor.predict([1]).variance[0]

    def test_a_forgotten_record_gives_way_to_the_embedding(self):
        x = np.random.default_rng(0).normal(size=(4, 3))
        predictor = HierarchicalPredictor(x, **{**PINNED, "prompt_drift": 0.5}, scale=1e-3, prior_mean=1.0)
        predictor.observe([0], [0], [32])
        before = predictor.predict([0])
        for _ in range(200):
            predictor.observe([1], [4], [8])
        after = predictor.predict([0])
        assert before.mean[0] < after.mean[0] < 1.0
        assert before.variance[0] < after.variance[0] < 0.7
        assert after.variance[0] == pytest.approx(0.7, abs=0.02)


class TestInput:
    def test_nothing_visited_is_no_step(self):
        x, rounds = scenario(3)
        predictor = run(HierarchicalPredictor(x), rounds)
        one, other = HierarchicalPredictor(x), run(HierarchicalPredictor(x), rounds)
        for ids in ([], [0, 1]):
            one.observe(ids, [0] * len(ids), [0] * len(ids))
            other.observe(ids, [0] * len(ids), [0] * len(ids))
        assert_close(run(one, rounds).predict(range(8)), predictor.predict(range(8)), atol=0)
        assert_close(other.predict(range(8)), predictor.predict(range(8)), atol=0)
        assert other.state_dict()["step"] == len(rounds)

    def test_prompts_without_trials_do_not_count_as_visited(self):
        one, other = HierarchicalPredictor(), HierarchicalPredictor()
        one.observe(["a", "b", "c"], [3, 0, 1], [8, 0, 4])
        other.observe(["a", "c"], [3, 1], [8, 4])
        assert_close(one.predict(["a", "b", "c"]), other.predict(["a", "b", "c"]), atol=0)
        assert one.state_dict()["ids"].tolist() == other.state_dict()["ids"].tolist()

    def test_no_prompts_have_no_beliefs(self):
        x, rounds = scenario(4)
        for predictor in (HierarchicalPredictor(), HierarchicalPredictor(x), run(HierarchicalPredictor(x), rounds)):
            assert len(predictor.predict([])) == 0

    def test_before_the_first_outcome_all_prompts_are_alike(self):
        x, _ = scenario(5)
        belief = HierarchicalPredictor(x).predict(range(8))
        assert len(set(belief.mean)) == len(set(belief.variance)) == 1
        assert belief.variance[0] > 0


@settings(max_examples=40)
@given(
    seeds,
    st.sampled_from([-40.0, -5.0, 0.0, 40.0]),
    st.sampled_from([1e-6, 1.0, 1e4]),
    st.sampled_from([1e-6, 1.0, 1e4]),
    st.sampled_from([1, 32, 10_000]),
    st.booleans(),
)
def test_extreme_priors_and_counts_stay_finite(seed, mean, level, own, trials, learn):
    x, _ = scenario(seed)
    rng = np.random.default_rng(seed)
    extreme = {"prior_mean": mean, "prior_variance": level, "unseen_variance": own, "prompt_variance": own}
    predictor = HierarchicalPredictor(x, **extreme, scale=np.sqrt(own), learn=learn)
    for _ in range(4):
        rows = rng.choice(8, 5, replace=False)
        predictor.observe(rows, trials * rng.integers(0, 2, 5), np.full(5, trials))
        belief = predictor.predict(range(8))
        assert np.isfinite(belief.mean).all()
        assert np.isfinite(belief.variance).all()
        assert (belief.variance >= 0).all()
