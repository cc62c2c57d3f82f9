"""The weight of a prompt with one of verl's own estimators: the same for each, whatever its number of rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transfer_queue as tq
from tensordict import TensorDict

from allotment.integrations.verl.passes import is_padding
from allotment.types import FloatArray


def final_keys(batch: Any) -> list[str]:
    """One key, ``uid_session_index``, for each rollout: that of its last output; none for padding."""
    last: dict[str, str] = {}
    for key, tag in zip(batch.keys, batch.tags, strict=True):
        rollout, index = key.rsplit("_", 1)
        if not is_padding(tag) and int(index) >= int(last.get(rollout, key).rsplit("_", 1)[1]):
            last[rollout] = key
    return list(last.values())


def weigh(batch: Any, keys: Sequence[str], factors_N: FloatArray) -> None:
    """Multiply the advantages of each rollout, all its outputs, with its factor; they stay as they are where all are 1.

    Args:
        batch: verl's, whose advantages are in TransferQueue.
        keys: [N] one of each rollout.
        factors_N: [N] of the rollouts.
    """
    if (factors_N == 1).all():
        return
    factor_of = dict(zip((key.rsplit("_", 1)[0] for key in keys), factors_N.tolist(), strict=True))
    rows = [key for key in batch.keys if key.rsplit("_", 1)[0] in factor_of]
    data = tq.kv_batch_get(keys=rows, partition_id=batch.partition_id, select_fields=["advantages"])
    scaled = [
        row * factor_of[key.rsplit("_", 1)[0]] for key, row in zip(rows, data["advantages"].unbind(), strict=True)
    ]
    nested = torch.nested.as_nested_tensor(scaled, layout=torch.jagged)
    fields = TensorDict({"advantages": nested}, batch_size=len(rows))
    tq.kv_batch_put(keys=rows, partition_id=batch.partition_id, fields=fields)
