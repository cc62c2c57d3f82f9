"""The predictors that are replayed, by their names in :data:`~allotment.registry.PREDICTORS`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from allotment.errors import InvalidInputError
from allotment.planning.making import make_predictor
from allotment.prediction import Predictor
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
