"""Checks of tensors that losses and advantages share."""

from __future__ import annotations

import torch
from torch import Tensor

from allotment.errors import InvalidInputError


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
