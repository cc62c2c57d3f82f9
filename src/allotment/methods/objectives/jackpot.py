"""Jackpot: rollouts of another policy, thinned out until they look as if the trained one had drawn them.

Optimal budgeted rejection sampling (OBRS): a token that the actor draws with probability q and that has probability p
under the target is kept with probability ``a = min(1, p / (lambda q))``. Kept tokens then have the distribution
``q~ = min(q, p / lambda) / Z`` with ``Z = sum min(q, p / lambda)``, the share that is kept. Of all rules that keep this
share none has a smaller KL(p || q~). Larger lambda rejects more: lambda <= min p/q keeps all, lambda >= max p/q gives
q~ = p with Z = 1 / lambda.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from allotment.errors import InvalidInputError
from allotment.learning.losses import masked_mean
from allotment.learning.objective import ObjectiveEntry, ObjectiveRow, check_choices, check_settings
from allotment.learning.record import Need, TokenFactors, TokenRecord, require

Target = Literal["current", "old"]
Average = Literal["all", "accepted"]
NormaliserName = Literal["exact", "top_k"]


@dataclass(frozen=True)
class Jackpot:
    """Rejects tokens of the rollout policy at random and weighs the others (Jackpot, arXiv 2602.06107).

    Of a token with probability q under the policy that drew it, p under ``target``, p_old before the first update, the
    factor is ``Mask min(max(lambda, p/q), c1) min(p_old/p, c2)`` with Mask ~ Bernoulli(min(1, p / (lambda q))). The
    loss stays an average over *all* tokens, so there is no Z in it: ``a max(lambda, p/q) = p/q`` for every lambda, and
    without truncation E_q[factor f] = E_p[f] for every context, also where lambda was chosen on the same tokens.

    The paper weighs by ``w = Z max(lambda, p/q)`` and averages over accepted tokens: ``average="accepted"``, factor
    ``Mask min(w, c1) min(p_old/p, c2) / (accepted share of the batch)``. Over one context this is E_p[f] too; over
    several, each counts in proportion to its Z, less where the two policies differ.

    What is corrected is each token given what stands before it; prefixes remain those of the actor. ``lam=0`` keeps
    all tokens: truncated importance sampling (TIS) of single tokens, min(p/q, c1). Where lambda <= c1 that is also the
    mean of Jackpot's factor over its random masks, so that over all tokens it has the expectation of TIS with the same
    cap, and more variance. With ``rate < 1`` some tokens are rejected even where the two policies are equal.

    Whether a token is kept is decided by ``uniforms_NT`` of the record, which the trainer draws from its seed and step
    together with the rollouts: every update of a step decides by the same numbers.

    Reconstructed: lambda, c1, c2 are not in the paper, which reports an acceptance of about 95 %; c1 = c2 = 2 is the
    usual cap of TIS. The paper does not say how lambda follows from a rate: here the mean acceptance probability of the
    drawn tokens, an unbiased estimate of the mean of Z, is the rate. The paper's algorithm leaves the mask out of its
    last line, its objective has it. The authors have published no code.
    """

    rate: float = 0.95
    """Share of tokens to keep; lambda follows from the tokens of each update."""
    lam: float | None = None
    """lambda, instead of the rate; 0 is truncated importance sampling."""
    c1: float = 2.0
    """Largest weight for p against q."""
    c2: float = 2.0
    """Largest weight for p_old against p."""
    target: Target = "current"
    """p is of the policy that is trained, as it is or as it was before the first update; the paper finds the latter
    steadier, the former better where rollouts are very late. Without truncation both have the same expectation."""
    average: Average = "all"
    """Over all tokens, or the paper's, over accepted ones."""
    normaliser: NormaliserName | None = None
    """How Z is known: from whole distributions, which also tells the KL divergence before and after; or from the
    ``top_k`` of both policies, scaled so that its mean is the accepted share. Needed by `accepted` alone."""
    top_k: int = 20

    def __post_init__(self) -> None:
        check_choices("jackpot", self, target=Target, average=Average)
        if self.normaliser is not None:
            check_choices("jackpot", self, normaliser=NormaliserName)
        has_normaliser = self.normaliser is not None
        check_settings(
            "jackpot",
            self,
            average=(self.average == "all" or has_normaliser, "accepted with a normaliser, exact or top_k"),
            target=(
                self.target == "current" or not has_normaliser,
                "current with a normaliser: distributions are of the current policy",
            ),
            rate=(0 < self.rate <= 1, "0 < rate <= 1"),
            lam=(self.lam is None or 0 <= self.lam < math.inf, "0 <= lam, finite"),
            c1=(self.c1 > 0, "> 0"),
            c2=(self.c2 > 0, "> 0"),
            top_k=(self.top_k >= 1, ">= 1"),
        )

    @property
    def needs(self) -> tuple[Need, ...]:
        """Log-probabilities of the rollout policy, random numbers, and whole distributions for a normaliser."""
        always: tuple[Need, ...] = ("rollout", "uniforms")
        return always if self.normaliser is None else (*always, "distributions")

    @torch.no_grad()
    def factors(self, record: TokenRecord) -> TokenFactors:
        """[N, T] factors.

        Metrics: ``rejected`` and ``truncated`` (kept, with a weight cut by c1 or c2) shares of the mask's tokens;
        ``acceptance`` (mean probability of being kept); ``lambda``; ``mean_factor`` (of all tokens, about 1); with the
        exact normaliser ``kl_before`` = KL(p || q) and ``kl_after`` = KL(p || q~), means over tokens.
        """
        require(record, "jackpot", *self.needs)
        mask_NT = record.mask_NT.bool()
        rollout_NT, uniforms_NT = record.rollout_log_probs_NT, record.uniforms_NT
        assert rollout_NT is not None
        assert uniforms_NT is not None
        log_q_NT, old_NT, new_NT = (
            torch.where(mask_NT, x, 0.0) for x in (rollout_NT, record.old_log_probs_NT, record.log_probs_NT)
        )
        log_p_NT = old_NT if self.target == "old" else new_NT
        log_ratio_NT = log_p_NT - log_q_NT
        lam = solve_lambda(log_ratio_NT[mask_NT], self.rate) if self.lam is None else log_q_NT.new_tensor(self.lam)
        acceptance_NT = obrs_acceptance(log_ratio_NT, lam)
        accepted_NT = mask_NT & (uniforms_NT < acceptance_NT)
        share, weight_NT = masked_mean(accepted_NT, mask_NT), torch.maximum(log_ratio_NT.exp(), lam)
        metrics: dict[str, Tensor] = {}
        if self.normaliser is not None:
            normaliser_NT, metrics = self._normaliser(record, mask_NT, lam, share)
            weight_NT = weight_NT * normaliser_NT / share if self.average == "accepted" else weight_NT
        shift_NT = (old_NT - log_p_NT).exp()
        cap = self.c1 / share if self.average == "accepted" else self.c1
        factors_NT = torch.where(accepted_NT, weight_NT.clamp(max=cap) * shift_NT.clamp(max=self.c2), 0.0)
        truncated_NT = (weight_NT > cap) | (shift_NT > self.c2)
        metrics |= {
            "rejected": masked_mean(~accepted_NT, mask_NT),
            "truncated": masked_mean(truncated_NT & accepted_NT, mask_NT),
            "acceptance": masked_mean(acceptance_NT, mask_NT),
            "lambda": lam,
            "mean_factor": masked_mean(factors_NT, mask_NT),
        }
        return TokenFactors(factors_NT, metrics)

    def _normaliser(
        self, record: TokenRecord, mask_NT: Tensor, lam: Tensor, share: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """[N, T] Z of every token's context, and what there is to log of it."""
        log_p_NTV, log_q_NTV = record.distribution_NTV, record.rollout_distribution_NTV
        assert log_p_NTV is not None
        if log_q_NTV is None:
            raise InvalidInputError(
                f"the normaliser {self.normaliser!r} needs rollout_distribution_NTV",
                got="None",
                allowed="[N, T, V]",
                fix="the rollout engine must log its top k, or leave the normaliser out",
            )
        if self.normaliser == "top_k":
            part_NT = top_k_normaliser(log_p_NTV, log_q_NTV, lam, self.top_k)
            scale = share / masked_mean(part_NT, mask_NT).clamp(min=torch.finfo(part_NT.dtype).tiny)
            return part_NT * scale, {"normaliser_scale": scale}
        before_NT = kl_divergence(log_p_NTV, log_q_NTV)
        after_NT = kl_divergence(log_p_NTV, obrs_distribution(log_p_NTV, log_q_NTV, lam))
        metrics = {"kl_before": masked_mean(before_NT, mask_NT), "kl_after": masked_mean(after_NT, mask_NT)}
        return normaliser(log_p_NTV, log_q_NTV, lam), metrics


def obrs_acceptance(log_ratio: Tensor, lam: float | Tensor) -> Tensor:
    """``min(1, p / (lambda q))`` from ``log p - log q``, any shape; 1 for lambda = 0, 0 where p = 0."""
    return _over_lambda(log_ratio, lam).clamp(max=0).exp()


def obrs_distribution(log_p: Tensor, log_q: Tensor, lam: float | Tensor) -> Tensor:
    """[..., V] logarithms of ``q~ = min(q, p / lambda) / Z``, what accepted tokens are drawn from."""
    return torch.minimum(log_q, _over_lambda(log_p, lam)).log_softmax(-1)


def normaliser(log_p: Tensor, log_q: Tensor, lam: float | Tensor) -> Tensor:
    """[...] ``Z = sum min(q, p / lambda)`` over the last axis: the expected acceptance; ``1 - TV(p, q)`` at 1."""
    return torch.minimum(log_q, _over_lambda(log_p, lam)).exp().sum(-1)


def top_k_normaliser(log_p: Tensor, log_q: Tensor, lam: float | Tensor, k: int) -> Tensor:
    """[...] the part of Z that stands in the k likeliest tokens of p and of q, united; never above Z.

    ``log_q`` may be -inf where the engine logged nothing; those tokens add nothing.
    """
    terms = torch.minimum(log_q, _over_lambda(log_p, lam)).exp()
    is_top = torch.zeros_like(terms, dtype=torch.bool)
    for log_x in (log_p, log_q):
        is_top.scatter_(-1, log_x.topk(min(k, log_x.shape[-1]), -1).indices, True)
    return torch.where(is_top, terms, 0.0).sum(-1)


def solve_lambda(log_ratios_M: Tensor, rate: float, weights_M: Tensor | None = None) -> Tensor:
    """[] lambda at which the mean of ``min(1, p / (lambda q))`` is ``rate``.

    ``log_ratios_M``: [M] ``log p - log q`` of tokens that were drawn from q, all alike; or of a whole vocabulary with
    ``weights_M`` its q. A rate of 1, or one above the mass where p > 0, gives the largest lambda that rejects no token
    with p > 0; no tokens give 1.

    The mean falls in lambda and is ``below / lambda + above`` between two neighbouring ratios, so that sorting finds
    the root exactly, where the paper's bisection comes near it.
    """
    possible_M = log_ratios_M > -math.inf
    if not possible_M.any():
        return log_ratios_M.new_ones(())
    weights_M = torch.full_like(log_ratios_M, 1 / len(log_ratios_M)) if weights_M is None else weights_M
    ratios_M, order_M = log_ratios_M[possible_M].double().exp().sort()
    weights_M = weights_M[possible_M].double()[order_M]
    below_M = (weights_M * ratios_M).cumsum(0)
    above_M = weights_M.sum() - weights_M.cumsum(0)
    reached = int((below_M / ratios_M + above_M >= rate).sum())
    if reached == 0 or rate == 1:
        return ratios_M[0].to(log_ratios_M.dtype)
    return (below_M[reached - 1] / (rate - above_M[reached - 1])).to(log_ratios_M.dtype)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """[...] KL(p || q) in nats over the last axis; differentiable, tokens with p = 0 add nothing."""
    return torch.where(log_p > -math.inf, log_p.exp() * (log_p - log_q), 0.0).sum(-1)


def _over_lambda(log_p: Tensor, lam: float | Tensor) -> Tensor:
    """``log(p / lambda)``; inf for lambda = 0, but -inf where p = 0."""
    shifted = log_p - torch.as_tensor(lam, dtype=log_p.dtype).log()
    return torch.where(log_p > -math.inf, shifted, -math.inf)


ENTRY = ObjectiveEntry(
    "gate",
    Jackpot,
    row=ObjectiveRow(
        "gate: rejects tokens of another actor by `min(1, p/(lambda q))`, weighs the rest by `max(lambda, p/q)`",
        "`lam` 0: truncated importance sampling; on-policy and `lam` at most 1: nothing",
        "arXiv 2602.06107",
        "average over all tokens without Z (the paper's as `average=accepted`); lambda from the drawn tokens; caps 2, "
        "distillation weight 1 and the actor's learning rate are choices",
    ),
)
