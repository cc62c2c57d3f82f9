"""From token losses to one scalar: the weight of every token, stated once.

Every aggregation here is ``loss = sum(weights_NT * token_loss_NT)``. The weights of the *whole* batch are computed once
and sliced together with the micro-batches; the gradients of the micro-batches then add up to that of the whole batch,
however the groups are cut. A process that sees only a part passes what it cannot see (``group_sizes_N``, ``total``).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from allotment.errors import ConfigError, InvalidInputError
from allotment.learning.groups import checked_mask, group

Aggregation = Literal["prompt_mean", "sequence_mean", "token_mean"]
"""What the loss averages over, see :func:`rollout_weights`."""
Length = Literal["mean", "sum"] | float
"""What divides the tokens of a completion: its length, nothing, or a constant number of tokens."""


def rollout_weights(
    group_ids_N: Tensor,
    mask_NT: Tensor,
    aggregation: Aggregation = "prompt_mean",
    *,
    length: Length = "mean",
    group_sizes_N: Tensor | None = None,
    total: float | None = None,
    believed: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """[N, T] the weight of every token in the loss; 0 outside the mask.

    =================  ================================  =========================
    aggregation        weight of a rollout               ``total`` (of the batch)
    =================  ================================  =========================
    ``prompt_mean``    ``1 / (Q n_q)``                   number of prompts Q
    ``sequence_mean``  ``1 / N``                         number of rollouts N
    ``token_mean``     ``tokens / tokens of the batch``  number of tokens
    =================  ================================  =========================

    Within a rollout of ``|o|`` tokens, ``length`` shares the weight out: ``"mean"`` gives ``1 / |o|`` of it to each
    token (VIP and GRPO; weights then sum to 1), ``"sum"`` all of it to each token, a number c ``1 / c`` of it (Dr. GRPO
    with c the generation limit). Only ``"sum"`` and a number give the gradient of the expected reward when lengths
    differ. ``token_mean`` has no choice of length.

    ``group_ids_N``: [N] integer. ``mask_NT``: [N, T] bool or 0/1, the tokens the policy generated. A rollout
    without tokens counts in n_q, Q and N and has weight 0. Leave tokens rejected for other reasons (trust regions)
    in this mask and zero their loss: otherwise the rejection raises the weight of the rest.
    ``group_sizes_N``: [N] n_q of every rollout in the whole batch, where the tensors are a part of it; used by
    ``prompt_mean`` alone. ``total``: the denominator of the table, where the tensors are a part of the batch.
    ``believed``: advantages are those of :func:`~allotment.learning.baseline_advantages`, which are unbiased only where
    no divisor depends on the rollout's length; lengths and aggregations that have one are refused.

    Raises :class:`~allotment.errors.InvalidInputError` for shapes or values that do not fit,
    :class:`~allotment.errors.ConfigError` for an unknown name, a length with ``token_mean``, ``group_sizes_N`` without
    ``total``, or what :func:`check_believed` refuses.
    Source: VIP (arXiv 2602.01601) eq. 1-4; Dr. GRPO (arXiv 2503.20783); DAPO (arXiv 2503.14476) for ``token_mean``.
    """
    _check_options(aggregation, length)
    if believed:
        check_believed(aggregation, length)
    if group_sizes_N is not None and total is None:
        fix = "pass the total of the whole batch too (for prompt_mean its number of prompts)"
        raise ConfigError("group_sizes_N without total.", got="total=None", allowed="both or none", fix=fix)
    mask_NT = checked_mask(mask_NT, len(group_ids_N))
    groups = group(group_ids_N)
    ones_N = torch.ones(len(group_ids_N), dtype=dtype, device=mask_NT.device)
    lengths_N = mask_NT.sum(1)
    if aggregation == "token_mean":
        weights_N = ones_N / _total(total, int(lengths_N.sum().clamp(min=1)))
        return weights_N[:, None] * mask_NT
    if aggregation == "sequence_mean":
        weights_N = ones_N / _total(total, len(ones_N))
    else:
        sizes_N = _sizes(group_sizes_N, groups.sizes_per_rollout())
        weights_N = ones_N / (sizes_N * _total(total, len(groups)))
    if length == "mean":
        weights_N = weights_N / lengths_N.clamp(min=1)
    elif length != "sum":
        weights_N = weights_N / length
    return weights_N[:, None] * mask_NT


def aggregate(
    values_NT: Tensor,
    group_ids_N: Tensor,
    mask_NT: Tensor,
    aggregation: Aggregation = "prompt_mean",
    *,
    length: Length = "mean",
) -> Tensor:
    """[] the weighted sum of token values [N, T] of a whole batch; see :func:`rollout_weights`.

    Values outside the mask may be anything, also NaN. Raises what :func:`rollout_weights` raises.
    """
    weights_NT = rollout_weights(group_ids_N, mask_NT, aggregation, length=length, dtype=values_NT.dtype)
    return (weights_NT * torch.where(mask_NT.bool(), values_NT, 0.0)).sum()


def check_believed(aggregation: Aggregation, length: Length) -> None:
    """Refuse a divisor that depends on the rollout beside a belief as baseline: ConfigError.

    A belief b adds ``-b E[s / d]`` to the gradient, s being the score and d the divisor. For the sum of a rollout's
    scores and a constant d this is 0; for d the rollout's own length, or the tokens of the batch, it is a bias.
    """
    if aggregation == "token_mean" or length == "mean":
        raise ConfigError(
            "A belief as baseline is biased where the loss divides by a length that depends on the rollout.",
            got=f"{aggregation}, length={length!r}",
            allowed="prompt_mean or sequence_mean with length 'sum' or a number, such as the generation limit",
            fix="use length='sum', or an estimator without a belief: rloo",
        )


def _check_options(aggregation: str, length: Length) -> None:
    if aggregation not in get_args(Aggregation):
        allowed = ", ".join(get_args(Aggregation))
        raise ConfigError("Unknown aggregation.", got=repr(aggregation), allowed=allowed, fix="use 'prompt_mean'")
    if length not in ("mean", "sum") and not (isinstance(length, int | float) and 0 < length < float("inf")):
        raise ConfigError("Unknown length.", got=repr(length), allowed="'mean', 'sum', a number > 0", fix="use 'mean'")
    if aggregation == "token_mean" and length != "mean":
        raise ConfigError(
            "token_mean divides by the tokens of the batch and has no choice of length.",
            got=f"length={length!r}",
            allowed="length='mean'",
            fix="use prompt_mean or sequence_mean with this length",
        )


def _total(given: float | None, seen: int) -> float:
    """The denominator: what was given for the whole batch, else what is seen."""
    if given is None:
        return seen
    if not given > 0:
        raise InvalidInputError("total is not positive.", got=given, allowed="> 0", fix="leave it out")
    return given


def _sizes(given_N: Tensor | None, seen_N: Tensor) -> Tensor:
    """[N] what was given for the whole batch, else what is seen."""
    if given_N is None:
        return seen_N
    if given_N.shape != seen_N.shape or bool((given_N < seen_N).any()):
        raise InvalidInputError(
            "The group sizes do not fit the group ids.",
            got=f"shape {tuple(given_N.shape)}, least {given_N.min()}",
            allowed=f"shape {tuple(seen_N.shape)}, each at least the rollouts of the group that are present",
            fix="pass n_q of the whole batch for every rollout, or leave group_sizes_N out",
        )
    return given_N
