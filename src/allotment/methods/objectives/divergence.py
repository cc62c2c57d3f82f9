"""Divergence PPO: a token is left alone once a divergence, not its ratio, says that the policy has moved too far.

A ratio is a poor measure of movement: a rare token may go from 0.0001 to 0.01 (ratio 100) and move one percent of the
mass, a frequent one from 0.99 to 0.80 (ratio 0.81) and move a fifth of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from allotment.errors import InvalidInputError
from allotment.learning.groups import check_finite
from allotment.learning.losses import TokenLoss, masked_mean
from allotment.learning.objective import ObjectiveEntry, ObjectiveRow, check_choices, check_settings
from allotment.learning.record import Need, TokenRecord, require

GateName = Literal["binary_tv", "binary_kl", "topk_tv", "topk_kl", "ratio"]
Anchor = Literal["rollout", "old"]
TopKRule = Literal["add", "replace"]

DELTAS: dict[GateName, float] = {"binary_tv": 0.15, "topk_tv": 0.15, "binary_kl": 0.05, "topk_kl": 0.05, "ratio": 0.2}
"""Largest divergence of each gate; of the ratio, PPO's clip."""
LARGEST_LOG_RATIO = 20.0
_LEAST = 1e-8


@dataclass(frozen=True)
class DivergencePPO:
    """Policy gradient with capped importance weights, behind a gate on a divergence (DPPO, arXiv 2602.04879).

    With mu the policy a token was drawn from and pi the current one, the gradient of a token's loss is that of
    ``-A min(pi / mu, C) M log pi``, where only ``log pi`` has a gradient. The gate M is 0 where the divergence is above
    ``delta`` and the token's gradient would lead further away: A > 0 and pi > mu, or A < 0 and pi < mu. The way back is
    never closed. The value of the loss is ``-A min(pi / mu, C) M``, that of the surrogate where nothing is closed.

    ``gate="ratio"`` with ``ratio_cap=inf`` has the gradient of PPO's clipped surrogate. ``delta=inf`` is capped
    importance sampling; with pi = mu too, the policy gradient.

    Sources that disagree: the threshold of the total variation is 0.15 in verl's documentation and 0.2 in Stable-RL
    and in notes on the paper, of the KL divergence 0.05 (TRL's former trainer: 0.15 for both); the cap is 20 in verl
    and TRL, 10 or 3 in Stable-RL, 5 in the paper's scaling runs. Log-ratios are cut at 20, as in Stable-RL.
    """

    gate: GateName = "binary_tv"
    delta: float | None = None
    """Largest divergence at which every gradient passes; by default 0.15 (total variation), 0.05 (KL), 0.2 (ratio)."""
    ratio_cap: float = 20.0
    """C, the largest importance weight."""
    anchor: Anchor = "rollout"
    """What mu is: the policy that drew the tokens, or the trainer's own before its first update on them. The latter
    does not see how far the two are apart; the paper finds that it collapses."""
    top_k: int = 20
    """Tokens told apart by the gates topk_tv and topk_kl: the likeliest under mu. All others are one."""
    top_k_rule: TopKRule = "add"
    """Where the drawn token is none of them, it is added (paper) or replaces the least likely (Stable-RL)."""

    def __post_init__(self) -> None:
        check_choices("divergence-ppo", self, gate=GateName, anchor=Anchor, top_k_rule=TopKRule)
        has_distributions = self.anchor == "rollout" or not self.gate.startswith("topk")
        check_settings(
            "divergence-ppo",
            self,
            anchor=(has_distributions, "rollout with this gate: distributions are kept of the rollout policy alone"),
            delta=(self.delta is None or self.delta >= 0, ">= 0"),
            ratio_cap=(self.ratio_cap > 0, "> 0"),
            top_k=(self.top_k >= 1, ">= 1"),
        )

    @property
    def needs(self) -> tuple[Need, ...]:
        """Log-probabilities of the rollout policy, and whole distributions for the top-K gates."""
        anchor: tuple[Need, ...] = ("rollout",) if self.anchor == "rollout" else ()
        return (*anchor, "distributions") if self.gate.startswith("topk") else anchor

    def loss(self, record: TokenRecord) -> TokenLoss:
        """[N, T] losses.

        Metrics: ``gate_fraction`` (closed), of which ``gate_fraction_positive`` and ``gate_fraction_negative`` by the
        sign of the advantage; ``capped_fraction``; ``mean_ratio``; ``mean_divergence``.
        """
        require(record, "divergence-ppo", *self.needs)
        mask_NT = record.mask_NT.bool()
        anchor_NT = record.rollout_log_probs_NT if self.anchor == "rollout" else record.old_log_probs_NT
        assert anchor_NT is not None
        log_pi_NT = torch.where(mask_NT, record.log_probs_NT, 0.0)
        with torch.no_grad():
            log_mu_NT = torch.where(mask_NT, anchor_NT, 0.0).to(log_pi_NT.dtype)
            check_finite("The advantage of rollout {}", record.advantages_N, fix="check the rewards")
            advantages_N1 = record.advantages_N.to(log_pi_NT.dtype)[:, None]
            divergence_NT = torch.where(mask_NT, self.divergence(log_mu_NT, log_pi_NT, record), 0.0)
            log_ratio_NT = (log_pi_NT - log_mu_NT).clamp(max=LARGEST_LOG_RATIO)
            is_closed_NT = (divergence_NT > self._delta) & (advantages_N1 * log_ratio_NT > 0)
            capped_NT = log_ratio_NT.clamp(max=math.log(self.ratio_cap)).exp()
            factors_NT = advantages_N1 * capped_NT * (mask_NT & ~is_closed_NT)
            positive_N1 = advantages_N1 > 0
            shown = {
                "gate_fraction": is_closed_NT,
                "gate_fraction_positive": is_closed_NT & positive_N1,
                "gate_fraction_negative": is_closed_NT & ~positive_N1,
                "capped_fraction": log_ratio_NT > math.log(self.ratio_cap),
                "mean_ratio": log_ratio_NT.exp(),
                "mean_divergence": divergence_NT,
            }
            metrics = {name: masked_mean(values_NT, mask_NT) for name, values_NT in shown.items()}
        return TokenLoss(-factors_NT * (1 + log_pi_NT - log_pi_NT.detach()), metrics)

    def divergence(self, log_mu_NT: Tensor, log_pi_NT: Tensor, record: TokenRecord) -> Tensor:
        """[N, T] what the gate compares with ``delta``; anything outside the mask."""
        if self.gate == "ratio":
            return (log_pi_NT - log_mu_NT).expm1().abs()
        if self.gate == "binary_tv":
            return (log_mu_NT.exp() - log_pi_NT.exp()).abs()
        if self.gate == "binary_kl":
            return binary_kl(log_mu_NT, log_pi_NT)
        mu_NTV, pi_NTV, tokens_NT = record.rollout_distribution_NTV, record.distribution_NTV, record.tokens_NT
        if mu_NTV is None or pi_NTV is None or tokens_NT is None:
            raise InvalidInputError(
                f"the gate {self.gate!r} needs the distributions of both policies and the tokens",
                got="None",
                allowed="rollout_distribution_NTV, distribution_NTV, tokens_NT",
                fix="the rollout engine must log its top k, or use a binary gate",
            )
        buckets = top_k_buckets(mu_NTV, pi_NTV, tokens_NT, log_mu_NT, self.top_k, self.top_k_rule)
        return total_variation(*buckets) if self.gate == "topk_tv" else kl_divergence(*buckets)

    @property
    def _delta(self) -> float:
        return DELTAS[self.gate] if self.delta is None else self.delta


