"""The lab's policy: a decoder-only transformer of about 0.1 M parameters that computes a shared prompt once.

A prompt is run once (:meth:`Policy.encode_prompts`); its keys and values are then repeated for each of its rollouts
(:meth:`PromptCache.repeat`), in sampling and in training. Positions are counted from the answer token, so the same
distance to it always has the same position, however long the prompt is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional

from allotment.lab.language_policy import LanguagePolicy

MAX_PROMPT, MAX_COMPLETION = 48, 20


@dataclass(frozen=True)
class PolicySize:
    """Shape of the transformer."""

    vocabulary: int
    width: int = 64
    layers: int = 2
    heads: int = 2


@dataclass(frozen=True)
class PromptCache:
    """Keys and values of earlier tokens; per layer, with the rows R being prompts or rollouts."""

    keys: tuple[Tensor, ...]
    """Per layer [R, heads, L, width / heads]."""
    values: tuple[Tensor, ...]
    """Per layer [R, heads, L, width / heads]."""
    mask: Tensor
    """[R, L] additive: 0 for real tokens, -inf for padding."""

    def __len__(self) -> int:
        return self.mask.shape[0]

    def repeat(self, rows_N: Tensor) -> PromptCache:
        """The cache of rollouts whose prompts are ``rows_N``; [N] row numbers, any order, repeats allowed."""
        return PromptCache(
            tuple(k.index_select(0, rows_N) for k in self.keys),
            tuple(v.index_select(0, rows_N) for v in self.values),
            self.mask.index_select(0, rows_N),
        )


_Through = tuple[list[Tensor], tuple[Tensor, ...], tuple[Tensor, ...]]


class Block(nn.Module):
    """Pre-norm attention and ReLU MLP."""

    def __init__(self, size: PolicySize) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm_attention = nn.LayerNorm(size.width)
        self.qkv = nn.Linear(size.width, 3 * size.width, bias=False)
        self.out = nn.Linear(size.width, size.width, bias=False)
        self.norm_mlp = nn.LayerNorm(size.width)
        self.up = nn.Linear(size.width, 4 * size.width)
        self.down = nn.Linear(4 * size.width, size.width)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``x`` [R, T, width] after the block, with the keys and values of past and present, [R, heads, L + T, ·]."""
        rows, length, width = x.shape
        query, key, value = self.projections(x)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        scores = query @ key.transpose(-1, -2) * (width // self.heads) ** -0.5 + mask[:, None]
        attended = (scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, length, width)
        x = x + self.out(attended)
        return x + self.down(functional.relu(self.up(self.norm_mlp(x)))), key, value

    def projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of ``x`` [R, T, width], each [R, heads, T, ·]."""
        rows, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(rows, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        return query, key, value


class Policy(LanguagePolicy[PromptCache]):
    """The transformer."""

    def __init__(self, size: PolicySize) -> None:
        super().__init__()
        self.size = size
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(MAX_PROMPT + MAX_COMPLETION, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.1)
        nn.init.normal_(self.positions.weight, std=0.1)

    @property
    def width(self) -> int:
        """Numbers of a hidden state."""
        return self.size.width

    @property
    def sketched(self) -> nn.Linear:
        """What the last attention's result passes through on its way back."""
        block = self.blocks[-1]
        assert isinstance(block, Block)
        return block.out

    def encode_prompts(self, prompts: Sequence[Sequence[int]]) -> PromptCache:
        """Run Q prompts once, right-aligned; the answer token is not part of them.

        Of the last block only keys and values are wanted: what it makes of a prompt's tokens enters nothing.
        """
        x, mask, real_QL = self._prompt_inputs(prompts)
        *_, last = self.blocks
        assert isinstance(last, Block)
        layers, keys, values = self._through(x, mask, None, self.size.layers - 1)
        _, key, value = last.projections(layers[-1] if layers else x)
        return PromptCache((*keys, key), (*values, value), _padding(real_QL))

    def prompt_states(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Output of every block at the tokens of Q prompts [Q, T, layers, width]; which places are tokens [Q, T]."""
        x, mask, real_QT = self._prompt_inputs(prompts)
        return torch.stack(self._through(x, mask, None, self.size.layers)[0], dim=2), real_QT

    def states(self, cache: PromptCache, tokens_NT: Tensor) -> Tensor:
        """[N, T, layers, width] output of every block at T tokens of N answer parts, the answer token first."""
        return torch.stack(self._continue(cache, tokens_NT, 0)[0], dim=2)

    def _prompt_inputs(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Embedded tokens [Q, L, width], what each may attend to, added [Q, L, L], and which are tokens [Q, L]."""
        length = max(map(len, prompts))
        tokens_QL = torch.tensor([[0] * (length - len(p)) + list(p) for p in prompts])
        real_QL = torch.tensor([[False] * (length - len(p)) + [True] * len(p) for p in prompts])
        visible = real_QL[:, None, :] & _causal(length)
        visible = visible | torch.eye(length, dtype=torch.bool)  # a padding row attends to itself, so no NaN
        mask = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)
        x = self.tokens(tokens_QL) + self.positions.weight[MAX_PROMPT - length : MAX_PROMPT]
        return x, mask, real_QL

    def hidden(self, cache: PromptCache, tokens_NT: Tensor, start: int = 0) -> tuple[Tensor, PromptCache]:
        """[N, T, width] after each of T further tokens, and the longer cache."""
        layers, longer = self._continue(cache, tokens_NT, start)
        return self.norm(layers[-1]), longer

    def through_sketched(self, cache: PromptCache, tokens_NT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, and what enters and leaves :attr:`sketched`."""
        seen: list[Tensor] = []
        hook = self.sketched.register_forward_hook(lambda _, given, made: seen.extend((given[0], made)))
        logits_NTV = self.extend(cache, tokens_NT)[0]
        hook.remove()
        entered_NTI, left_NTO = seen
        return logits_NTV, entered_NTI, left_NTO

    def _continue(self, cache: PromptCache, tokens_NT: Tensor, start: int) -> tuple[list[Tensor], PromptCache]:
        """Each block's output [N, T, width] at further tokens, and the longer cache."""
        rows, length = tokens_NT.shape
        causal = torch.zeros(length, length).masked_fill(~_causal(length), -torch.inf)
        mask = torch.cat([cache.mask[:, None, :].expand(-1, length, -1), causal.expand(rows, -1, -1)], dim=2)
        x = self.tokens(tokens_NT) + self.positions.weight[MAX_PROMPT + start : MAX_PROMPT + start + length]
        layers, keys, values = self._through(x, mask, cache, self.size.layers)
        return layers, PromptCache(keys, values, torch.cat([cache.mask, torch.zeros(rows, length)], dim=1))

    def _through(self, x: Tensor, mask: Tensor, past: PromptCache | None, blocks: int) -> _Through:
        """The output of each of the first blocks, and its keys and values with those of the past."""
        layers, keys, values = [], [], []
        for i, block in enumerate(islice(self.blocks, blocks)):
            x, key, value = block(x, None if past is None else (past.keys[i], past.values[i]), mask)
            layers.append(x)
            keys.append(key)
            values.append(value)
        return layers, tuple(keys), tuple(values)


def _padding(real_QL: Tensor) -> Tensor:
    """[Q, L] what is added to scores: minus infinity where there is no token."""
    return torch.zeros(real_QL.shape).masked_fill(~real_QL, -torch.inf)


def _causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()
