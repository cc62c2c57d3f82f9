"""The toy: its gradients are exact, its measurements those of the exact effective weights, its costs what was told."""

import numpy as np
import pytest
import torch

from allotment import VIP, Uniform
from allotment.errors import InvalidInputError
from allotment.learning import effective_weights
from allotment.prediction import DiscountedCounts
from allotment.selection import Selection, Stateless
from theory.toy import Policy, Toy, measured_weights

P = np.array([0.05, 0.3, 0.5, 0.9])


def uniform(seed, budget=8 * 16):
    return Uniform(budget=budget, seed=seed, predictor=DiscountedCounts())


def test_the_gradient_is_that_of_autograd():
    policy = Policy.of(P)
    logits_QA = torch.from_numpy(np.log(policy.chances_QA)).requires_grad_()
    success = logits_QA.softmax(1)[:, 0]
    np.testing.assert_allclose(success.detach(), P)
    success.sum().backward()
    np.testing.assert_allclose(policy.gradients(), logits_QA.grad, atol=1e-15)
    entropy_Q = torch.distributions.Categorical(logits=logits_QA).entropy()
    np.testing.assert_allclose(policy.entropies(), entropy_Q.detach())


def test_answers_come_with_their_chances():
    policy, n = Policy.of(P), 40_000
    rows_N = np.arange(n) % len(P)
    answers_N = policy.sample(rows_N, np.random.default_rng(0))
    shares_QA = np.array([np.bincount(answers_N[rows_N == q], minlength=4) for q in range(len(P))]) / (n / len(P))
    errors_QA = np.sqrt(policy.chances_QA * (1 - policy.chances_QA) / (n / len(P)))
    assert np.all(np.abs(shares_QA - policy.chances_QA) < 4 * errors_QA)


@pytest.mark.parametrize("estimator", ["rloo", "dr_grpo", "grpo"])
def test_measured_weights_of_equal_groups_are_the_exact_ones(estimator):
    measured = measured_weights(uniform, P, 12, warm_up=0, estimator=estimator)
    exact_P = effective_weights(P, np.full(len(P), 8), estimator) * len(P)
    assert np.all(np.abs(measured.weights_P - exact_P) < 4 * measured.errors_P)
    assert measured.errors_P.max() < 0.2
    np.testing.assert_array_equal(measured.generated_P, 8)
    np.testing.assert_array_equal(measured.trained_P, 8)


def test_batch_means_weight_a_prompt_by_its_rollouts():
    def vip(seed):
        return VIP(budget=8 * 16, seed=seed, predictor=DiscountedCounts())

    measured = measured_weights(vip, P, 8, warm_up=5, aggregation="sequence_mean")
    assert np.ptp(measured.generated_P) > 3
    error_P = np.abs(measured.weights_P - measured.generated_P / measured.generated_P.mean())
    assert np.all(error_P < 4 * measured.errors_P)


class Halves(Stateless):
    """Keeps every other rollout of the last two steps, and writes down what it saw."""

    window = 2

    def __init__(self):
        self.seen = []

    def select(self, scored):
        self.seen.append(scored)
        return Selection((scored.numbers_N % 2).astype(float), denominator="kept", baseline="kept")


def test_a_selector_sees_the_window_with_ages_and_numbers():
    selector = Halves()
    toy = Toy(Policy.of(P), uniform(0, budget=32), selector, steps=4)
    steps = [toy.step() for _ in range(4)]
    first, second, *_, last = selector.seen
    assert (len(first), len(second), len(last)) == (32, 64, 64)
    assert second.ages_Q.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert second.prompt_ids == (0, 1, 2, 3, 0, 1, 2, 3)
    assert (first.progress, last.progress, len({*last.prompt_ids})) == (0.25, 1.0, 4)
    np.testing.assert_array_equal(second.numbers_N[:32], first.numbers_N)
    np.testing.assert_array_equal(second.rewards_N[:32], first.rewards_N)
    np.testing.assert_array_equal(np.unique(last.numbers_N), np.arange(64, 128))
    np.testing.assert_allclose(np.bincount(last.rows_N, last.advantages_N), 0, atol=1e-12)
    assert [int(step.trained_Q.sum()) for step in steps] == [16, 32, 32, 32]
    assert all(step.generated_Q.tolist() == [8] * 4 for step in steps)


def test_two_rounds_are_unbiased_with_their_own_advantages():
    def vip(seed):
        return VIP(budget=6 * 16, seed=seed, rounds=2, predictor=DiscountedCounts())

    measured = measured_weights(vip, P, 8, warm_up=2)
    assert np.all(np.abs(measured.weights_P - 1) < 4 * measured.errors_P)
    assert measured.generated_P.mean() == pytest.approx(6)


def test_runs_are_repeatable():
    one, other = (measured_weights(uniform, P, 2, warm_up=1, runs=2) for _ in range(2))
    np.testing.assert_array_equal(one.weights_P, other.weights_P)
    np.testing.assert_array_equal(one.errors_P, other.errors_P)


def test_refusals():
    for p in ([0.0], [0.5, 1.0], [[0.5]]):
        with pytest.raises(InvalidInputError, match="inside"):
            Policy.of(p)
    with pytest.raises(InvalidInputError, match="runs"):
        measured_weights(uniform, P, runs=1)
