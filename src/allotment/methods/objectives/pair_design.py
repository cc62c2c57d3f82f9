"""Which comparisons of a batch count, decided before a label is known; and how well the sampler covers the policy.

The practical form of the coverage paper's hybrid sampler and of its coverage number (arXiv 2601.08421), both a
reconstruction: features of a rollout are its mean hidden state, as if the policy were linear in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from allotment.learning.groups import group
from allotment.methods.objectives.coverage import coverage_number, within_group_covariance
from allotment.methods.objectives.optimal_design import preferential_design
from allotment.methods.objectives.pairs import preference_pairs

MOST_CANDIDATES = 512
"""Pairs that a design is made over; of more, as many are taken at even distances."""
ITERATIONS = 200
TOLERANCE = 0.1
"""The search stops where the largest leverage is within this share of the least possible."""


def mean_hidden(hidden_NTH: Tensor, mask_NT: Tensor) -> Tensor:
    """[N, H] mean hidden state over the tokens of each rollout; 0 for one without tokens."""
    summed_NH = torch.where(mask_NT[:, :, None], hidden_NTH.detach(), 0.0).sum(1)
    return summed_NH / mask_NT.sum(1).clamp(min=1)[:, None]


def design_shares(group_ids_N: Tensor, features_NH: Tensor, scores_N: Tensor, share: float) -> Tensor:
    """[N, N] shares of comparisons, symmetric: the even ones mixed with a preferential G-optimal design over the batch.

    The even ones are those of :func:`~allotment.methods.objectives.pairs.preference_pairs`. The design is one
    distribution over the pairs of all prompts together (so it weights prompts too), times the number of prompts that
    have a pair: over all pairs, the mixture sums to as much as the even shares. Pairs whose features are equal get
    nothing of it; where all are, the shares stay even. Rewards are not looked at.

    Args:
        group_ids_N: [N] integer.
        features_NH: [N, H] of rollouts.
        scores_N: [N] implicit reward of each rollout under the current policy; differences are a pair's margin.
        share: of the design in the mixture, in [0, 1].

    Raises:
        InvalidInputError: a feature or a score is not finite.
    """
    every = preference_pairs(torch.zeros(len(group_ids_N)), group_ids_N, ties=True)
    first_P, second_P, count = every.chosen_P, every.rejected_P, len(every)
    shares_P = every.shares_P.double()
    rows_K = torch.arange(count)
    if count > MOST_CANDIDATES:
        rows_K = torch.linspace(0, count - 1, MOST_CANDIDATES, dtype=torch.float64).round().long()
    differences_KH = (features_NH[first_P] - features_NH[second_P])[rows_K].double()
    if differences_KH.any():
        margins_K = (scores_N[first_P] - scores_N[second_P])[rows_K].double()
        design = preferential_design(
            differences_KH.numpy(), margins_K.numpy(), iterations=ITERATIONS, tolerance=TOLERANCE
        )
        total, shares_P = shares_P.sum(), (1 - share) * shares_P
        shares_P[rows_K] += share * total * torch.from_numpy(design.weights_K)
    shares_NN = torch.zeros(len(group_ids_N), len(group_ids_N), dtype=torch.float64)
    shares_NN[first_P, second_P] = shares_NN[second_P, first_P] = shares_P
    return shares_NN


def coverage_metrics(
    features_NH: Tensor, group_ids_N: Tensor, log_weights_N: Tensor, ridge: float
) -> dict[str, Tensor]:
    """How much more the policy varies than what was sampled, and on how much of the sample that rests.

    ``coverage_number``: :func:`~allotment.methods.objectives.coverage.coverage_number` of the current policy against
    the one that drew, with covariances of the features centred in each prompt; 1 where they are equal.
    ``coverage_sample``: effective sample size under the importance weights, a share, mean over prompts; where it is
    small, weights lie on a rollout or two of each prompt, and the coverage number is too low.

    ``log_weights_N``: [N] log-ratio of whole rollouts, current policy to the one that drew; normalised in each group.
    """
    groups = group(group_ids_N)
    largest_Q = torch.full((len(groups),), -torch.inf, dtype=log_weights_N.dtype)
    largest_Q = largest_Q.scatter_reduce(0, groups.index_N, log_weights_N, "amax")
    weights_N = (log_weights_N - largest_Q[groups.index_N]).exp().double()
    features, ids = features_NH.double().numpy(), group_ids_N.numpy()
    sampler, current = (within_group_covariance(features, ids, given) for given in (None, weights_N.numpy()))
    effective_Q = groups.means(weights_N).square() / groups.means(weights_N.square())
    return {
        "coverage_number": torch.tensor(coverage_number(sampler, current, ridge)),
        "coverage_sample": effective_Q.mean(),
    }
