"""CAPO: tokens whose step would change the objective or the policy too much, by a second-order model, are rejected.

The model knows the output matrix alone: for a token a with hidden state h and probabilities pi, ``v = e_a - pi`` and
the gradient is ``G = A v h'``. What the optimiser would make of G gives a change ``lr u`` of the logits, and that the
two predicted changes. Only rows of likely vocabulary entries are looked at, a thousand (token, entry) pairs at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from allotment.learning.objective import ObjectiveEntry, ObjectiveRow, check_choices, check_settings
from allotment.learning.record import HeadMoments, Need, TokenFactors, TokenRecord, require

Window = Literal["symmetric", "one_sided"]
StepModel = Literal["adam", "sgd"]
Denominator = Literal["all", "kept"]
_PAIRS = 1024


@dataclass(frozen=True)
class CAPO:
    """Curvature-aware rejection of tokens (arXiv 2510.00819).

    A token is kept if the predicted change of the policy is at most ``tau_policy`` and that of the objective is within
    its window. The released thresholds (policy, objective): 1e-4, 1e-2 on GRPO; 1e-3, 5e-4 on Dr. GRPO; 1e-5, 1e-1
    on REINFORCE. They were found for a model of 7 B parameters at a learning rate of 1.5e-5; both changes depend on
    width and learning rate. Choose them so that a few percent are rejected: where most are, Adam's second moment
    follows the small gradients that are left, and its steps stay as long as before (docs/experiments/).

    ``tau_policy = tau_objective = inf`` keeps every token. Deviations: Adam's moments are the optimiser's own, of the
    clipped gradient of the loss, where the release keeps moments of the mean gradient of the kept tokens; weight decay
    is left out, as in the release; its variants by sentence, by batch and as a penalty are not built.
    """

    tau_policy: float = 1e-4
    """Largest predicted change of the policy, in nats of KL divergence."""
    tau_objective: float = 1e-2
    """Largest predicted change of the objective, in units of the advantage."""
    window: Window = "symmetric"
    """Of the objective's change: between -tau and tau as released, or from ``least_gain`` to tau as in the theory."""
    least_gain: float = 0.0
    """Least change of the objective in a one-sided window; the theory wants more than 0, the release has 0."""
    step_model: StepModel = "adam"
    """What the optimiser would make of a token's gradient: Adam's next step, or the gradient itself."""
    least_probability: float = 1e-3
    """Vocabulary entries below are left out of the model and the rest renormalised; 0 leaves out none."""
    top_k: int | None = None
    """Likeliest vocabulary entries that are looked at, beside the token itself: the sampler's, in the paper."""
    denominator: Denominator = "all"
    """Tokens that the loss of a rollout is divided by: all of them; or those kept, as released, which raises the weight
    of each."""
    needs: ClassVar[tuple[Need, ...]] = ("hidden", "head_moments")

    def __post_init__(self) -> None:
        check_choices("capo", self, window=Window, step_model=StepModel, denominator=Denominator)
        check_settings(
            "capo",
            self,
            tau_policy=(self.tau_policy >= 0, ">= 0"),
            tau_objective=(self.tau_objective >= 0, ">= 0"),
            least_probability=(0 <= self.least_probability < 1, "in [0, 1)"),
            top_k=(self.top_k is None or self.top_k >= 1, ">= 1"),
        )

    @torch.no_grad()
    def factors(self, record: TokenRecord) -> TokenFactors:
        """[N, T] 1 for kept tokens, 0 for rejected ones; with ``denominator="kept"`` the kept share's inverse for 1.

        Metrics: ``rejected``, by reason ``rejected_policy``, ``rejected_objective_low``, ``rejected_objective_high``
        (a token may have several); means ``policy_change`` and ``objective_change``.
        """
        require(record, "capo", *self.needs)
        assert record.hidden_NTH is not None
        assert record.tokens_NT is not None
        assert record.head is not None
        mask_NT = record.mask_NT.bool()
        lengths_N = mask_NT.sum(1)
        changes = predicted_changes(
            record.hidden_NTH[mask_NT],
            record.tokens_NT[mask_NT],
            record.advantages_N.repeat_interleave(lengths_N),
            record.head,
            step_model=self.step_model,
            least_probability=self.least_probability,
            top_k=self.top_k,
        )
        low = -self.tau_objective if self.window == "symmetric" else self.least_gain
        reasons = {
            "rejected_policy": ~(changes.policy_M <= self.tau_policy),
            "rejected_objective_low": changes.objective_M < low,
            "rejected_objective_high": changes.objective_M > self.tau_objective,
        }
        is_rejected_M = torch.stack(list(reasons.values())).any(0)
        values_NT = torch.ones_like(record.log_probs_NT)
        values_NT[mask_NT] = (~is_rejected_M).to(values_NT.dtype)
        if self.denominator == "kept":
            kept_N = (values_NT * mask_NT).sum(1)
            values_NT = torch.where(mask_NT, values_NT * (lengths_N / kept_N.clamp(min=1))[:, None], 1.0)
        shown = {"rejected": is_rejected_M, **reasons}
        shown |= {"policy_change": changes.policy_M, "objective_change": changes.objective_M}
        tokens = max(len(is_rejected_M), 1)
        return TokenFactors(values_NT, {name: values_M.sum() / tokens for name, values_M in shown.items()})


