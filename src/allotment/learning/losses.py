"""Token losses. One form for all: log-probabilities in, a :class:`TokenLoss` out, aggregation left to the caller.

A loss does not average. What gates tokens (a trust region) or re-weights them (an importance correction) multiplies
``values_NT``; the weights of :func:`~allotment.learning.aggregation.rollout_weights` then make the scalar.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from allotment.errors import InvalidInputError
from allotment.learning.groups import check_finite, checked_mask


@dataclass(frozen=True)
class TokenLoss:
    """What every loss returns."""

    values_NT: Tensor
    """[N, T] loss of every token, with gradient; exactly 0 outside the mask."""
    metrics: Mapping[str, Tensor]
    """Scalars for the log, [] each, without gradient; plain means over the tokens of the mask."""


def clipped_surrogate(
    log_probs_NT: Tensor,
    old_log_probs_NT: Tensor,
    advantages_N: Tensor,
    mask_NT: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> TokenLoss:
    """The surrogate of PPO, as a loss: ``-min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A)`` for each token.

    With ``old_log_probs_NT = log_probs_NT.detach()`` the ratio is 1 and the gradient is that of ``-A log pi``: the
    policy gradient. Clipping is one-sided: above ``1 + clip_high`` for A > 0, below ``1 - clip_low`` for A < 0.

    ``log_probs_NT``, ``old_log_probs_NT``: [N, T] natural logarithms; the old ones get no gradient.
    ``advantages_N``: [N]. ``mask_NT``: [N, T] bool or 0/1; outside it log-probabilities may be anything.
    Metrics: ``clip_fraction`` (tokens whose gradient the clip removes), ``mean_ratio``.

    Raises :class:`~allotment.errors.InvalidInputError` for shapes that do not fit, a log-ratio or an advantage that is
    not finite, ``clip_low`` outside [0, 1] or ``clip_high < 0``. Source: Schulman et al. 2017 (arXiv 1707.06347);
    unequal clips from DAPO (arXiv 2503.14476); VIP (arXiv 2602.01601) eq. 1-3.
    """
    mask_NT = checked_mask(mask_NT, len(log_probs_NT))
    _check(log_probs_NT, old_log_probs_NT, advantages_N, mask_NT, clip_low, clip_high)
    log_ratio_NT = torch.where(mask_NT, log_probs_NT - old_log_probs_NT.detach(), 0.0)
    allowed, fix = "finite numbers inside the mask", "check the mask, and that both policies can produce this token"
    check_finite("The log-ratio at index ({}, {})", log_ratio_NT, allowed=allowed, fix=fix)
    check_finite("The advantage at index ({},)", advantages_N, allowed=allowed, fix=fix)
    ratio_NT = log_ratio_NT.exp()
    advantages_N1 = advantages_N.detach().to(ratio_NT.dtype)[:, None]
    free_NT = ratio_NT * advantages_N1
    clipped_NT = ratio_NT.clamp(1 - clip_low, 1 + clip_high) * advantages_N1
    values_NT = -torch.where(mask_NT, torch.minimum(free_NT, clipped_NT), 0.0)
    with torch.no_grad():
        metrics = {
            "clip_fraction": masked_mean(clipped_NT < free_NT, mask_NT),
            "mean_ratio": masked_mean(ratio_NT, mask_NT),
        }
    return TokenLoss(values_NT, metrics)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """[] the mean of values over the places of a mask of the same shape; 0 without any."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def _check(new_NT: Tensor, old_NT: Tensor, advantages_N: Tensor, mask_NT: Tensor, low: float, high: float) -> None:
    shapes = [tuple(x.shape) for x in (new_NT, old_NT, advantages_N, mask_NT)]
    if not (shapes[0] == shapes[1] == shapes[3] and shapes[2] == shapes[0][:1]):
        raise InvalidInputError(
            "The tensors of the surrogate do not fit together.",
            got=f"log_probs {shapes[0]}, old_log_probs {shapes[1]}, advantages {shapes[2]}, mask {shapes[3]}",
            allowed="[N, T], [N, T], [N], [N, T]",
            fix="one row per rollout, in the same order everywhere",
        )
    if not (0 <= low <= 1 and high >= 0):
        raise InvalidInputError(
            "The clip range cannot be used.",
            got=f"clip_low={low}, clip_high={high}",
            allowed="0 <= clip_low <= 1, clip_high >= 0",
            fix="use 0.2 and 0.2 (PPO) or 0.2 and 0.28 (DAPO)",
        )
