"""What each combination optimises, against policies whose gradient is known exactly."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

from allotment.errors import ConfigError, InvalidInputError
from allotment.learning import (
    advantage_estimator,
    aggregate,
    clipped_surrogate,
    effective_weights,
    rloo_advantages,
    rollout_weights,
)

ADVANTAGES = ["rloo", "dr_grpo", "grpo"]
AGGREGATIONS = ["prompt_mean", "sequence_mean", "token_mean"]
P = np.array([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98])
ALLOCATIONS = {
    "uniform": np.full(7, 8),
    "adaptive": np.array([4, 7, 10, 12, 10, 8, 5]),
    "wide": np.array([32, 3, 5, 2, 9, 3, 2]),
}
allocations = pytest.mark.parametrize("counts", ALLOCATIONS.values(), ids=ALLOCATIONS.keys())


class TwoTokenPolicy:
    """Per prompt q three answers: ``[1]``, ``[0, 0]`` and ``[0, 1]``, from four logits; lengths 1, 2 and 2.

    ``right[q]`` says which answer is right, so length goes with correctness in one direction or the other.
    """

    tokens_AT = torch.tensor([[1, 0], [0, 0], [0, 1]])
    mask_AT = torch.tensor([[True, False], [True, True], [True, True]])

    def __init__(self, logits_Q22, right):
        self.logits_Q22 = torch.tensor(logits_Q22, dtype=torch.float64, requires_grad=True)
        self.right = right

    def log_probs(self):
        log_Q22 = self.logits_Q22.log_softmax(-1)  # [prompt, position, token]
        chosen = [log_Q22[:, t, self.tokens_AT[:, t]] for t in range(2)]
        return torch.stack(chosen, -1) * self.mask_AT

    def success_gradients(self):
        """The true gradient of each prompt's own success probability (prompts share no parameter)."""
        p_Q = self.log_probs().sum(-1).exp()[torch.arange(len(self.right)), self.right]
        return torch.autograd.grad(p_Q.sum(), self.logits_Q22)[0]

    def expected_step(self, counts, advantage, aggregation, **options):
        """Minus the expected gradient of the loss, over every multiset of answers, by the path that training runs."""
        answer_chances_QA = self.log_probs().sum(-1).exp().detach()
        total = torch.zeros((), dtype=torch.float64)
        outcomes = [list(itertools.combinations_with_replacement(range(3), n)) for n in counts]
        for batch in itertools.product(*outcomes):
            chance = math.prod(multiset_chance(own, answer_chances_QA[q].tolist()) for q, own in enumerate(batch))
            total = total + chance * self.loss(batch, advantage, aggregation, **options)
        return -torch.autograd.grad(total, self.logits_Q22)[0]

    def loss(self, batch, advantage, aggregation, **options):
        pairs = [(q, a) for q, own in enumerate(batch) for a in own]
        pairs = pairs[::2] + pairs[1::2]  # interleaved groups
        ids_N, answers_N = torch.tensor(pairs).T
        rewards_N = (answers_N == torch.tensor(self.right)[ids_N]).double()
        log_probs_NT, mask_NT = self.log_probs()[ids_N, answers_N], self.mask_AT[answers_N]
        advantages_N = advantage_estimator(advantage)(rewards_N, ids_N)
        loss = clipped_surrogate(log_probs_NT, log_probs_NT.detach(), advantages_N, mask_NT)
        return aggregate(loss.values_NT, ids_N, mask_NT, aggregation, **options)


def multiset_chance(own, chances):
    occurrences = [own.count(a) for a in range(len(chances))]
    orders = math.factorial(len(own)) // math.prod(math.factorial(c) for c in occurrences)
    return orders * math.prod(p**c for p, c in zip(chances, occurrences, strict=True))


@pytest.fixture
def policy():
    return TwoTokenPolicy([[[0.3, -0.9], [0.2, 0.7]], [[-0.4, 0.8], [1.1, -0.3]]], right=[2, 0])


COUNTS = (2, 4)


