"""Advantages and weights of the rollouts that a selection keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from allotment.errors import InvalidInputError
from allotment.learning.advantages import AdvantageName, advantage_estimator
from allotment.learning.aggregation import Aggregation, Length, rollout_weights
from allotment.selection import Selection


def selected_advantages_and_weights(
    rewards_N: Tensor,
    group_ids_N: Tensor,
    mask_NT: Tensor,
    selection: Selection,
    estimator: AdvantageName = "rloo",
    aggregation: Aggregation = "prompt_mean",
    *,
    length: Length = "mean",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Advantages [N] and weights [N, T] of all rollouts that were generated; both are 0 where nothing is kept.

    With everything kept at weight 1 they are those of ``advantage_estimator(estimator)`` and :func:`rollout_weights`,
    to the last bit. Else, as :class:`~allotment.selection.Selection` says: the advantages it brings, or those of the
    estimator within whole groups (``baseline="generated"``) or within what is kept of them; the denominators of all
    rollouts (``denominator="generated"``) or of the kept ones; each weight times the selection's own factor.

    ``rewards_N``: [N] finite, verified. ``group_ids_N``: [N] integer. ``mask_NT``: [N, T] bool or 0/1. Rows are those
    of the selection. ``dtype`` is that of the weights; ``aggregation`` and ``length`` as in :func:`rollout_weights`.

    Raises :class:`~allotment.errors.InvalidInputError` for a selection of another number of rollouts, and what the
    estimator and :func:`rollout_weights` raise.
    """
    if not len(selection.weights_N) == len(rewards_N) == len(group_ids_N):
        raise InvalidInputError(
            "The selection is of other rollouts.",
            got=f"{len(selection.weights_N)} weights, {len(rewards_N)} rewards, {len(group_ids_N)} group ids",
            allowed="one of each per rollout",
            fix="pass the rollouts that the selector was shown, in that order",
        )
    kept_N = torch.as_tensor(selection.is_kept, device=group_ids_N.device)
    everything_N = torch.ones_like(kept_N)
    among_N = everything_N if selection.baseline == "generated" else kept_N
    advantages_N = torch.where(kept_N, _advantages(rewards_N, group_ids_N, selection, estimator, among_N), 0.0)
    among_N = everything_N if selection.denominator == "generated" else kept_N
    weights_NT = torch.zeros(mask_NT.shape, dtype=dtype, device=mask_NT.device)
    if among_N.any():
        weights_NT[among_N] = rollout_weights(
            group_ids_N[among_N], mask_NT[among_N], aggregation, length=length, dtype=dtype
        )
    factors_N = torch.as_tensor(selection.weights_N, dtype=dtype, device=mask_NT.device)
    return advantages_N, weights_NT * factors_N[:, None]


def _advantages(
    rewards_N: Tensor, group_ids_N: Tensor, selection: Selection, estimator: AdvantageName, among_N: Tensor
) -> Tensor:
    """[N] those the selection brings, or the estimator's among the rollouts of ``among_N``, 0 elsewhere."""
    estimate = advantage_estimator(estimator)
    given_N = selection.advantages_N
    dtype = torch.promote_types(rewards_N.dtype, torch.float32)
    if given_N is not None:
        return torch.as_tensor(given_N, dtype=dtype, device=rewards_N.device)
    if selection.rewards_N is not None:
        rewards_N = torch.as_tensor(selection.rewards_N, dtype=dtype, device=rewards_N.device)
    advantages_N = torch.zeros(len(rewards_N), dtype=dtype, device=rewards_N.device)
    if among_N.any():
        advantages_N[among_N] = estimate(rewards_N[among_N], group_ids_N[among_N])
    return advantages_N
