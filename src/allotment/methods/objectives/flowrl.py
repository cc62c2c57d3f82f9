"""FlowRL: trajectory balance. The policy is fitted to the whole distribution of rewards, not to its best answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from allotment.learning.groups import check_finite
from allotment.learning.losses import TokenLoss, masked_mean
from allotment.learning.objective import ObjectiveEntry, ObjectiveRow, check_choices, check_settings
from allotment.learning.record import Need, TokenRecord, require

Normalisation = Literal["length", "none"]
TrajectoryWeight = Literal["both", "above", "unclipped", "none"]

_LARGEST_LOG_WEIGHT = 20.0


class LogPartition(nn.Module):
    """``log Z`` of a prompt from the mean hidden state of its tokens: three linear layers, GELU, LayerNorm, dropout.

    What dropout draws is a function of the seed and of the number of calls, which is part of the state; so a run that
    is resumed draws the same.
    """

    calls: Tensor

    def __init__(self, width: int, dropout: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        self._seed = seed
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = [(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Dropout(dropout)) for _ in range(2)]
            self.layers = nn.Sequential(*layers[0], *layers[1])
            self.last = nn.Linear(width, 1)

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """[N] from [N, H], in the dtype of the parameters."""
        self.calls += 1
        with torch.random.fork_rng():
            torch.manual_seed(self._seed * 1_000_003 + int(self.calls))
            hidden_NH = self.layers(hidden_NH.to(self.last.weight.dtype))
        log_z_N: Tensor = self.last(hidden_NH).squeeze(-1)
        return log_z_N


@dataclass(frozen=True, eq=False)
class FlowRL:
    """Trajectory balance with a learnt partition function (arXiv 2509.15207).

    The loss of a rollout y of prompt x is ``w d^2`` with the residual

        d = log Z(x) + log pi(y|x) / |y| - beta A - log pi_ref(y|x) / |y|

    where A is the record's advantage; the paper's is the reward standardised within its group (GRPO's advantage). It is
    0 for all y where pi is proportional to ``pi_ref exp(|y| (beta A - log Z))``: with length normalisation the
    temperature depends on the length, without it the target is ``pi_ref exp(beta A) / Z``, and the mean gradient on
    on-policy rollouts is twice that of KL(pi || target), whatever log Z is.

    Each token of y has ``w d^2 / |y|``, so that weights of ``length="sum"`` make a rollout count ``w d^2`` times its
    weight; other lengths, and ``token_mean``, would divide it by a number of tokens. Gates on tokens do not apply.
    """

    width: int
    """H, of the hidden states."""
    beta: float = 15.0
    """What a unit of advantage is worth, in nats (a token, with length normalisation)."""
    normalisation: Normalisation = "length"
    """``length``: log-probabilities are divided by the number of tokens; ``none``: they are not."""
    weight: TrajectoryWeight = "both"
    """w from the ratio pi / pi_old of the whole trajectory, without gradient. ``both``: clipped to 1 +- ``clip`` (the
    paper); ``above``: at most ``cap`` (the newer recipe); ``unclipped`` (the released code); ``none``: 1."""
    clip: float = 0.2
    """The paper's epsilon, which it does not give; 0.2 is its trainer's default."""
    cap: float = 10.0
    dropout: float = 0.1
    seed: int = 0
    """Of log Z: its first parameters, and what dropout leaves out."""
    module: LogPartition = field(init=False, repr=False)
    """log Z, to be trained beside the policy, and saved."""
    needs: ClassVar[tuple[Need, ...]] = ("reference", "prompt_hidden")
    needs_every_row: ClassVar[bool] = True
    """Rollouts without advantage are pulled to the reference."""

    def __post_init__(self) -> None:
        check_choices("flowrl", self, normalisation=Normalisation, weight=TrajectoryWeight)
        check_settings(
            "flowrl",
            self,
            beta=(0 < self.beta < float("inf"), "a number > 0"),
            clip=(0 <= self.clip <= 1, "from 0 to 1"),
            cap=(self.cap >= 1, "at least 1"),
            dropout=(0 <= self.dropout < 1, "from 0 to below 1"),
        )
        object.__setattr__(self, "module", LogPartition(self.width, self.dropout, self.seed))

    def loss(self, record: TokenRecord) -> TokenLoss:
        """[N, T] losses. Metrics are means over the rollouts that have a token; ``empty`` counts the others.

        ``log_ratio_to_reference`` is of whole rollouts, in nats: an estimate of KL(pi || pi_ref) on-policy.
        """
        require(record, "flowrl", *self.needs)
        assert record.reference_log_probs_NT is not None
        assert record.prompt_hidden_NH is not None
        mask_NT = record.mask_NT.bool()
        tokens_N = mask_NT.sum(1)
        log_pi_N, log_old_N, log_reference_N = (
            torch.where(mask_NT, log_probs_NT, 0.0).sum(1)
            for log_probs_NT in (record.log_probs_NT, record.old_log_probs_NT, record.reference_log_probs_NT)
        )
        per_N = tokens_N.clamp(min=1) if self.normalisation == "length" else 1
        log_z_N = self.module(record.prompt_hidden_NH.detach()).to(log_pi_N.dtype)
        reward_N = self.beta * record.advantages_N.detach().to(log_pi_N.dtype)
        residual_N = log_z_N + (log_pi_N - log_reference_N.detach()) / per_N - reward_N
        check_finite(
            "The residual of rollout {}",
            residual_N,
            allowed="finite advantages, prompt hidden states and partition function",
            fix="check the rewards, and that training has not diverged",
        )
        weights_N = self._weights((log_pi_N - log_old_N).detach())
        values_N = weights_N * residual_N.square() / tokens_N.clamp(min=1)
        with torch.no_grad():
            has_tokens_N = tokens_N > 0
            shown = {
                "log_z": log_z_N,
                "squared_residual": residual_N.square(),
                "mean_weight": weights_N,
                "clipped_fraction": weights_N != (log_pi_N - log_old_N).clamp(max=_LARGEST_LOG_WEIGHT).exp(),
                "log_ratio_to_reference": log_pi_N - log_reference_N,
            }
            metrics = {name: masked_mean(values_N, has_tokens_N) for name, values_N in shown.items()}
            metrics["empty"] = (~has_tokens_N).sum()
        return TokenLoss(values_N[:, None] * mask_NT, metrics)

    def _weights(self, log_ratio_N: Tensor) -> Tensor:
        """[N] w from log-ratios of trajectories."""
        ratio_N = log_ratio_N.clamp(max=_LARGEST_LOG_WEIGHT).exp()
        if self.weight == "both":
            return ratio_N.clamp(1 - self.clip, 1 + self.clip)
        if self.weight == "above":
            return ratio_N.clamp(max=self.cap)
        return ratio_N if self.weight == "unclipped" else torch.ones_like(ratio_N)


ENTRY = ObjectiveEntry(
    "loss",
    FlowRL,
    advantage="grpo",
    whole=True,
    row=ObjectiveRow(
        "loss of a rollout: `w (log Z + (log pi - log pi_ref)/length - beta A)^2` with a trained log Z",
        "equal rewards: only the pull to the reference; without length normalisation, on-policy: twice the gradient of "
        "the reverse KL",
        "arXiv 2509.15207",
        "clip .2 is a reconstruction; the released code multiplies by the unclipped weight (by name); log Z sends no "
        "gradient into the trunk; all prompt tokens are pooled",
    ),
)
