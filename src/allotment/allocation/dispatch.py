"""One function for every split over success probabilities that are known."""

from __future__ import annotations

from typing import Literal, Unpack, get_args

import numpy.typing as npt

from allotment.allocation.exact import Limits, allocate_exact
from allotment.allocation.heuristics import inverse_accuracy, inverse_variance, uniform
from allotment.allocation.relaxed import allocate_relaxed
from allotment.errors import InvalidInputError
from allotment.pricing.price import bernoulli_weights
from allotment.types import Allocation

Method = Literal["exact", "relaxed", "uniform", "inverse-accuracy", "inverse-variance"]
"""How :func:`allocate` splits."""
METHODS: tuple[Method, ...] = get_args(Method)
"""All values of :data:`Method`."""


def allocate(
    success_probabilities: npt.ArrayLike, budget: int, *, method: Method = "exact", **limits: Unpack[Limits]
) -> Allocation:
    """Split ``budget`` rollouts over prompts of known (or predicted) success probability.

    The weight of a prompt is ``p (1 - p)``. To price uncertainty or real-valued rewards pass weights of your own to
    :func:`~allotment.allocation.allocate_exact`.

    Args:
        success_probabilities: [Q] in [0, 1].
        budget: C, rollouts to spend in total; exactly this many are.
        method: one of :data:`METHODS`.
        **limits: as the errors those of :func:`~allotment.allocation.allocate_exact`.

    Raises:
        InvalidInputError: a probability is NaN or outside [0, 1]; an unknown method.
    """
    if method not in METHODS:
        raise InvalidInputError(
            "unknown method", got=repr(method), allowed=", ".join(METHODS), fix="use exact, the optimum"
        )
    if method == "inverse-accuracy":
        return inverse_accuracy(success_probabilities, budget, **limits)
    if method == "inverse-variance":
        return inverse_variance(success_probabilities, budget, **limits)
    split = {"exact": allocate_exact, "relaxed": allocate_relaxed, "uniform": uniform}[method]
    return split(bernoulli_weights(success_probabilities), budget, **limits)
