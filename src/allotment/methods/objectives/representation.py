"""A reward that is read from the hidden states of a policy: a probe of every layer, fitted to pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from allotment.errors import InvalidInputError

_BATCH = 16
"""Pairs of a step of the fit."""


class RepresentationProbe(nn.Module):
    """Reads one score s from the hidden states h of L layers, each of which has a vote.

        t_l = w_l · h_l + b_l,   g = sigmoid(V t),   s = sum over l of g_l t_l

    Source: released code of the representation-based reward (arXiv 2503.10093). A reconstruction: all parameters start
    at 0, so that directions in which no pair differs stay without a weight, and no random number is drawn.
    """

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.weight_LH = nn.Parameter(torch.zeros(layers, width))
        self.bias_L = nn.Parameter(torch.zeros(layers))
        self.votes_LL = nn.Parameter(torch.zeros(layers, layers))

    def forward(self, states_NLH: Tensor) -> Tensor:
        """[N] scores from [N, L, H] hidden states, to which no gradient goes.

        Raises:
            InvalidInputError: another shape, or a score that is not finite.
        """
        if states_NLH.ndim != 3 or states_NLH.shape[1:] != self.weight_LH.shape:
            raise InvalidInputError(
                "These hidden states are not what the probe reads.",
                got=f"shape {tuple(states_NLH.shape)}",
                allowed=f"[N, {', '.join(map(str, self.weight_LH.shape))}]: rollouts, layers, width",
                fix="give the states of the layers that the probe was made for",
            )
        states_NLH = states_NLH.detach().to(self.weight_LH.dtype)
        readings_NL = torch.einsum("nlh,lh->nl", states_NLH, self.weight_LH) + self.bias_L
        scores_N: Tensor = (torch.sigmoid(readings_NL @ self.votes_LL.T) * readings_NL).sum(1)
        if not torch.isfinite(scores_N).all():
            row = int((~torch.isfinite(scores_N)).nonzero()[0])
            raise InvalidInputError(
                f"The score of rollout {row} is not finite.",
                got=f"{scores_N[row].item()} from hidden states up to {states_NLH[row].abs().max().item()}",
                allowed="finite hidden states, and a probe with finite parameters",
                fix="check that neither the policy nor the probe has diverged",
            )
        return scores_N


def margin_losses(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """``-log sigmoid(s_c - s_r - 1)`` of scores of pairs, both [P]: the right order by a margin of 1. Returns [P]."""
    return -logsigmoid(chosen_P - rejected_P - 1)


@dataclass(frozen=True)
class ProbeFit:
    """The epoch that was kept (from 1), and the share of the pairs held out that it has in order."""

    epoch: int
    accuracy: float


def fit_probe(
    probe: RepresentationProbe,
    chosen_PLH: Tensor,
    rejected_PLH: Tensor,
    held_out_P: Tensor,
    *,
    epochs: int = 50,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> ProbeFit:
    """Fit a probe in place by the margin loss, and keep the epoch that is best on the pairs held out.

    Adam with the released code's settings; the first of equal epochs is kept. ``seed`` orders the pairs, and is all
    that is random. Reconstructions: the batch size; whole prompts are held out, which is left to the caller; of the
    code's three criteria the order of a pair, because the loss leaves open where s is 0.

    ``chosen_PLH``, ``rejected_PLH``: [P, L, H] hidden states of the pairs. ``held_out_P``: [P] bool, pairs that are not
    learnt from. ``epochs``: passes over the others, >= 1.

    Raises:
        InvalidInputError: no pair to learn from, or none held out; no epoch.
    """
    train_P, test_P = (~held_out_P).nonzero().squeeze(1), held_out_P.nonzero().squeeze(1)
    if not (len(train_P) and len(test_P) and epochs >= 1):
        raise InvalidInputError(
            "A probe cannot be fitted.",
            got=f"{len(train_P)} pairs to learn from, {len(test_P)} held out, {epochs} epochs",
            allowed="at least one of each",
            fix="label more prompts: only those with right and wrong rollouts make pairs",
        )
    optimizer = probe_optimizer(probe, learning_rate)
    generator = torch.Generator().manual_seed(seed)
    best, kept = ProbeFit(0, -1.0), {}
    for epoch in range(1, epochs + 1):
        for rows in torch.split(train_P[torch.randperm(len(train_P), generator=generator)], _BATCH):
            probe_step(probe, optimizer, chosen_PLH[rows], rejected_PLH[rows])
        with torch.no_grad():
            in_order_P = probe(chosen_PLH[test_P]) > probe(rejected_PLH[test_P])
            accuracy = in_order_P.double().mean().item()
        if accuracy > best.accuracy:
            best = ProbeFit(epoch, accuracy)
            kept = {name: value.clone() for name, value in probe.state_dict().items()}
    probe.load_state_dict(kept)
    return best


def probe_optimizer(probe: RepresentationProbe, learning_rate: float) -> torch.optim.Adam:
    """Adam with the weight decay of the released code."""
    return torch.optim.Adam(probe.parameters(), lr=learning_rate, weight_decay=0.01)


def probe_step(
    probe: RepresentationProbe, optimizer: torch.optim.Optimizer, chosen_PLH: Tensor, rejected_PLH: Tensor
) -> float:
    """One optimiser step on the mean margin loss of pairs, both [P, L, H]; returns the loss before it."""
    loss = margin_losses(probe(chosen_PLH), probe(rejected_PLH)).mean()
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def auc(scores_N: ArrayLike, labels_N: ArrayLike) -> float:
    """Probability that a right rollout scores above a wrong one, ties counting a half; by ranks.

    ``scores_N``: [N] finite. ``labels_N``: [N] 1 or True for right.

    Raises:
        InvalidInputError: a score that is not finite, shapes that differ, or labels that are all equal.
    """
    scores, labels = np.asarray(scores_N, dtype=np.float64), np.asarray(labels_N, dtype=bool)
    right, wrong = int(labels.sum()), int((~labels).sum())
    if scores.shape != labels.shape or scores.ndim != 1 or not (right and wrong) or not np.isfinite(scores).all():
        raise InvalidInputError(
            "There is no area under this curve.",
            got=f"scores {scores.shape}, labels {labels.shape}: {right} right, {wrong} wrong; "
            f"{int((~np.isfinite(scores)).sum())} scores not finite",
            allowed="[N] finite scores, [N] labels of both kinds",
            fix="leave out groups whose rollouts are all right or all wrong",
        )
    above = rankdata(scores)[labels].sum() - right * (right + 1) / 2
    return float(above / (right * wrong))


def auc_within(scores_N: ArrayLike, labels_N: ArrayLike, group_ids_N: ArrayLike) -> float:
    """Mean of :func:`auc` over the prompts that have right and wrong rollouts: what comparing within groups lives on.

    ``group_ids_N``: [N] the prompt of each rollout.

    Raises:
        InvalidInputError: there is no such prompt, or a score that is not finite.
    """
    scores, labels, ids = np.asarray(scores_N), np.asarray(labels_N, dtype=bool), np.asarray(group_ids_N)
    groups = [ids == i for i in np.unique(ids)]
    mixed = [rows for rows in groups if 0 < labels[rows].sum() < rows.sum()]
    if not mixed:
        raise InvalidInputError(
            "All prompts are one-sided, so nothing can be compared within them.",
            got=f"{len(groups)} prompts with right rollouts alone or wrong ones alone",
            allowed="at least one prompt with both",
            fix="draw more rollouts, or take prompts that are neither solved nor hopeless",
        )
    return float(np.mean([auc(scores[rows], labels[rows]) for rows in mixed]))
