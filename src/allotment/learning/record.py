"""The contract of every objective: what is known of each token when the loss is made, and who has to log it.

Three policies are kept apart: the one that drew the tokens (rollout engine, actor), the one that the trainer had before
its first update on them (old), the one that is being trained (current). They differ as soon as a batch is used twice,
the engine quantises, or the rollouts are late.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from allotment.errors import InvalidInputError
from allotment.learning.groups import checked_mask
from allotment.learning.losses import TokenLoss, clipped_surrogate

Need = Literal["rollout", "reference", "distributions", "uniforms", "hidden", "prompt_hidden", "head_moments"]
"""What an objective asks for beyond log-probabilities of the current and the old policy."""


@dataclass(frozen=True)
class HeadMoments:
    """The output matrix and what Adam remembers of it: for predicting its next step."""

    weight_VH: Tensor
    """[V, H]"""
    first_VH: Tensor
    """[V, H] running mean of the gradient; zeros before the first step."""
    second_VH: Tensor
    """[V, H] running mean of the squared gradient."""
    steps: int
    """Optimiser steps so far."""
    learning_rate: float
    betas: tuple[float, float]
    epsilon: float


@dataclass(frozen=True)
class TokenRecord:
    """N rollouts of T tokens; log-probabilities are natural logarithms, anything may stand outside the mask."""

    log_probs_NT: Tensor
    """[N, T] of the current policy, with gradient."""
    old_log_probs_NT: Tensor
    """[N, T] of the current policy before the first update on these rollouts, no gradient."""
    advantages_N: Tensor
    """[N]"""
    mask_NT: Tensor
    """[N, T] bool, tokens the policy generated."""
    group_ids_N: Tensor
    """[N] integer."""
    rollout_log_probs_NT: Tensor | None = None
    """[N, T] of the policy that drew the tokens, as it logged them while drawing."""
    reference_log_probs_NT: Tensor | None = None
    """[N, T] of a fixed reference policy."""
    distribution_NTV: Tensor | None = None
    """[N, T, V] log-probabilities of the whole vocabulary under the current policy, with gradient."""
    rollout_distribution_NTV: Tensor | None = None
    """[N, T, V] the same under the policy that drew the tokens; -inf where it logged none (only its top k)."""
    tokens_NT: Tensor | None = None
    """[N, T] int64, the tokens; with the distributions."""
    uniforms_NT: Tensor | None = None
    """[N, T] random numbers in [0, 1) that belong to the tokens, the same at every update on them."""
    hidden_NTH: Tensor | None = None
    """[N, T, H] what the output matrix is multiplied with, no gradient."""
    prompt_hidden_NH: Tensor | None = None
    """[N, H] mean hidden state over the prompt's tokens, no gradient."""
    head: HeadMoments | None = None

    def __post_init__(self) -> None:
        mask_NT = checked_mask(self.mask_NT, len(self.log_probs_NT))
        for name, who in _LOGGED_BY.items():
            values_NT = getattr(self, name)
            if values_NT is None:
                continue
            bad_NT = mask_NT & ~torch.isfinite(values_NT.detach())
            if bad_NT.any():
                raise InvalidInputError(
                    f"{name} is not finite for {int(bad_NT.sum())} tokens",
                    got=float(values_NT[bad_NT][0]),
                    allowed="finite logarithms inside the mask",
                    fix=f"{who} must log the log-probability of every token it drew",
                )


_LOGGED_BY = {
    "log_probs_NT": "the trainer",
    "old_log_probs_NT": "the trainer, before its first update,",
    "rollout_log_probs_NT": "the rollout engine (vLLM: logprobs=0; SGLang: return_logprob)",
    "reference_log_probs_NT": "the reference policy",
}
_WHO: dict[Need, tuple[str, str]] = {
    "rollout": ("rollout_log_probs_NT", _LOGGED_BY["rollout_log_probs_NT"]),
    "reference": ("reference_log_probs_NT", _LOGGED_BY["reference_log_probs_NT"]),
    "distributions": ("distribution_NTV", "the trainer, and the rollout engine its top k,"),
    "uniforms": ("uniforms_NT", "the trainer, from its seed and step,"),
    "hidden": ("hidden_NTH", "the trainer"),
    "prompt_hidden": ("prompt_hidden_NH", "the trainer"),
    "head_moments": ("head", "the optimiser"),
}


def require(record: TokenRecord, name: str, *needs: Need) -> None:
    """Check that a record has what the objective ``name`` needs.

    Raises:
        InvalidInputError: something is missing; the message says who must provide it.
    """
    for need in needs:
        field, who = _WHO[need]
        if getattr(record, field) is None:
            raise InvalidInputError(
                f"the objective {name!r} needs {field}",
                got="None",
                allowed="a tensor in the record",
                fix=f"{who} must provide it",
            )


@dataclass(frozen=True)
class TokenFactors:
    """What a gate returns: a factor for the loss of every token, 0 to reject it; and why, for the log."""

    values_NT: Tensor
    """[N, T] >= 0, no gradient; 1 where the gate has nothing to say."""
    metrics: Mapping[str, Tensor]
    """Scalars, [] each: rejected or clipped shares of the mask's tokens, by reason."""


class _HasNeeds(Protocol):
    @property
    def needs(self) -> tuple[Need, ...]:
        """What it asks of a record."""
        ...


class TokenObjective(_HasNeeds, Protocol):
    """The loss of every token."""

    def loss(self, record: TokenRecord) -> TokenLoss:
        """[N, T] losses, exactly 0 outside the mask.

        Raises:
            InvalidInputError: the record lacks something that it needs, or a number that enters is not finite.
        """
        ...


class TokenGate(_HasNeeds, Protocol):
    """Rejects tokens or re-weights them; factors of several gates multiply.

    The denominator of the loss stays that of :func:`~allotment.learning.aggregation.rollout_weights`: all tokens the
    policy generated, whether rejected or not, so that rejecting a token never raises the weight of another.
    """

    def factors(self, record: TokenRecord) -> TokenFactors:
        """[N, T] factors; raises InvalidInputError where the record lacks something that it needs."""
        ...


@dataclass(frozen=True)
class Surrogate:
    """PPO's surrogate against the old policy, the objective that runs where no other is named.

    See :func:`~allotment.learning.losses.clipped_surrogate`.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    needs: ClassVar[tuple[Need, ...]] = ()

    def loss(self, record: TokenRecord) -> TokenLoss:
        """[N, T] losses."""
        return clipped_surrogate(
            record.log_probs_NT,
            record.old_log_probs_NT,
            record.advantages_N,
            record.mask_NT,
            self.clip_low,
            self.clip_high,
        )
