"""The arithmetic of ragged groups, once: which rollout belongs to which prompt, and what is summed over it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from allotment.errors import InvalidInputError


@dataclass(frozen=True)
class Groups:
    """Rollouts sorted into prompts. Make it with :func:`group`."""

    ids_Q: Tensor
    """[Q] the distinct group ids, ascending."""
    index_N: Tensor
    """[N] int64, position in ``ids_Q`` of every rollout."""
    sizes_Q: Tensor
    """[Q] int64, rollouts of each prompt, >= 1."""

    def __len__(self) -> int:
        """Number of prompts, Q."""
        return len(self.sizes_Q)

    def sizes_per_rollout(self) -> Tensor:
        """[N] int64, the size of the group of every rollout."""
        return self.sizes_Q[self.index_N]

    def sums(self, values_N: Tensor) -> Tensor:
        """[Q] the sum of floating ``values_N`` [N] over each group, in the dtype of the values."""
        return values_N.new_zeros(len(self)).index_add(0, self.index_N, values_N)

    def means(self, values_N: Tensor) -> Tensor:
        """[Q] the mean of floating ``values_N`` [N] over each group."""
        return self.sums(values_N) / self.sizes_Q

    def centred(self, values_N: Tensor) -> Tensor:
        """[N] ``values_N`` minus the mean of the own group.

        Exactly 0 where all values of a group are equal: the least value of the group is subtracted before the mean is
        taken, so that no rounding of the mean is left over (and later divided by a standard deviation near 0).
        """
        low_Q = values_N.new_zeros(len(self)).scatter_reduce(0, self.index_N, values_N, "amin", include_self=False)
        above_N = values_N - low_Q[self.index_N]
        return above_N - self.means(above_N)[self.index_N]


def group(group_ids_N: Tensor) -> Groups:
    """Sort rollouts into groups.

    ``group_ids_N``: [N] integer tensor, any values (negative, sparse, interleaved); equal ids are one prompt.

    Raises :class:`~allotment.errors.InvalidInputError` for a shape other than [N], N = 0, or a dtype that is not
    integer.
    """
    if group_ids_N.ndim != 1 or group_ids_N.numel() == 0:
        raise InvalidInputError(
            "The group ids are not a non-empty vector.",
            got=f"shape {tuple(group_ids_N.shape)}",
            allowed="shape [N] with N >= 1",
            fix="give one id per rollout, flat",
        )
    if group_ids_N.is_floating_point() or group_ids_N.is_complex() or group_ids_N.dtype == torch.bool:
        raise InvalidInputError(
            "The group ids are not integers.",
            got=f"dtype {group_ids_N.dtype}",
            allowed="an integer dtype",
            fix="number the prompts of the batch, for instance by numpy.unique(ids, return_inverse=True)",
        )
    ids_Q, index_N, sizes_Q = torch.unique(group_ids_N, return_inverse=True, return_counts=True)
    return Groups(ids_Q, index_N, sizes_Q)
