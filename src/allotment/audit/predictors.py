"""The predictors that the audit knows by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from allotment.errors import InvalidInputError
from allotment.prediction import (
    DiscountedCounts,
    GaussianProcess,
    GlobalMean,
    KNearest,
    LastValue,
    Predictor,
    Ridge,
    default_predictor,
)
from allotment.types import FloatArray, PromptId

Name = Literal["default", "paper", "discounted-counts", "last-value", "global-mean", "ridge", "k-nearest"]
Make = Callable[["Prompts"], Predictor]


@dataclass(frozen=True, eq=False)
class Prompts:
    """What is known of the prompts before their outcomes."""

    ids: Sequence[PromptId]
    """[M]."""
    embeddings: FloatArray | None = None
    """[M, D], where the log has texts."""
    features: FloatArray | None = None
    """[M, F] :func:`~allotment.prediction.text_features`, likewise."""


@dataclass(frozen=True)
class Contestant:
    """A predictor with the price that is put on its beliefs."""

    make: Make
    """Makes a new predictor for these prompts."""
    embeddings: Literal["needed", "used", "unused"] = "unused"
    """``"used"``: taken where there are any, done without where not."""
    plug_in: bool = False
    """Whether ``p (1 - p)`` at the mean is priced instead of ``E[p (1 - p)]``."""


def _default(prompts: Prompts) -> Predictor:
    if prompts.embeddings is None:
        return default_predictor()
    return default_predictor(prompts.embeddings, prompts.ids, prompts.features)


CONTESTANTS: dict[Name, Contestant] = {
    "default": Contestant(_default, "used"),
    "paper": Contestant(lambda prompts: GaussianProcess(prompts.embeddings, ids=prompts.ids), "needed", plug_in=True),
    "discounted-counts": Contestant(lambda prompts: DiscountedCounts()),
    "last-value": Contestant(lambda prompts: LastValue()),
    "global-mean": Contestant(lambda prompts: GlobalMean()),
    "ridge": Contestant(lambda prompts: Ridge(prompts.embeddings, ids=prompts.ids), "needed"),
    "k-nearest": Contestant(lambda prompts: KNearest(prompts.embeddings, ids=prompts.ids), "needed"),
}
"""All predictors. ``paper`` is the Gaussian process of VIP with the paper's price, split exactly."""

USUAL: tuple[Name, ...] = ("default", "discounted-counts", "last-value", "global-mean", "ridge", "paper")
"""The predictors that are replayed where none is named."""


def chosen(names: Sequence[Name], has_embeddings: bool) -> tuple[Name, ...]:
    """The predictors to replay: ``names``, or the usual ones that can do with what there is.

    Raises:
        InvalidInputError: a predictor is named that needs embeddings, and there are none.
    """
    helpless = [name for name in names or USUAL if CONTESTANTS[name].embeddings == "needed" and not has_embeddings]
    if names and helpless:
        raise InvalidInputError(
            "a predictor needs embeddings of the prompts",
            got=f"{', '.join(helpless)}, and a log without the prompts' texts",
            allowed=", ".join(name for name, c in CONTESTANTS.items() if c.embeddings != "needed"),
            fix="add a `prompt` to every line of the log, or pass --embeddings FILE.npy",
        )
    return tuple(name for name in dict.fromkeys(names or USUAL) if name not in helpless)
