"""A sequence-to-sequence policy of two gated recurrent units (GRU): one reads the prompt, one writes the completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from allotment.lab.language_policy import LanguagePolicy


@dataclass(frozen=True)
class RecurrentCache:
    """The state after the tokens so far: all that a recurrent policy keeps of them."""

    state_RH: Tensor

    def __len__(self) -> int:
        return len(self.state_RH)

    def repeat(self, rows_N: Tensor) -> RecurrentCache:
        """The cache of rollouts whose prompts are ``rows_N``."""
        return RecurrentCache(self.state_RH.index_select(0, rows_N))


@dataclass(frozen=True)
class Taps:
    """Zeros that are added to what leaves the two matrices of a unit, so that gradients are taken in their places."""

    inputs_NTG: Tensor
    recurrent_NTG: Tensor

    @classmethod
    def zeros(cls, tokens_NT: Tensor, unit: RecurrentUnit) -> Taps:
        """For N sequences of T tokens."""
        inputs_NTG, recurrent_NTG = torch.zeros(2, *tokens_NT.shape, unit.recurrent.out_features).unbind(0)
        return cls(inputs_NTG.requires_grad_(), recurrent_NTG.requires_grad_())


class RecurrentUnit(nn.Module):
    """Embedding and GRU; the gates stand in the order reset, update, candidate."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.inputs = nn.Linear(width, 3 * width)
        self.recurrent = nn.Linear(width, 3 * width)

    def forward(
        self, tokens_NT: Tensor, state_NH: Tensor, real_NT: Tensor | None = None, taps: Taps | None = None
    ) -> Tensor:
        """[N, T, H] the state after each token; at places that are not ``real_NT`` it stays as it was."""
        table_VG = self.inputs(self.tokens.weight)  # of every token once: a lookup instead of a product at each place
        inputs_NTG = functional.embedding(tokens_NT, table_VG)
        if taps is not None:
            inputs_NTG = inputs_NTG + taps.inputs_NTG
        parts, states = [2 * state_NH.shape[-1], state_NH.shape[-1]], []
        for t, inputs_NG in enumerate(inputs_NTG.unbind(1)):  # a slice at each place would cost the backward pass dear
            recurrent_NG = self.recurrent(state_NH)
            if taps is not None:
                recurrent_NG = recurrent_NG + taps.recurrent_NTG[:, t]
            gates_NG, candidate_NH = torch.split(inputs_NG, parts, -1)
            past_gates_NG, past_NH = torch.split(recurrent_NG, parts, -1)
            reset_NH, update_NH = (gates_NG + past_gates_NG).sigmoid().chunk(2, -1)
            next_NH = torch.lerp(torch.tanh(candidate_NH + reset_NH * past_NH), state_NH, update_NH)
            state_NH = next_NH if real_NT is None else torch.where(real_NT[:, t, None], next_NH, state_NH)
            states.append(state_NH)
        return torch.stack(states, dim=1)

    def start(self, rows: int) -> Tensor:
        """[rows, H] the state before any token."""
        return torch.zeros(rows, self.tokens.embedding_dim)


class RecurrentPolicy(LanguagePolicy[RecurrentCache]):
    """The writer begins with the reader's last state."""

    def __init__(self, prompt_vocabulary: int, vocabulary: int, width: int) -> None:
        super().__init__()
        self.reader = RecurrentUnit(prompt_vocabulary, width)
        self.writer = RecurrentUnit(vocabulary, width)
        self.norm = nn.Identity()
        self.head = nn.Linear(width, vocabulary)

    @property
    def width(self) -> int:
        """Numbers of a state."""
        return self.head.in_features

    @property
    def sketched(self) -> nn.Linear:
        """What brings the writer's state to its next."""
        return self.writer.recurrent

    def encode_prompts(self, prompts: Sequence[Sequence[int]]) -> RecurrentCache:
        """The reader's state after each of Q prompts."""
        return RecurrentCache(self._read(prompts)[0][:, -1])

    def hidden(self, cache: RecurrentCache, tokens_NT: Tensor, start: int = 0) -> tuple[Tensor, RecurrentCache]:
        """[N, T, width] the writer's state after each of T further tokens; ``start`` does not matter here."""
        states_NTH = self.writer(tokens_NT, cache.state_RH)
        return states_NTH, RecurrentCache(states_NTH[:, -1])

    def states(self, cache: RecurrentCache, tokens_NT: Tensor) -> Tensor:
        """[N, T, 1, width] the writer's states."""
        return self.hidden(cache, tokens_NT)[0][:, :, None]

    def prompt_states(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The reader's states [Q, T, 1, width]; which places are tokens [Q, T]."""
        states_QTH, real_QT = self._read(prompts)
        return states_QTH[:, :, None], real_QT

    def through_sketched(self, cache: RecurrentCache, tokens_NT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, and what enters and leaves :attr:`sketched`."""
        taps = Taps.zeros(tokens_NT, self.writer)
        states_NTH = self.writer(tokens_NT, cache.state_RH, taps=taps)
        return self.head(states_NTH), before(cache.state_RH, states_NTH), taps.recurrent_NTG

    def _read(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The reader's states [Q, T, width] at right-aligned prompts, and which places are tokens [Q, T]."""
        length = max(map(len, prompts))
        tokens_QT = torch.tensor([[0] * (length - len(p)) + list(p) for p in prompts])
        real_QT = torch.tensor([[False] * (length - len(p)) + [True] * len(p) for p in prompts])
        return self.reader(tokens_QT, self.reader.start(len(prompts)), real_QT), real_QT


def before(state_NH: Tensor, states_NTH: Tensor) -> Tensor:
    """[N, T, H] the states before each token, of those after each and the first [N, H]."""
    return torch.cat([state_NH[:, None], states_NTH[:, :-1]], dim=1)
