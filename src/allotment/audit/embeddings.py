"""Embeddings of a log's prompts: made once, and kept beside the log."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from allotment.audit.log import Log
from allotment.disk import replaced
from allotment.errors import InvalidInputError, StateError
from allotment.prediction import distinct_parts, embed
from allotment.state import load_state, save_state
from allotment.types import FloatArray

MODEL = "all-MiniLM-L6-v2"
KIND = "embeddings"
KEPT_FROM = 10_000
"""Characters of prompts, 1,000 of each at most, from which embeddings are worth keeping: some seconds of work."""
CONSIDERED = 1000
"""Characters of a prompt that are about what the model reads of it."""


def characters(log: Log) -> int:
    """Of the log's prompts, as far as the model reads them."""
    return sum(min(len(text), CONSIDERED) for text in log.texts or ())


def cache_of(path: Path) -> Path:
    """Where the embeddings of the log at ``path`` are kept: a hidden file beside it."""
    return path.absolute().parent / f".{path.absolute().name}.embeddings.safetensors"


def prompt_embeddings(
    log: Log, file: Path | None = None, *, beside: Path | None = None, progress: bool = False
) -> FloatArray | None:
    """[M, D] embeddings of what tells the log's prompts apart; None where there are neither texts nor a file.

    Args:
        log: whose prompts.
        file: an ``.npy`` file with one row a prompt, in the order of ``log.ids``; read if it is there, else written.
        beside: the log's path. Embeddings that take a while are kept in :func:`cache_of` it, and read from there as
            long as the texts are the same. A folder that cannot be written to is no error.
        progress: show a progress bar.

    Raises:
        InvalidInputError: ``file`` does not hold embeddings of this log.
        MissingExtraError: texts are to be embedded, and the embedding model is not installed.
    """
    if file is not None and file.exists():
        return _read(file, len(log.ids))
    if log.texts is None:
        return None
    embeddings_MD = None if beside is None or file is not None else kept_embeddings(log, beside)
    if embeddings_MD is None:
        texts = distinct_parts(log.texts)
        embeddings_MD = embed(texts, progress=progress, torch=True).astype(np.float64)
        if beside is not None and file is None and characters(log) >= KEPT_FROM:
            _keep(cache_of(beside), _key(texts), embeddings_MD)
    if file is not None:
        with replaced(file) as out:
            np.save(out, embeddings_MD.astype(np.float32))
    return embeddings_MD


def _key(texts: Sequence[str]) -> str:
    """What the embeddings are of: the model and every text, in their order."""
    digest = hashlib.sha256(MODEL.encode())
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def kept_embeddings(log: Log, path: Path) -> FloatArray | None:
    """[M, D] what is kept beside the log at ``path``; None where nothing is, or it is of other texts, or damaged."""
    if log.texts is None or not (cache := cache_of(path)).exists():
        return None
    try:
        state = load_state(cache, kind=KIND, keys=("key", "embeddings"))
    except StateError:
        return None
    found = np.asarray(state["embeddings"], dtype=np.float64)
    return found if state["key"] == _key(distinct_parts(log.texts)) and len(found) == len(log.ids) else None


def _keep(cache: Path, key: str, embeddings_MD: FloatArray) -> None:
    try:
        save_state(cache, {"key": key, "embeddings": embeddings_MD.astype(np.float32)}, kind=KIND)
    except StateError:  # a folder that is not ours to write to
        return


def _read(file: Path, n_prompts: int) -> FloatArray:
    try:
        embeddings = np.asarray(np.load(file))
        got = f"{embeddings.dtype} {embeddings.shape}"
        good = embeddings.dtype.kind == "f" and embeddings.ndim == 2 and len(embeddings) == n_prompts
        good = good and bool(np.isfinite(embeddings).all())
    except (ValueError, EOFError) as error:
        got, good = str(error), False
    if not good:
        raise InvalidInputError(
            f"{file} does not hold the embeddings of this log",
            got=got,
            allowed=f"an array of finite floats [{n_prompts}, D], a row a prompt in the order of the log",
            fix="delete the file, and it is written again",
        )
    return embeddings.astype(np.float64)
