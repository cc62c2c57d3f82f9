"""A divisor that depends on no rollout, as a belief in place of a baseline needs:
``--custom-pg-loss-reducer-function-path``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from allotment.integrations.slime.needed import needs_slime


def sum_of_tokens(
    total_lengths: list[int], response_lengths: list[int], loss_masks: list[Any], calculate_per_token_loss: bool = False
) -> Callable[[Any], Any]:
    """The sum over a rollout's tokens, where slime's own divides by their number; the mean over rollouts stays.

    Losses and gradients grow with the mean length: lower the learning rate, or the gradient's norm limit, to suit.
    """
    with needs_slime():
        from slime.backends.megatron_utils.cp_utils import (  # type: ignore[import-not-found]
            get_sum_of_sample_mean,
        )
    ones = [mask.sum() * 0 + 1 for mask in loss_masks]
    reducer: Callable[[Any], Any] = get_sum_of_sample_mean(total_lengths, response_lengths, loss_masks, ones, False)
    return reducer
