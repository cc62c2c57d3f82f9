"""Score sketches that a trainer can afford: random projections of the gradient of the output matrix.

The score of a rollout is the gradient of its log-probability. With logits ``W h`` its part in the output matrix W
[V, H] is ``sum_t (e_a - pi_t) h_t^T``, from the logits and the last hidden states of one forward pass, without any
backward pass. A sketch is its inner product with K fixed random rank-one matrices ``u v^T``:
``s_k = sum_t (u_k . (e_a - pi_t)) (v_k . h_t)``. With random signs in u and v the mean of ``s_k^2`` over k estimates
the squared norm of that gradient without bias.

What ``planner.tell(..., scores=...)`` takes. The same directions must serve a whole run: make them from a seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from allotment.errors import InvalidInputError, message
from allotment.learning.groups import checked_mask


@dataclass(frozen=True, eq=False)
class SketchDirections:
    """K random directions of the output matrix, each an outer product ``u v^T`` of signs."""

    tokens_KV: Tensor
    """[K, V] u: -1 or +1 for each token of the vocabulary."""
    hidden_KH: Tensor
    """[K, H] v: -1 or +1 for each dimension of the last hidden state."""

    @classmethod
    def random(cls, sketches: int, vocabulary: int, width: int, *, seed: int = 0) -> Self:
        """``sketches`` directions, a function of the arguments alone; on the CPU, moved with :meth:`to`."""
        generator = torch.Generator().manual_seed(seed)

        def signs(columns: int) -> Tensor:
            return torch.randint(0, 2, (sketches, columns), generator=generator).float() * 2 - 1

        return cls(signs(vocabulary), signs(width))

    def to(self, device: torch.device | str) -> Self:
        """The same directions on another device."""
        return type(self)(self.tokens_KV.to(device), self.hidden_KH.to(device))


@torch.no_grad()
def last_layer_scores(
    logits_NTV: Tensor,
    hidden_NTH: Tensor,
    tokens_NT: Tensor,
    mask_NT: Tensor,
    directions: SketchDirections,
    *,
    chunk: int = 1024,
) -> Tensor:
    """[N, K] float32: the derivative of each rollout's log-probability along each direction of the output matrix.

    ``logits_NTV``: from which each completion token was drawn (after the temperature), or their log-softmax, which has
    the same softmax. ``hidden_NTH``: what the output matrix was multiplied with to give them. ``tokens_NT``: the
    tokens drawn. ``mask_NT``: [N, T] bool or 0/1, the tokens that count; elsewhere anything may stand. ``chunk``:
    tokens computed at once; beside its inputs the call needs memory for one softmax of [chunk, V] in float32.

    Rows can be split over calls, for logits that do not fit into memory at once. A bias or a scale of the logits is
    left out. Raises :class:`~allotment.errors.InvalidInputError` for shapes that do not fit.
    """
    mask_NT = checked_mask(mask_NT, len(tokens_NT))
    _check(logits_NTV, hidden_NTH, tokens_NT, mask_NT, directions)
    rows_M, places_M = mask_NT.nonzero(as_tuple=True)
    u_VK, v_HK = directions.tokens_KV.T, directions.hidden_KH.T
    scores_NK = torch.zeros(len(tokens_NT), u_VK.shape[1], device=logits_NTV.device)
    for first in range(0, len(rows_M), chunk):
        rows, places = rows_M[first : first + chunk], places_M[first : first + chunk]
        probabilities = logits_NTV[rows, places].float().softmax(-1)
        surprise = u_VK[tokens_NT[rows, places]] - probabilities @ u_VK
        scores_NK.index_add_(0, rows, surprise * (hidden_NTH[rows, places].float() @ v_HK))
    return scores_NK


def _check(logits: Tensor, hidden: Tensor, tokens: Tensor, mask: Tensor, directions: SketchDirections) -> None:
    sketches = len(directions.tokens_KV)
    shapes = {
        "logits": (logits.shape, (*tokens.shape, directions.tokens_KV.shape[1])),
        "hidden": (hidden.shape, (*tokens.shape, directions.hidden_KH.shape[1])),
        "mask": (mask.shape, tokens.shape),
        "directions.hidden_KH": (directions.hidden_KH.shape, (sketches, hidden.shape[-1])),
    }
    for name, (got, allowed) in shapes.items():
        if tuple(got) != tuple(allowed):
            raise InvalidInputError(
                message(
                    f"the shape of `{name}` does not fit",
                    got=tuple(got),
                    allowed=f"{tuple(allowed)}, after tokens {tuple(tokens.shape)} and the directions",
                    fix="pass the completion part of one forward pass; directions for its vocabulary and width",
                )
            )