@dataclass(frozen=True)
class Changes:
    """What the step of each of M tokens is predicted to do."""

    objective_M: Tensor
    """``lr <G, Ghat> + lr**2 / 2 A [(v.u)**2 - u'Fu]``, F = diag(pi) - pi pi'."""
    policy_M: Tensor
    """``lr**2 / 2 (v.u)**2``; its mean over a ~ pi is the KL divergence to second order, for u that is not of a."""


def predicted_changes(
    hidden_MH: Tensor,
    tokens_M: Tensor,
    advantages_M: Tensor,
    head: HeadMoments,
    *,
    step_model: StepModel = "adam",
    least_probability: float = 0.0,
    top_k: int | None = None,
) -> Changes:
    """The two predicted changes of each token; ``<G, Ghat>`` is ``A v.u``, since G has rank one.

    Before the optimiser's first step ``step_model="adam"`` is the gradient itself, as released.
    """
    pairs = _pairs((hidden_MH @ head.weight_VH.T).softmax(-1), tokens_M, least_probability, top_k)
    slope_P = advantages_M.to(hidden_MH.dtype)[pairs.token_P] * pairs.v_P
    if step_model == "sgd" or head.steps == 0:
        u_P = slope_P * hidden_MH.square().sum(1)[pairs.token_P]
    else:
        u_P = adam_displacement(slope_P, pairs.row_P, hidden_MH, pairs.token_P, head)
    along_M = pairs.sums(pairs.v_P * u_P)
    fisher_M = pairs.sums(pairs.pi_P * u_P.square()) - pairs.sums(pairs.pi_P * u_P).square()
    lr, squared_M = head.learning_rate, along_M.square()
    curved_M = along_M + lr / 2 * (squared_M - fisher_M)
    return Changes(lr * advantages_M * curved_M, lr**2 / 2 * squared_M)


def adam_displacement(slope_P: Tensor, row_P: Tensor, hidden_MH: Tensor, token_P: Tensor, head: HeadMoments) -> Tensor:
    """[P] change of the logit ``row_P`` for unit learning rate, if Adam's next gradient were token ``token_P``'s alone.

    Row v of the gradient of the objective is ``slope h``; the moments are of the loss, hence the sign. Nothing is
    written back. Constants of Adam's step are brought to the [V, H] side.
    """
    (beta1, beta2), step = head.betas, head.steps + 1
    of_first, of_second = (1 - beta1) / (1 - beta1**step), (1 - beta2) / (1 - beta2**step)
    root = math.sqrt(of_second)
    first_VH = head.first_VH * (-beta1 / (1 - beta1) * root)
    second_VH = head.second_VH * (beta2 / (1 - beta2) * of_second)
    u_P = torch.empty_like(slope_P)
    for first in range(0, len(u_P), _PAIRS):
        some = slice(first, first + _PAIRS)
        hidden_pH, rows_p = hidden_MH.index_select(0, token_P[some]), row_P[some]
        gradient_pH = hidden_pH * (slope_P[some] * root)[:, None]
        spread_pH = second_VH.index_select(0, rows_p).addcmul_(gradient_pH, gradient_pH).sqrt_().add_(head.epsilon)
        step_pH = gradient_pH.add_(first_VH.index_select(0, rows_p)).div_(spread_pH)
        u_P[some] = step_pH.mul_(hidden_pH).sum(1)
    return u_P * (of_first / root)


@dataclass(frozen=True)
class _Pairs:
    """Which vocabulary entries are looked at for which token: P pairs."""

    token_P: Tensor
    row_P: Tensor
    pi_P: Tensor
    """Renormalised probabilities."""
    v_P: Tensor
    """1 for the token itself, minus the probability."""
    tokens: int

    def sums(self, values_P: Tensor) -> Tensor:
        """[M] sums over the entries of each token."""
        return values_P.new_zeros(self.tokens).index_add(0, self.token_P, values_P)


def _pairs(pi_MV: Tensor, tokens_M: Tensor, least_probability: float, top_k: int | None) -> _Pairs:
    is_seen_MV = pi_MV >= least_probability
    if top_k is not None and top_k < pi_MV.shape[1]:
        is_seen_MV &= pi_MV >= pi_MV.topk(top_k).values[:, -1:]
    is_seen_MV.scatter_(1, tokens_M[:, None], True)
    token_P, row_P = is_seen_MV.nonzero(as_tuple=True)
    pi_P = (pi_MV / (pi_MV * is_seen_MV).sum(1, keepdim=True))[is_seen_MV]
    return _Pairs(token_P, row_P, pi_P, (row_P == tokens_M[token_P]).to(pi_P.dtype) - pi_P, len(pi_MV))


ENTRY = ObjectiveEntry(
    "gate",
    CAPO,
    row=ObjectiveRow(
        "gate: rejects tokens by the predicted change of objective and policy (output matrix, Adam's next step)",
        "both thresholds infinite: nothing, bit for bit",
        "arXiv 2510.00819",
        "rows of the vocabulary by least probability (top-k by name); all tokens in the denominator (kept by name); "
        "sentence, batch and penalty variants are not built",
    ),
)
