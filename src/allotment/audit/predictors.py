"""The predictors that the audit knows by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from allotment.errors import InvalidInputError, message
from allotment.prediction import DiscountedCounts, GaussianProcess, GlobalMean, KNearest, LastValue, Predictor, Ridge
from allotment.prediction.default import default_predictor
from allotment.types import FloatArray, PromptId

Name = Literal["default", "paper", "discounted-counts", "last-value", "global-mean", "ridge", "k-nearest"]
Make = Callable[[FloatArray | None, Sequence[PromptId]], Predictor]


@dataclass(frozen=True)
class Contestant:
    """A predictor with the price that is put on its beliefs."""

    make: Make
    """From embeddings [M, D] (None where there are none) and ids [M] to a new predictor."""
    embeddings: Literal["needed", "used", "unused"] = "unused"
    """``"used"``: taken where there are any, done without where not."""
    plug_in: bool = False
    """Whether ``p (1 - p)`` at the mean is priced instead of ``E[p (1 - p)]``."""


CONTESTANTS: dict[Name, Contestant] = {
    "default": Contestant(lambda x_MD, ids: default_predictor(x_MD, None if x_MD is None else ids), "used"),
    "paper": Contestant(lambda x_MD, ids: GaussianProcess(x_MD, ids=ids), "needed", plug_in=True),
    "discounted-counts": Contestant(lambda x_MD, ids: DiscountedCounts()),
    "last-value": Contestant(lambda x_MD, ids: LastValue()),
    "global-mean": Contestant(lambda x_MD, ids: GlobalMean()),
    "ridge": Contestant(lambda x_MD, ids: Ridge(x_MD, ids=ids), "needed"),
    "k-nearest": Contestant(lambda x_MD, ids: KNearest(x_MD, ids=ids), "needed"),
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
            message(
                "a predictor needs embeddings of the prompts",
                got=f"{', '.join(helpless)}, and a log without the prompts' texts",
                allowed=", ".join(name for name, c in CONTESTANTS.items() if c.embeddings != "needed"),
                fix="add a `prompt` to every line of the log, or pass --embeddings FILE.npy",
            )
        )
    return tuple(name for name in dict.fromkeys(names or USUAL) if name not in helpless)
