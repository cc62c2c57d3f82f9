"""One function for all splits, from success probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy.typing as npt

from allotment.allocation.bounds import Bound
from allotment.allocation.heuristics import inverse_accuracy, inverse_variance, uniform
from allotment.allocation.integer import allocate_exact
from allotment.allocation.relaxed import allocate_relaxed
from allotment.errors import InvalidInputError
from allotment.pricing import Estimator, bernoulli_weights, check_probabilities
from allotment.types import Allocation

Method = Literal["exact", "relaxed", "uniform", "inverse-accuracy", "inverse-variance"]
"""How :func:`allocate` splits."""

METHODS: tuple[Method, ...] = get_args(Method)
"""All values of :data:`Method`."""

_BY_WEIGHT: dict[str, Callable[..., Allocation]] = {
    "exact": allocate_exact,
    "relaxed": allocate_relaxed,
    "uniform": uniform,
}
_BY_PROBABILITY: dict[str, Callable[..., Allocation]] = {
    "inverse-accuracy": inverse_accuracy,
    "inverse-variance": inverse_variance,
}


def allocate(
    success_probabilities: npt.ArrayLike,
    budget: int,
    *,
    lower: Bound = 3,
    upper: Bound = 32,
    estimator: str | Estimator = "rloo",
    method: Method = "exact",
    tie_keys: npt.ArrayLike | None = None,
    seed: int | None = None,
) -> Allocation:
    """Split ``budget`` rollouts over prompts of known (or predicted) success probability.

    The weight of a prompt is ``p (1 - p)``. To price uncertainty or real-valued rewards pass weights of your own to
    :func:`~allotment.allocation.allocate_exact`.

    Args:
        success_probabilities: [Q] in [0, 1].
        budget: C, rollouts to spend in total; exactly this many are.
        lower: fewest rollouts of a prompt, one number or [Q].
        upper: most rollouts of a prompt, one number or [Q].
        estimator: ``"rloo"`` or ``"dr_grpo"``.
        method: one of :data:`METHODS`.
        tie_keys: [Q] see :func:`~allotment.allocation.allocate_exact`.
        seed: see :func:`~allotment.allocation.allocate_exact`.

    Raises:
        InvalidInputError: a probability is NaN or outside [0, 1]; an unknown method; else as
            :func:`~allotment.allocation.allocate_exact`.
        InfeasibleBudgetError: the budget is outside the sums of the bounds.
    """
    if method not in METHODS:
        raise InvalidInputError(
            "unknown method", got=repr(method), allowed=", ".join(METHODS), fix="use exact, the optimum"
        )
    if method in _BY_WEIGHT:
        split, values = _BY_WEIGHT[method], bernoulli_weights(success_probabilities)
    else:
        split, values = _BY_PROBABILITY[method], check_probabilities(success_probabilities)
    return split(values, budget, lower=lower, upper=upper, estimator=estimator, tie_keys=tie_keys, seed=seed)
