"""The clipped surrogate as an objective: the one that runs where no other is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from allotment.learning.losses import TokenLoss, clipped_surrogate
from allotment.learning.record import Need, TokenRecord


@dataclass(frozen=True)
class Surrogate:
    """PPO's surrogate against the old policy, see :func:`~allotment.learning.losses.clipped_surrogate`."""

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