@pytest.mark.parametrize(
    ("advantage", "aggregation", "weights"),
    [
        ("rloo", "prompt_mean", [1 / 2, 1 / 2]),
        ("dr_grpo", "prompt_mean", [1 / 2 * 1 / 2, 1 / 2 * 3 / 4]),
        ("rloo", "sequence_mean", [2 / 6, 4 / 6]),
        ("dr_grpo", "sequence_mean", [2 / 6 * 1 / 2, 4 / 6 * 3 / 4]),
    ],
)
@pytest.mark.parametrize("length", ["sum", 7])
def test_whole_gradient_with_lengths_summed(policy, advantage, aggregation, weights, length):
    """Not only the projection: every component of the expected step is the weight times the true gradient."""
    step = policy.expected_step(COUNTS, advantage, aggregation, length=length)
    scale = 1 if length == "sum" else length
    expected = torch.tensor(weights)[:, None, None] * policy.success_gradients() / scale
    torch.testing.assert_close(step, expected)


def test_length_mean_ignores_the_counts_but_follows_another_gradient(policy):
    """It follows E[(r - p) grad log pi / |o|]: the same for every n_q, but not parallel to the gradient of p."""
    step = policy.expected_step(COUNTS, "rloo", "prompt_mean")
    torch.testing.assert_close(step, policy.expected_step((3, 2), "rloo", "prompt_mean"))
    log_QA = policy.log_probs().sum(-1)
    chances_QA = log_QA.detach().exp()
    reward_QA = torch.nn.functional.one_hot(torch.tensor(policy.right), 3)
    p_Q1 = (chances_QA * reward_QA).sum(1, keepdim=True)
    followed = (chances_QA * (reward_QA - p_Q1) / policy.mask_AT.sum(1) * log_QA).sum() / 2
    torch.testing.assert_close(step, torch.autograd.grad(followed, policy.logits_Q22)[0])
    true = policy.success_gradients()
    assert float(torch.cosine_similarity(step[0].flatten(), true[0].flatten(), dim=0)) < 0.999


class LogitPolicy(TwoTokenPolicy):
    """Answers right (``tokens_AT`` row 0) and wrong (row 1), one logit, lengths as given; the first token decides."""

    def __init__(self, p, lengths):
        self.p, self.right = p, [0] * len(p)
        self.mask_AT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        self.logits_Q22 = torch.tensor(p, dtype=torch.float64).logit().requires_grad_()

    def log_probs(self):
        first_QA = torch.stack([self.logits_Q22, -self.logits_Q22], 1).sigmoid().log()
        rest_QAT = torch.zeros(*first_QA.shape, self.mask_AT.shape[1] - 1, dtype=torch.float64)
        return torch.cat([first_QA[..., None], rest_QAT], -1)

    def expected_step(self, counts, advantage, aggregation, **options):
        total = torch.zeros((), dtype=torch.float64)
        for successes in itertools.product(*(range(n + 1) for n in counts)):
            chance = math.prod(binom.pmf(k, n, p) for k, n, p in zip(successes, counts, self.p, strict=True))
            batch = [[0] * k + [1] * (n - k) for k, n in zip(successes, counts, strict=True)]
            total = total + chance * self.loss(batch, advantage, aggregation, **options)
        return -torch.autograd.grad(total, self.logits_Q22)[0]


