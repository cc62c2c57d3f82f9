"""Scores of a recurrent policy without writing them out: a million numbers a rollout would be too many.

The gradient of a rollout's log-probability in a matrix is a sum over tokens of outer products, ``sum_t d_t a_t^T``,
with a_t what enters the matrix and d_t the derivative in what leaves it. Its squared norm is ``sum_tu (a_t . a_u)
(d_t . d_u)``, and a weighted sum over rollouts is one product of matrices. Rollouts with the same tokens have the same
score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from allotment.lab.generation import Lab, Rollouts
from allotment.lab.recurrent_policy import RecurrentPolicy, RecurrentUnit, Taps, before
from allotment.tasks.mixture import Problem


@dataclass(frozen=True)
class Layer:
    """The gradients of a matrix [O, I], for U different rollouts."""

    entered_UTI: Tensor
    left_UTO: Tensor
    """Derivatives of the log-probability in what leaves the matrix."""

    def squares(self) -> Tensor:
        """[U] squared norms."""
        entered_UTT = self.entered_UTI @ self.entered_UTI.transpose(1, 2)
        left_UTT = self.left_UTO @ self.left_UTO.transpose(1, 2)
        return (entered_UTT * left_UTT).sum((1, 2))

    def sums(self, weights_KU: Tensor) -> Tensor:
        """[K, O * I] weighted sums over rollouts."""
        weighted_KUTO = weights_KU[:, :, None, None] * self.left_UTO
        summed_KOI = weighted_KUTO.flatten(1, 2).transpose(1, 2) @ self.entered_UTI.flatten(0, 1)
        return summed_KOI.flatten(1)

    def products(self, directions_KP: Tensor) -> Tensor:
        """[U, K] inner products with K directions."""
        shape = (len(directions_KP), self.left_UTO.shape[2], self.entered_UTI.shape[2])
        return torch.einsum("uti,koi,uto->uk", self.entered_UTI, directions_KP.view(shape), self.left_UTO)

    @property
    def size(self) -> int:
        """O * I."""
        return self.left_UTO.shape[2] * self.entered_UTI.shape[2]


@dataclass(frozen=True)
class LayeredScores:
    """The scores of N rollouts of one prompt in all P parameters, matrix by matrix, a bias being a column."""

    layers: Sequence[Layer]
    rows_N: Tensor
    """[N] which of the different rollouts each is."""

    def squares(self) -> Tensor:
        """[N] squared norms."""
        return torch.stack([layer.squares() for layer in self.layers]).sum(0)[self.rows_N]

    def sums(self, weights_KN: Tensor) -> Tensor:
        """[K, P] weighted sums over rollouts."""
        weights_KU = weights_KN.new_zeros(len(weights_KN), len(self.layers[0].left_UTO))
        weights_KU.index_add_(1, self.rows_N, weights_KN)
        return torch.cat([layer.sums(weights_KU) for layer in self.layers], dim=1)

    def products(self, directions_KP: Tensor) -> Tensor:
        """[N, K] inner products with K directions, ordered as :meth:`sums`."""
        parts = torch.split(directions_KP, [layer.size for layer in self.layers], dim=1)
        products = [layer.products(part) for layer, part in zip(self.layers, parts, strict=True)]
        return torch.stack(products).sum(0)[self.rows_N]

    @classmethod
    def of(cls, lab: Lab, problem: Problem, rollouts: Rollouts) -> LayeredScores:
        """Of rollouts of one problem by a recurrent policy."""
        policy = lab.policy
        assert isinstance(policy, RecurrentPolicy)
        different_UT, rows_N = torch.unique(rollouts.tokens_NT, dim=0, return_inverse=True)
        mask_UT = torch.zeros_like(different_UT, dtype=torch.bool)
        mask_UT[rows_N] = rollouts.mask_NT
        prompt_UT = torch.tensor([lab.tokenizer.encode_prompt(problem.question)]).expand(len(different_UT), -1)
        inputs_UT = lab.answer_inputs(different_UT)
        read, written = Taps.zeros(prompt_UT, policy.reader), Taps.zeros(inputs_UT, policy.writer)
        start_UH = policy.reader.start(len(different_UT))
        read_UTH = policy.reader(prompt_UT, start_UH, taps=read)
        written_UTH = policy.writer(inputs_UT, read_UTH[:, -1], taps=written)
        logits_UTV = policy.head(written_UTH)
        taken_UT = logits_UTV.log_softmax(-1).gather(2, different_UT[:, :, None]).squeeze(2)
        places = [read.inputs_NTG, read.recurrent_NTG, written.inputs_NTG, written.recurrent_NTG, logits_UTV]
        left = torch.autograd.grad(torch.where(mask_UT, taken_UT, 0.0).sum(), places)
        with torch.no_grad():
            layers = [
                *_unit_layers(policy.reader, prompt_UT, before(start_UH, read_UTH), *left[:2]),
                *_unit_layers(policy.writer, inputs_UT, before(read_UTH[:, -1], written_UTH), *left[2:4]),
                Layer(_and_one(written_UTH.detach()), left[4]),
            ]
        return cls(layers, rows_N)


def _unit_layers(
    unit: RecurrentUnit, tokens_UT: Tensor, states_UTH: Tensor, inputs_UTG: Tensor, recurrent_UTG: Tensor
) -> list[Layer]:
    """The embedding, the matrix of the inputs and that of the states, from the derivatives in what leaves the two."""
    one_hot_UTV = functional.one_hot(tokens_UT, unit.tokens.num_embeddings).to(inputs_UTG.dtype)
    return [
        Layer(one_hot_UTV, inputs_UTG @ unit.inputs.weight),
        Layer(_and_one(unit.tokens(tokens_UT)), inputs_UTG),
        Layer(_and_one(states_UTH), recurrent_UTG),
    ]


def _and_one(entered_UTI: Tensor) -> Tensor:
    return torch.cat([entered_UTI, torch.ones_like(entered_UTI[:, :, :1])], dim=2)
