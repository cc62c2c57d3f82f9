"""The predictors that are replayed, by their names in :data:`~allotment.registry.PREDICTORS`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from allotment.audit.log import Log
from allotment.errors import InvalidInputError
from allotment.planning.making import make_predictor
from allotment.prediction import Predictor, distinct_parts, embed
from allotment.registry import PREDICTORS
from allotment.types import FloatArray, PromptId

USUAL = ("hierarchical", "discounted-counts", "last-value", "global-mean", "ridge", "gaussian-process")
"""The predictors that are replayed where none is named; what is said of the log rests on the first."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """What is known of the prompts before their outcomes."""

    ids: Sequence[PromptId]
    """[M]."""
    embeddings: FloatArray | None = None
    """[M, D], where the log has texts."""
    features: FloatArray | None = None
    """[M, F] :func:`~allotment.prediction.text_features`, likewise."""


def predictor_for(name: str, prompts: Prompts) -> Predictor:
    """A new predictor for these prompts."""
    known = {} if prompts.embeddings is None else vars(prompts)
    predictor: Predictor = make_predictor(name, known)
    return predictor


def chosen(names: Sequence[str], has_embeddings: bool) -> tuple[str, ...]:
    """The predictors to replay: ``names``, or the usual ones that can do with what there is. Raises ConfigError: there
    is no such predictor; InvalidInputError: a predictor is named that needs embeddings, and there are none.
    """
    wanted = tuple(dict.fromkeys(PREDICTORS.canonical(name) for name in names or USUAL))
    helpless = [name for name in wanted if PREDICTORS[name].embeddings == "needed" and not has_embeddings]
    if names and helpless:
        raise InvalidInputError(
            "a predictor needs embeddings of the prompts",
            got=f"{', '.join(helpless)}, and a log without the prompts' texts",
            allowed=", ".join(name for name, entry in PREDICTORS if entry.embeddings != "needed"),
            fix="add a `prompt` to every line of the log, or pass --embeddings FILE.npy",
        )
    return tuple(name for name in wanted if name not in helpless)


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
