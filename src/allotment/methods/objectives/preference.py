"""Learning from comparisons: DPO, conservative DPO, and reward distillation, on pairs of a prompt's own rollouts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from allotment.learning.groups import group
from allotment.learning.losses import TokenLoss
from allotment.learning.objective import ObjectiveEntry, ObjectiveRow, check_choices, check_settings
from allotment.learning.record import Need, TokenRecord, require
from allotment.methods.objectives.pairs import (
    Pairs,
    PairsName,
    coverage_metrics,
    design_shares,
    mean_hidden,
    preference_pairs,
)

PreferenceLoss = Literal["dpo", "distillation"]


def dpo_losses(margins_P: Tensor, beta: float, confidence: float = 1.0) -> Tensor:
    """``-c log sigmoid(beta D) - (1 - c) log sigmoid(-beta D)``: DPO at c = 1, conservative DPO below.

    ``margins_P``: [P] D, the log-ratio to the reference of the chosen rollout less that of the rejected one, in nats.
    ``confidence``: c in [0.5, 1], the probability that the label is right; the least loss is where
    ``sigmoid(beta D) = c``. Returns [P]. Source: Rafailov et al. 2023 (arXiv 2305.18290); with c: the released code of
    the representation-based reward.
    """
    return -confidence * logsigmoid(beta * margins_P) - (1 - confidence) * logsigmoid(-beta * margins_P)


def distillation_losses(margins_P: Tensor, differences_P: Tensor, beta: float) -> Tensor:
    """``(beta D - (r(chosen) - r(rejected)))^2``: the policy's implicit reward is fitted to the rewards' differences.

    0 for all pairs where the policy is proportional to ``reference * exp(r / beta)``. What depends on the prompt alone
    drops out of the differences. Both [P]. A reconstruction: squared relative reward regression.
    """
    return (beta * margins_P - differences_P).square()


def label_confidence(gap: float, alpha: float) -> float:
    """``max(sigmoid(alpha gap), 0.5)``: how far labels are believed whose scores lie ``gap`` apart in the mean.

    In [0.5, 1), never falling in ``gap``. Source: released code of the representation-based reward.
    """
    return max(1 / (1 + math.exp(-alpha * gap)), 0.5) if alpha * gap > -700 else 0.5


@dataclass(frozen=True)
class Preference:
    """Preference learning on pairs of rollouts of one prompt, against a fixed reference.

    Two rollouts are compared by the run's rewards; labels are fresh wherever rollouts are. With ``pairs="all"`` a
    prompt's loss is the mean over all n (n - 1) / 2 comparisons, ties counting 0, so that its weight does not depend on
    how many rollouts it got; where the policy is the reference, the gradient of ``dpo`` is ``beta`` times RLOO's.

    Each of a pair's two rollouts y has half of its loss, spread over the tokens of y, so that weights of
    ``length="sum"`` add up to the mean over prompts. Other lengths, and ``token_mean``, would divide it by tokens.
    Gates on tokens do not apply.

    A reconstruction of on-policy DPO: neither the defaults nor the exact distillation losses of the paper on coverage
    were available. With ``pairs="extreme"`` and ``alpha`` it is the training of the representation-based reward, as in
    its released code: best and worst of n, and a confidence in the labels from the mean difference of their rewards.
    """

    beta: float = 0.1
    """What a nat of log-ratio to the reference is worth, in rewards."""
    loss_name: PreferenceLoss = "dpo"
    """``dpo``: labels alone; ``distillation``: differences of rewards."""
    pairs: PairsName = "all"
    alpha: float | None = None
    """Slope of the confidence in labels; None: they are right."""
    design: float = 0.0
    """Share of a preferential G-optimal design in the weights of comparisons, from 0 (all of a prompt alike, prompts
    alike) to 1. It is made over all comparisons of the batch before rewards are looked at, from mean hidden states and
    the policy's margins: :func:`~allotment.methods.objectives.pairs.design_shares`."""
    ridge: float = 0.1
    """Of the coverage number, as a share of the sampler's mean variance."""
    needs: ClassVar[tuple[Need, ...]] = ("reference", "hidden")
    needs_every_row: ClassVar[bool] = True
    """A rollout without advantage can be one of a pair."""

    def __post_init__(self) -> None:
        check_choices("preferences", self, loss_name=PreferenceLoss, pairs=PairsName)
        check_settings(
            "preferences",
            self,
            beta=(0 < self.beta < float("inf"), "a number > 0"),
            alpha=(self.alpha is None or 0 <= self.alpha < float("inf"), "a number >= 0, or null"),
            design=(0 <= self.design <= 1, "from 0 to 1"),
            ridge=(0 < self.ridge < float("inf"), "a number > 0"),
        )
        check_settings(
            "preferences",
            self,
            alpha=(
                self.alpha is None or self.loss_name == "dpo",
                "null with distillation, which has no labels to believe",
            ),
            design=(
                not self.design or self.pairs == "all",
                'pairs "all" with a design: "extreme" looks at rewards first',
            ),
        )

    def loss(self, record: TokenRecord) -> TokenLoss:
        """[N, T] losses; rewards are compared by the record's advantages, which must be those less a group's mean.

        Metrics: ``pairs`` (comparisons that are no ties), ``without_pair`` (share of prompts),
        ``preference_accuracy`` (share of pairs whose chosen rollout has the higher log-ratio to the reference),
        ``margin`` (mean ``beta D``), ``confidence``. Where the record has hidden states and what the policy that drew
        logged, also those of :func:`~allotment.methods.objectives.pairs.coverage_metrics`.
        """
        require(record, "on-policy-dpo", "reference", *(("hidden",) if self.design else ()))
        assert record.reference_log_probs_NT is not None
        mask_NT = record.mask_NT.bool()
        rewards_N = record.advantages_N.detach()
        log_ratio_NT = record.log_probs_NT - record.reference_log_probs_NT.detach()
        log_ratio_N = torch.where(mask_NT, log_ratio_NT, 0.0).sum(1)
        pairs = self._pairs(record, rewards_N, log_ratio_N.detach())
        margins_P = log_ratio_N[pairs.chosen_P] - log_ratio_N[pairs.rejected_P]
        differences_P = (rewards_N[pairs.chosen_P] - rewards_N[pairs.rejected_P]).to(margins_P.dtype)
        confidence = self._confidence(differences_P)
        if self.loss_name == "dpo":
            losses_P = dpo_losses(margins_P, self.beta, confidence)
        else:
            losses_P = distillation_losses(margins_P, differences_P, self.beta)
        values_N = _per_rollout(losses_P, pairs, record.group_ids_N) / mask_NT.sum(1).clamp(min=1)
        metrics = _metrics(pairs, margins_P.detach(), differences_P, self.beta, confidence)
        return TokenLoss(values_N[:, None] * mask_NT, metrics | self._coverage(record, mask_NT))

    def _pairs(self, record: TokenRecord, rewards_N: Tensor, log_ratio_N: Tensor) -> Pairs:
        """The comparisons with their shares; ties among them only for distillation."""
        ties = self.loss_name == "distillation"
        pairs = preference_pairs(rewards_N, record.group_ids_N, self.pairs, ties=ties)
        if not self.design:
            return pairs
        assert record.hidden_NTH is not None
        features_NH = mean_hidden(record.hidden_NTH, record.mask_NT.bool())
        shares_NN = design_shares(record.group_ids_N, features_NH, self.beta * log_ratio_N, self.design)
        return replace(pairs, shares_P=shares_NN[pairs.chosen_P, pairs.rejected_P])

    def _coverage(self, record: TokenRecord, mask_NT: Tensor) -> dict[str, Tensor]:
        if record.hidden_NTH is None or record.rollout_log_probs_NT is None:
            return {}
        log_weights_NT = torch.where(mask_NT, record.log_probs_NT.detach() - record.rollout_log_probs_NT, 0.0)
        features_NH = mean_hidden(record.hidden_NTH, mask_NT)
        return coverage_metrics(features_NH, record.group_ids_N, log_weights_NT.sum(1), self.ridge)

    def _confidence(self, differences_P: Tensor) -> float:
        if self.alpha is None:
            return 1.0
        return label_confidence(float(differences_P.mean()), self.alpha) if len(differences_P) else 0.5