@pytest.mark.parametrize("advantage", ADVANTAGES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("lengths", [(1, 1), (1, 3), (3, 2)])
def test_exact_weights_are_those_of_the_training_path(advantage, aggregation, lengths):
    p, counts = [0.1, 0.5, 0.8], [2, 4, 3]
    step = LogitPolicy(p, lengths).expected_step(counts, advantage, aggregation).numpy()
    got = effective_weights(p, counts, advantage, aggregation, right_length=lengths[0], wrong_length=lengths[1])
    np.testing.assert_allclose(got, step / (np.array(p) * (1 - np.array(p))), rtol=1e-9)


@allocations
def test_rloo_with_prompt_mean_keeps_the_objective_whatever_the_counts(counts):
    np.testing.assert_allclose(effective_weights(P, counts), 1 / 7, rtol=1e-9)
    summed = effective_weights(P, counts, length="sum", right_length=4, wrong_length=[10, 2, 4, 4, 9, 1, 10])
    np.testing.assert_allclose(summed, 1 / 7, rtol=1e-9)


@allocations
def test_dr_grpo_shrinks_by_n_minus_one_over_n(counts):
    np.testing.assert_allclose(effective_weights(P, counts, "dr_grpo"), (counts - 1) / counts / 7, rtol=1e-9)


@allocations
@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean"])
def test_batch_means_weight_a_prompt_by_its_rollouts(counts, aggregation):
    np.testing.assert_allclose(effective_weights(P, counts, "rloo", aggregation), counts / counts.sum(), rtol=1e-9)


@allocations
def test_length_mean_weights_by_the_inverse_lengths(counts):
    right, wrong = 4, 10
    got = effective_weights(P, counts, right_length=right, wrong_length=wrong)
    np.testing.assert_allclose(got, ((1 - P) / right + P / wrong) / 7, rtol=1e-9)


@allocations
def test_token_mean_with_lengths_stays_close_to_rollouts_per_expected_token(counts):
    """Not exact: the tokens of the batch vary with the successes. Within 12 % here, where wrong answers are longer."""
    tokens = float(counts @ (4 * P + 10 * (1 - P)))
    got = effective_weights(P, counts, "rloo", "token_mean", right_length=4, wrong_length=10)
    np.testing.assert_allclose(got, counts / tokens, rtol=0.12)


@allocations
def test_grpo_is_the_expected_ratio_of_variance_to_deviation(counts):
    expected = []
    for p, n in zip(P, counts, strict=True):
        k = np.arange(n + 1)
        rate = k / n
        deviation = np.sqrt(n / (n - 1) * rate * (1 - rate))
        step = np.divide(rate * (1 - rate), deviation + 1e-4)
        expected.append(binom.pmf(k, n, p) @ step / (p * (1 - p)) / 7)
    np.testing.assert_allclose(effective_weights(P, counts, "grpo"), expected, rtol=1e-9)


def test_grpo_approaches_one_over_the_deviation_and_saturates_for_rare_success():
    ideal = 1 / np.sqrt(P * (1 - P))
    many = effective_weights(P, np.full(7, 500), "grpo") * 7
    np.testing.assert_allclose(many, ideal, rtol=0.03)
    for n in (3, 8, 32):
        rare = effective_weights([1e-5], [n], "grpo")[0]
        assert rare == pytest.approx((n - 1) / math.sqrt(n), rel=2e-3)
        grid = np.linspace(0.001, 0.999, 99)
        assert np.all(effective_weights(grid, np.full(99, n), "grpo") * 99 <= (n - 1) / math.sqrt(n) + 1e-9)


def test_sampled_training_steps_agree_with_the_exact_weights():
    """Monte Carlo, 4 sigma: token_mean, long wrong answers, unequal groups, real batches in random order."""
    counts, generator = np.array([3, 8, 10, 12, 10, 8, 5]), torch.Generator().manual_seed(1)
    exact = effective_weights(P, counts, "rloo", "token_mean", right_length=2, wrong_length=6)
    ids_N = torch.arange(7).repeat_interleave(torch.tensor(counts))
    p_N = torch.tensor(P)[ids_N]
    steps = []
    for _ in range(1500):
        order = torch.randperm(len(ids_N), generator=generator)
        rewards_N = (torch.rand(len(ids_N), generator=generator) < p_N)[order].double()
        mask_NT = torch.arange(6) < torch.where(rewards_N == 1, 2, 6)[:, None]
        weights_N = rollout_weights(ids_N[order], mask_NT, "token_mean", dtype=torch.float64)[:, 0]
        step_N = rloo_advantages(rewards_N, ids_N[order]) * weights_N * (rewards_N - p_N[order])
        steps.append(torch.zeros(7, dtype=torch.float64).index_add(0, ids_N[order], step_N))
    steps_BQ = torch.stack(steps).numpy() / (P * (1 - P))
    error = steps_BQ.std(0, ddof=1) / math.sqrt(len(steps_BQ))
    assert np.all(np.abs(steps_BQ.mean(0) - exact) < 4 * error)


@pytest.mark.parametrize(
    ("p", "counts", "length"),
    [([0.0], [3], 1), ([1.0], [3], 1), ([0.5], [0], 1), ([0.5], [3, 3], 1), ([0.5], [3], 0), ([], [], 1)],
)
def test_refusals(p, counts, length):
    with pytest.raises(InvalidInputError, match="cannot be computed"):
        effective_weights(p, counts, right_length=length)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError):
        effective_weights([0.5], [3], "reinforce")
    with pytest.raises(ConfigError):
        effective_weights([0.5], [3], "rloo", "mean")
