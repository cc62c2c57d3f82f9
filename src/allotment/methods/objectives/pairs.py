"""Which rollouts of a prompt are compared, and which comparisons count.

The latter is decided before a label is known: the practical form of the coverage paper's hybrid sampler and of its
coverage number (arXiv 2601.08421), both a reconstruction. Features of a rollout are its mean hidden state, as if the
policy were linear in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from allotment.errors import InvalidInputError
from allotment.learning.groups import check_finite, check_per_rollout, group
from allotment.methods.objectives.optimal_design import coverage_number, preferential_design, within_group_covariance

PairsName = Literal["all", "extreme"]
MOST_CANDIDATES = 512
"""Pairs that a design is made over; of more, as many are taken at even distances."""
ITERATIONS = 200
TOLERANCE = 0.1
"""The search stops where the largest leverage is within this share of the least possible."""


@dataclass(frozen=True)
class Pairs:
    """P comparisons of two rollouts of one prompt, from Q prompts. Make it with :func:`preference_pairs`."""

    chosen_P: Tensor
    """[P] int64, row of the rollout that scores higher."""
    rejected_P: Tensor
    """[P] int64, row of the other."""
    group_P: Tensor
    """[P] int64, position of the prompt among the distinct group ids, ascending."""
    shares_P: Tensor
    """[P] share of the comparison in its prompt: over all comparisons of a prompt, ties included, they sum to 1."""
    groups: int
    """Q, prompts that were looked at."""

    def __len__(self) -> int:
        return len(self.chosen_P)

    @property
    def without_pair(self) -> int:
        """Prompts without a comparison: one rollout alone, or nothing but ties."""
        return self.groups - len(torch.unique(self.group_P))


def preference_pairs(scores_N: Tensor, group_ids_N: Tensor, which: PairsName = "all", *, ties: bool = False) -> Pairs:
    """Pairs within groups, the higher score chosen.

    ``all``: every pair of a group, with the share ``2 / (n (n - 1))``: sums over a prompt's pairs are then means over
    all its comparisons, where a tie counts nothing, and their expectation does not depend on n.
    ``extreme``: the best and the worst of n, the first of equals, with the share 1; what they are depends on n.

    ``scores_N``: [N] finite. ``group_ids_N``: [N] integer. ``ties``: whether pairs of equal scores are returned too
    (the earlier row is then called chosen). Groups of one rollout, and without ``ties`` those with equal scores alone,
    have no pair: :attr:`Pairs.without_pair` counts them.

    Raises :class:`~allotment.errors.InvalidInputError` for scores that are not finite, shapes that do not fit, or
    another name.
    """
    _check(scores_N, group_ids_N, which)
    groups = group(group_ids_N)
    chosen, rejected, owners = [], [], []
    for q in range(len(groups)):
        rows_n = (groups.index_N == q).nonzero().squeeze(1)
        best_p, worst_p = _compared(scores_N[rows_n], which, ties)
        chosen.append(rows_n[best_p])
        rejected.append(rows_n[worst_p])
        owners.append(torch.full_like(best_p, q))
    group_P = torch.cat(owners)
    sizes_P = groups.sizes_Q[group_P]
    pairs_P = sizes_P * (sizes_P - 1) // 2 if which == "all" else torch.ones_like(sizes_P)
    return Pairs(torch.cat(chosen), torch.cat(rejected), group_P, 1 / pairs_P.double(), len(groups))


def _compared(scores_n: Tensor, which: PairsName, ties: bool) -> tuple[Tensor, Tensor]:
    """Chosen and rejected of one group, as places in it."""
    if which == "extreme":
        best, worst = scores_n.argmax().reshape(1), scores_n.argmin().reshape(1)
        has_pair = len(scores_n) > 1 and (ties or bool(scores_n[best] > scores_n[worst]))
        if bool(best == worst):  # all equal: any two
            worst = best + 1
        return (best, worst) if has_pair else (best[:0], worst[:0])
    above_nn = scores_n[:, None] > scores_n[None, :]
    if ties:
        above_nn = above_nn | (scores_n[:, None] == scores_n[None, :]).triu(1)
    best_p, worst_p = above_nn.nonzero(as_tuple=True)
    return best_p, worst_p


def _check(scores_N: Tensor, group_ids_N: Tensor, which: PairsName) -> None:
    check_per_rollout("scores", scores_N, group_ids_N)
    check_finite(
        "The score of rollout {}",
        scores_N,
        allowed="finite scores, which can be compared",
        fix="give a rollout that could not be judged the lowest score, or leave it out",
    )
    if which not in get_args(PairsName):
        raise InvalidInputError(
            "There are no such pairs.", got=repr(which), allowed="all, extreme", fix="choose one of them"
        )


def mean_hidden(hidden_NTH: Tensor, mask_NT: Tensor) -> Tensor:
    """[N, H] mean hidden state over the tokens of each rollout; 0 for one without tokens."""
    summed_NH = torch.where(mask_NT[:, :, None], hidden_NTH.detach(), 0.0).sum(1)
    return summed_NH / mask_NT.sum(1).clamp(min=1)[:, None]


def design_shares(group_ids_N: Tensor, features_NH: Tensor, scores_N: Tensor, share: float) -> Tensor:
    """[N, N] shares of comparisons, symmetric: the even ones mixed with a preferential G-optimal design over the batch.

    The even ones are those of :func:`preference_pairs`. The design is one
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

    ``coverage_number``: :func:`~allotment.methods.objectives.optimal_design.coverage_number` of the current policy
    against the one that drew, with covariances of the features centred in each prompt; 1 where they are equal.
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