def binary_kl(log_mu: Tensor, log_pi: Tensor) -> Tensor:
    """KL(mu || pi) of "this token or another", from the log-probabilities of the token; any shape, nats."""
    other_mu, other_pi = (-log_p.expm1() for log_p in (log_mu, log_pi))
    other = other_mu * (other_mu.clamp(min=_LEAST) / other_pi.clamp(min=_LEAST)).log()
    return log_mu.exp() * (log_mu - log_pi) + other


def top_k_buckets(
    log_mu_NTV: Tensor, log_pi_NTV: Tensor, tokens_NT: Tensor, log_mu_NT: Tensor, k: int, rule: TopKRule
) -> tuple[Tensor, Tensor]:
    """Probabilities [N, T, B] under both policies of the k likeliest tokens of mu, of the drawn one, and of the rest.

    ``log_mu_NTV`` may be -inf where the engine logged nothing; ``log_mu_NT`` is of the drawn token, which it always
    logs. Where the drawn token is among the k, the bucket of its own that ``rule="add"`` provides is empty.
    """
    top_NTK, index_NTK = log_mu_NTV.topk(min(k, log_mu_NTV.shape[-1]), dim=-1)
    is_inside_NT1 = ((index_NTK == tokens_NT[..., None]) & (top_NTK > -torch.inf)).any(-1, keepdim=True)
    drawn_mu_NT1 = log_mu_NT[..., None].exp()
    drawn_pi_NT1 = log_pi_NTV.gather(-1, tokens_NT[..., None]).exp()
    mu_NTB, pi_NTB = top_NTK.exp(), log_pi_NTV.gather(-1, index_NTK).exp()
    pi_NTB = torch.where(mu_NTB > 0, pi_NTB, 0.0)  # what the engine did not log belongs to the rest
    if rule == "replace":
        mu_NTB[..., -1:] = torch.where(is_inside_NT1, mu_NTB[..., -1:], drawn_mu_NT1)
        pi_NTB[..., -1:] = torch.where(is_inside_NT1, pi_NTB[..., -1:], drawn_pi_NT1)
    else:
        mu_NTB = torch.cat([mu_NTB, torch.where(is_inside_NT1, 0.0, drawn_mu_NT1)], -1)
        pi_NTB = torch.cat([pi_NTB, torch.where(is_inside_NT1, 0.0, drawn_pi_NT1)], -1)
    return _with_rest(mu_NTB), _with_rest(pi_NTB)


def total_variation(mu_NTB: Tensor, pi_NTB: Tensor) -> Tensor:
    """[N, T] half the sum of absolute differences of probabilities."""
    return (mu_NTB - pi_NTB).abs().sum(-1) / 2


def kl_divergence(mu_NTB: Tensor, pi_NTB: Tensor) -> Tensor:
    """[N, T] KL(mu || pi) of probabilities, which are cut off below 1e-12 inside the logarithm."""
    return (mu_NTB * (mu_NTB.clamp(min=1e-12) / pi_NTB.clamp(min=1e-12)).log()).sum(-1)


def _with_rest(probabilities_NTB: Tensor) -> Tensor:
    rest_NT1 = (1 - probabilities_NTB.sum(-1, keepdim=True)).clamp(min=0)
    return torch.cat([probabilities_NTB, rest_NT1], -1)


ENTRY = ObjectiveEntry(
    "loss",
    DivergencePPO,
    row=ObjectiveRow(
        "loss of a token: trust region on the probability mass that moved from the rollout policy, capped importance "
        "weights",
        "`delta` infinite: capped importance sampling; `gate=ratio`, no cap: PPO's gradient; on-policy: the policy "
        "gradient",
        "arXiv 2602.04879; verl's `dppo_tv`, `dppo_kl`",
        "thresholds and cap differ by source (docstring); one delta for both signs; top-K adds the drawn token (the "
        "code's replacement by name)",
    ),
)
