"""What every predictor can do, and how one is declared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from allotment.state import Stateful
from allotment.types import Posterior, PromptIds


@dataclass(frozen=True)
class PredictorEntry:
    """The declaration of a predictor by name, beside its class."""

    make: Callable[..., Predictor]
    """Makes one; from ``embeddings``, ``ids`` and ``features`` where it takes them."""
    embeddings: Literal["needed", "used", "unused"] = "unused"
    """``"used"``: taken where there are any, done without where not."""
    plug_in: bool = False
    """Whether an audit prices ``p (1 - p)`` at the mean of its belief instead of ``E[p (1 - p)]``."""


@runtime_checkable
class Predictor(Stateful, Protocol):
    """A belief about the success probability of every prompt, updated from counts.

    All methods raise :class:`~allotment.errors.AllotmentError` subclasses on bad input and change nothing then.
    """

    def predict(self, ids: PromptIds) -> Posterior:
        """The belief about each of the Q prompts named; [Q].

        Raises:
            UnknownPromptError: embeddings are in use and an id was never registered.
        """
        ...

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """Learn that prompt ``ids[i]`` had ``successes[i]`` successes in ``trials[i]`` rollouts; all [Q].

        All are of one step; 0 trials are no visit.

        Raises:
            UnknownPromptError: embeddings are in use and an id was never registered.
            InvalidInputError: counts are not success counts.
            DuplicatePromptError: an id stands twice.
        """
        ...
