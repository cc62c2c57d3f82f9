"""From ragged groups of rewards to a scalar loss (torch): advantages, token losses, weights.

Pure functions on flat tensors. Groups are named by integer ids, may have unequal sizes and may be interleaved in any
order; nothing is padded to equal groups. The order of a training step::

    advantages_N = rloo_advantages(rewards_N, group_ids_N)
    weights_NT = rollout_weights(group_ids_N, mask_NT)
    token_loss = clipped_surrogate(log_probs_NT, old_log_probs_NT, advantages_N, mask_NT)
    loss = (weights_NT * token_loss.values_NT).sum()

:func:`last_layer_scores` and :func:`layer_scores` make what ``planner.tell(..., scores=...)`` takes.
``docs/weights.md`` says which combinations keep the objective and which silently re-weight it.
"""

from __future__ import annotations

from allotment.errors import needs_extra

with needs_extra("train"):
    import torch as _torch  # noqa: F401

from allotment.learning.advantages import (
    AdvantageFunction,
    AdvantageName,
    SecondLookName,
    advantage_estimator,
    baseline_advantages,
    dr_grpo_advantages,
    grpo_advantages,
    rloo_advantages,
    second_look_advantages,
)
from allotment.learning.aggregation import Aggregation, Length, aggregate, check_believed, rollout_weights
from allotment.learning.effective import effective_weights
from allotment.learning.groups import Groups, group
from allotment.learning.losses import TokenLoss, clipped_surrogate
from allotment.learning.selected import selected_advantages_and_weights
from allotment.learning.sketches import SketchDirections, last_layer_scores, layer_scores

__all__ = [
    "AdvantageFunction",
    "AdvantageName",
    "Aggregation",
    "Groups",
    "Length",
    "SecondLookName",
    "SketchDirections",
    "TokenLoss",
    "advantage_estimator",
    "aggregate",
    "baseline_advantages",
    "check_believed",
    "clipped_surrogate",
    "dr_grpo_advantages",
    "effective_weights",
    "group",
    "grpo_advantages",
    "last_layer_scores",
    "layer_scores",
    "rloo_advantages",
    "rollout_weights",
    "second_look_advantages",
    "selected_advantages_and_weights",
]
