"""What the lab asks of a policy, whatever its architecture: a prompt is run once, then continued for each rollout."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Generic, Protocol, Self, TypeVar

from torch import Tensor, nn


class Cache(Protocol):
    """What a policy keeps of earlier tokens; a row is a prompt or a rollout."""

    def __len__(self) -> int: ...

    def repeat(self, rows_N: Tensor) -> Self:
        """The cache of rollouts whose prompts are ``rows_N``; [N] row numbers, any order, repeats allowed."""


CacheT = TypeVar("CacheT", bound=Cache)


class LanguagePolicy(nn.Module, Generic[CacheT]):
    """Next-token distribution of completions given prompts."""

    head: nn.Linear
    """The output matrix."""
    norm: nn.Module
    """What a block's output passes before the output matrix."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers of a hidden state."""

    @property
    @abstractmethod
    def sketched(self) -> nn.Linear:
        """The matrix of the last block whose gradients are sketched."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[Sequence[int]]) -> CacheT:
        """Run Q prompts once; the answer token is not part of them."""

    @abstractmethod
    def hidden(self, cache: CacheT, tokens_NT: Tensor, start: int = 0) -> tuple[Tensor, CacheT]:
        """[N, T, width] what the output matrix is multiplied with after each of T further tokens, and the longer cache.

        ``cache``: of N rollouts; holds the prompt and the first ``start`` tokens of the answer part, which begins with
        the answer token. ``tokens_NT``: the next tokens; ``start`` is the place of the first.
        """

    @abstractmethod
    def states(self, cache: CacheT, tokens_NT: Tensor) -> Tensor:
        """[N, T, layers, width] output of every block at T tokens of N answer parts, the answer token first."""

    @abstractmethod
    def prompt_states(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Output of every block at the tokens of Q prompts [Q, T, layers, width]; which places are tokens [Q, T]."""

    @abstractmethod
    def through_sketched(self, cache: CacheT, tokens_NT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, T, vocabulary] logits after T tokens of N answer parts, and what enters [N, T, I] and leaves [N, T, O]
        the matrix ``sketched`` on the way; with gradients from the logits to what leaves it.
        """

    def extend(self, cache: CacheT, tokens_NT: Tensor, start: int = 0) -> tuple[Tensor, CacheT]:
        """[N, T, vocabulary] logits after each of T further tokens, and the longer cache; see :meth:`hidden`."""
        hidden_NTH, longer = self.hidden(cache, tokens_NT, start)
        return self.head(hidden_NTH), longer

    def prompt_hidden(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """[Q, width] mean of the last hidden states over the tokens of each prompt."""
        states_QTLH, real_QT = self.prompt_states(prompts)
        summed_QH: Tensor = (self.norm(states_QTLH[:, :, -1]) * real_QT[:, :, None]).sum(1)
        return summed_QH / real_QT.sum(1, keepdim=True)
