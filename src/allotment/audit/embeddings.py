"""The embeddings of a log's prompts, computed or from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from allotment.audit.log import Log
from allotment.errors import InvalidInputError
from allotment.prediction import distinct_parts, embed
from allotment.types import FloatArray


def prompt_embeddings(log: Log, file: Path | None = None) -> FloatArray | None:
    """[M, D] embeddings of what tells the log's prompts apart; None where there are neither texts nor a file.

    Args:
        log: whose prompts.
        file: an ``.npy`` file with one row a prompt, in the order of ``log.ids``; read if it is there, else written.

    Raises:
        InvalidInputError: the file does not hold embeddings of this log.
        MissingExtraError: texts are to be embedded, and the embedding model is not installed.
    """
    if file is not None and file.exists():
        return _read(file, len(log.ids))
    if log.texts is None:
        return None
    embeddings_MD = embed(distinct_parts(log.texts))
    if file is not None:
        with open(file, "wb") as out:  # np.save would add an ending to a name
            np.save(out, embeddings_MD)
    return embeddings_MD.astype(np.float64)


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
