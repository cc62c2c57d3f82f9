"""Which rollouts of a prompt are compared: from ragged groups of scores to pairs of chosen and rejected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from allotment.errors import InvalidInputError
from allotment.learning.checks import check_finite, check_per_rollout
from allotment.learning.groups import group

PairsName = Literal["all", "extreme"]


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
