"""Score sketches that a trainer can afford: random projections of the gradient of one matrix.

The score of a rollout is the gradient of its log-probability. Its part in the matrix W [O, I] of a layer ``y = W x`` is
``sum_t g_t x_t^T``, g_t being the gradient of the log-probability in y_t. A sketch is the inner product of that with K
fixed random rank-one matrices ``u v^T``: ``s_k = sum_t (u_k . g_t) (v_k . x_t)``. With random signs in u and v the mean
of ``s_k^2`` over k estimates the squared norm of the gradient without bias.

For the output matrix ``g_t = e_a - pi_t``: no backward pass is needed (:func:`last_layer_scores`). For a matrix in the
last block the backward pass ends there (:func:`layer_scores`); it shows more of what differs between prompts.

What ``planner.tell(..., scores=...)`` takes. The same directions must serve a whole run: make them from a seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from allotment.errors import InvalidInputError
from allotment.learning.groups import checked_mask


@dataclass(frozen=True, eq=False)
class SketchDirections:
    """K random directions of a matrix [O, I], each an outer product ``u v^T`` of signs."""

    outputs_KO: Tensor
    """[K, O] u: -1 or +1 for each output of the layer; of the output matrix, for each token of the vocabulary."""
    inputs_KI: Tensor
    """[K, I] v: -1 or +1 for each input of the layer."""

    @classmethod
    def random(cls, sketches: int, outputs: int, inputs: int, *, seed: int = 0) -> Self:
        """``sketches`` directions, a function of the arguments alone; on the CPU, moved with :meth:`to`."""
        generator = torch.Generator().manual_seed(seed)

        def signs(columns: int) -> Tensor:
            return torch.randint(0, 2, (sketches, columns), generator=generator).float() * 2 - 1

        return cls(signs(outputs), signs(inputs))

    def to(self, device: torch.device | str) -> Self:
        """The same directions on another device."""
        return type(self)(self.outputs_KO.to(device), self.inputs_KI.to(device))


@torch.no_grad()
def layer_scores(inputs_NTI: Tensor, gradients_NTO: Tensor, mask_NT: Tensor, directions: SketchDirections) -> Tensor:
    """[N, K] float32: the derivative of each rollout's log-probability along each direction of a layer's matrix.

    ``inputs_NTI``: x, what the matrix was multiplied with. ``gradients_NTO``: the gradient of the rollouts'
    log-probabilities, summed over the batch, in what came out; rows must not mix on the way, as in batch norms.
    ``mask_NT``: [N, T] bool or 0/1, the places that count, prompt and completion alike; elsewhere anything may stand.
    Raises :class:`~allotment.errors.InvalidInputError` for shapes that do not fit.
    """
    mask_NT = checked_mask(mask_NT, len(inputs_NTI))
    _check(mask_NT, directions, inputs=inputs_NTI, outputs=gradients_NTO)
    along_NTK = (gradients_NTO.float() @ directions.outputs_KO.T) * (inputs_NTI.float() @ directions.inputs_KI.T)
    return torch.where(mask_NT[:, :, None], along_NTK, 0.0).sum(1)


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
    _check(mask_NT, directions, inputs=hidden_NTH, outputs=logits_NTV)
    rows_M, places_M = mask_NT.nonzero(as_tuple=True)
    u_VK, v_HK = directions.outputs_KO.T, directions.inputs_KI.T
    scores_NK = torch.zeros(len(tokens_NT), u_VK.shape[1], device=logits_NTV.device)
    for first in range(0, len(rows_M), chunk):
        rows, places = rows_M[first : first + chunk], places_M[first : first + chunk]
        probabilities = logits_NTV[rows, places].float().softmax(-1)
        surprise = u_VK[tokens_NT[rows, places]] - probabilities @ u_VK
        scores_NK.index_add_(0, rows, surprise * (hidden_NTH[rows, places].float() @ v_HK))
    return scores_NK


def _check(mask: Tensor, directions: SketchDirections, *, inputs: Tensor, outputs: Tensor) -> None:
    shapes = {
        "inputs or hidden": (inputs.shape, (*mask.shape, directions.inputs_KI.shape[1])),
        "gradients or logits": (outputs.shape, (*mask.shape, directions.outputs_KO.shape[1])),
    }
    for name, (got, allowed) in shapes.items():
        if tuple(got) != tuple(allowed):
            raise InvalidInputError(
                f"the shape of {name} does not fit",
                got=tuple(got),
                allowed=f"{tuple(allowed)}, after the mask and the directions",
                fix="pass the same places of one forward pass, and directions for this matrix",
            )
