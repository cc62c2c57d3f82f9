"""The arithmetic of ragged groups, once, and the checks of tensors that losses and advantages share."""

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


def checked_mask(mask_NT: Tensor, rollouts: int) -> Tensor:
    """[N, T] the mask as bool.

    Raises :class:`~allotment.errors.InvalidInputError` for another shape or values other than 0 and 1.
    """
    if mask_NT.ndim != 2 or len(mask_NT) != rollouts or not ((mask_NT == 0) | (mask_NT == 1)).all():
        raise InvalidInputError(
            "The token mask cannot be used.",
            got=f"shape {tuple(mask_NT.shape)}, dtype {mask_NT.dtype}",
            allowed=f"shape [{rollouts}, T], values 0 and 1 only",
            fix="pass the response mask; multiply token weights into the token loss instead",
        )
    return mask_NT.bool()


def check_per_rollout(name: str, values_N: Tensor, group_ids_N: Tensor) -> None:
    """Raise :class:`~allotment.errors.InvalidInputError` unless there is one value for each group id."""
    if values_N.shape != group_ids_N.shape:
        raise InvalidInputError(
            f"The {name} and the group ids do not fit together.",
            got=f"{name} {tuple(values_N.shape)}, group ids {tuple(group_ids_N.shape)}",
            allowed="both [N]",
            fix="give one of each per rollout, flat, in the same order",
        )


def check_finite(what: str, values: Tensor, *, allowed: str = "finite numbers", fix: str) -> None:
    """Raise :class:`~allotment.errors.InvalidInputError` at the first value that is not finite.

    ``what`` names a value, with ``{}`` for each of its indices: ``"The reward at index {}"``.
    """
    is_bad = ~torch.isfinite(values)
    if is_bad.any():
        index = tuple(is_bad.nonzero()[0].tolist())
        got = float(values.detach()[index])
        raise InvalidInputError(f"{what.format(*index)} is not finite", got=got, allowed=allowed, fix=fix)
