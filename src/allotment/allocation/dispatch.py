"""One function for all splits, from success probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Unpack, get_args

import numpy.typing as npt

from allotment.allocation.exact import Limits, allocate_exact
from allotment.allocation.heuristics import inverse_accuracy, inverse_variance, uniform
from allotment.allocation.relaxed import allocate_relaxed
from allotment.errors import InvalidInputError
from allotment.pricing import bernoulli_weights
from allotment.types import Allocation

Method = Literal["exact", "relaxed", "uniform", "inverse-accuracy", "inverse-variance"]
"""How :func:`allocate` splits."""

METHODS: tuple[Method, ...] = get_args(Method)
"""All values of :data:`Method`."""

_OF_WEIGHTS: dict[str, Callable[..., Allocation]] = {
    "exact": allocate_exact,
    "relaxed": allocate_relaxed,
    "uniform": uniform,
}
_OF_PROBABILITIES: dict[str, Callable[..., Allocation]] = {
    "inverse-accuracy": inverse_accuracy,
    "inverse-variance": inverse_variance,
}


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
        **limits: ``lower=3``, ``upper=32``, ``estimator="rloo"``, ``tie_keys=None``, ``seed=None``; see
            :class:`~allotment.allocation.Limits`.

    Raises:
        InvalidInputError: a probability is NaN or outside [0, 1]; an unknown method; else as
            :func:`~allotment.allocation.allocate_exact`.
        InfeasibleBudgetError: the budget is outside the sums of the bounds.
    """
    if method not in METHODS:
        raise InvalidInputError(
            "unknown method", got=repr(method), allowed=", ".join(METHODS), fix="use exact, the optimum"
        )
    if method in _OF_WEIGHTS:
        return _OF_WEIGHTS[method](bernoulli_weights(success_probabilities), budget, **limits)
    return _OF_PROBABILITIES[method](success_probabilities, budget, **limits)
