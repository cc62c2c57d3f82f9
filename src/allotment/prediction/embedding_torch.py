"""The packaged embedding model computed by torch: the same vectors within 1e-6, on as many threads as torch uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def torch_encoder(weights: dict[str, Any], layers: int, heads: int, epsilon: float) -> Callable[[list[list[int]]], Any]:
    """What :func:`allotment.prediction.embedding._encode` does with these weights; ImportError where there is no torch.

    It takes B token lists, and gives their embeddings of length 1, float32 [B, D].
    """
    import torch
    from torch.nn import functional

    known = {name: torch.from_numpy(value) for name, value in weights.items() if value.dtype == np.float32}

    def dense(hidden: Any, name: str) -> Any:
        return functional.linear(hidden, known[f"{name}.weight"], known[f"{name}.bias"])

    def norm(hidden: Any, name: str) -> Any:
        return functional.layer_norm(hidden, hidden.shape[-1:], known[f"{name}.weight"], known[f"{name}.bias"], epsilon)

    def layer(hidden_BTD: Any, mask_BT: Any, name: str) -> Any:
        batch, width, size = hidden_BTD.shape

        def split(part: str) -> Any:
            return dense(hidden_BTD, f"{name}attention.self.{part}").view(batch, width, heads, -1).transpose(1, 2)

        mixed = functional.scaled_dot_product_attention(
            split("query"), split("key"), split("value"), attn_mask=mask_BT[:, None, None, :]
        )
        mixed = mixed.transpose(1, 2).reshape(batch, width, size)
        hidden = norm(hidden_BTD + dense(mixed, f"{name}attention.output.dense"), f"{name}attention.output.LayerNorm")
        inner = functional.gelu(dense(hidden, f"{name}intermediate.dense"))
        return norm(hidden + dense(inner, f"{name}output.dense"), f"{name}output.LayerNorm")

    @torch.inference_mode()  # type: ignore[misc,untyped-decorator,unused-ignore]
    def encode(token_lists: list[list[int]]) -> Any:
        lengths_B = torch.tensor([len(tokens) for tokens in token_lists])
        mask_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
        tokens_BT = torch.zeros(mask_BT.shape, dtype=torch.long)
        tokens_BT[mask_BT] = torch.tensor([token for tokens in token_lists for token in tokens])
        hidden = known["embeddings.word_embeddings.weight"][tokens_BT]
        hidden = hidden + known["embeddings.position_embeddings.weight"][: mask_BT.shape[1]]
        hidden = norm(hidden + known["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for number in range(layers):
            hidden = layer(hidden, mask_BT, f"encoder.layer.{number}.")
        pooled = (hidden * mask_BT[:, :, None]).sum(dim=1) / lengths_B[:, None]
        return functional.normalize(pooled, dim=1, eps=1e-12).numpy()

    return encode