def _per_rollout(losses_P: Tensor, pairs: Pairs, group_ids_N: Tensor) -> Tensor:
    """[N] of which the mean over a group is the weighted sum of its pairs' losses."""
    halves_P = losses_P * pairs.shares_P.to(losses_P.dtype) / 2
    summed_N = losses_P.new_zeros(len(group_ids_N))
    for rows_P in (pairs.chosen_P, pairs.rejected_P):
        summed_N = summed_N.index_add(0, rows_P, halves_P)
    return summed_N * group(group_ids_N).sizes_per_rollout()


def _metrics(
    pairs: Pairs, margins_P: Tensor, differences_P: Tensor, beta: float, confidence: float
) -> dict[str, Tensor]:
    """Means over the pairs that are no ties; 0 where there is none."""
    margins_P = margins_P[differences_P > 0]
    decided = max(len(margins_P), 1)
    return {
        "pairs": torch.tensor(len(margins_P)),
        "without_pair": torch.tensor(pairs.without_pair / pairs.groups),
        "preference_accuracy": (margins_P > 0).sum() / decided,
        "margin": beta * margins_P.sum() / decided,
        "confidence": torch.tensor(confidence),
    }


ENTRY = ObjectiveEntry(
    "loss",
    Preference,
    advantage="dr_grpo",
    whole=True,
    preferences=True,
    row=ObjectiveRow(
        "loss of a pair: DPO on two rollouts of a prompt whose verified rewards differ, against the fixed initial "
        "policy; or squared regression of reward differences (`loss_name=distillation`)",
        "policy at the reference: `beta` times the gradient of `rloo`; an actor of one long round: offline DPO",
        "arXiv 2601.08421 (abstract); DPO, arXiv 2305.18290",
        "a reconstruction: defaults, distillation loss; a tie counts 0 in the mean over all pairs of a prompt, so that "
        "its weight does not depend on how many rollouts it got",
    ),
)
