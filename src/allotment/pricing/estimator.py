"""What n rollouts of one prompt do to the variance of its policy-gradient estimator.

The estimator of a prompt is ``G = (1/n) sum_j A_j Z_j``: rewards R_j, advantages A_j, scores Z_j projected to a scalar.
Under assumption 4.1 of VIP (arXiv 2602.01601: R and Z independent, each i.i.d. over the rollouts of a prompt)
``Var(G) = Var(Z) Var(R) g(n)``, and an :class:`Estimator` is the curve ``g``. ``Var(R)`` is the prompt's weight
(:mod:`allotment.pricing.weights`); ``Var(Z)`` is taken equal for all prompts and left out: it moves no rollout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from allotment.errors import InvalidInputError
from allotment.types import FloatArray

Curve = Callable[[npt.ArrayLike], FloatArray]


@dataclass(frozen=True)
class Estimator:
    """How the variance of one prompt's estimator falls with its number of rollouts."""

    name: str
    """The name it is looked up by."""
    minimum_count: int
    """Smallest n from which ``variance`` is convex and decreasing; lower bounds must not lie below it."""
    variance: Curve
    """``g(n)``, any shape, n >= ``minimum_count``; unit: ``Var(R) Var(Z)``."""
    gain: Curve
    """``g(n) - g(n + 1)``, what the rollout after the n-th is worth. From ``minimum_count`` on it falls with n, in
    floating point too: a closed form, not a difference."""


def _rloo_variance(counts: npt.ArrayLike) -> FloatArray:
    return 1.0 / (np.asarray(counts, dtype=np.float64) - 1.0)


def _rloo_gain(counts: npt.ArrayLike) -> FloatArray:
    n = np.asarray(counts, dtype=np.float64)
    return 1.0 / (n * (n - 1.0))


def _dr_grpo_variance(counts: npt.ArrayLike) -> FloatArray:
    n = np.asarray(counts, dtype=np.float64)
    return (n - 1.0) / (n * n)


def _dr_grpo_gain(counts: npt.ArrayLike) -> FloatArray:
    n = np.asarray(counts, dtype=np.float64)
    both = n * (n + 1.0)
    return (both - 2.0 * n - 1.0) / (both * both)


RLOO = Estimator("rloo", 2, _rloo_variance, _rloo_gain)
"""Leave-one-out baseline: ``g(n) = 1 / (n - 1)`` (VIP, proposition 4.3)."""

DR_GRPO = Estimator("dr_grpo", 3, _dr_grpo_variance, _dr_grpo_gain)
"""Group-mean baseline, no division by the standard deviation: ``g(n) = (n - 1) / n^2`` (VIP, proposition 4.2).

Convex only from n = 3: the gain of the third rollout (1/36) is smaller than that of the fourth (5/144).
"""

ESTIMATORS = {estimator.name: estimator for estimator in (RLOO, DR_GRPO)}
"""All estimators by name."""


def get_estimator(estimator: str | Estimator) -> Estimator:
    """The estimator of that name (``"dr-grpo"`` is ``"dr_grpo"``); an :class:`Estimator` is handed back as it is.

    Raises:
        InvalidInputError: no estimator has that name.
    """
    if isinstance(estimator, Estimator):
        return estimator
    found = ESTIMATORS.get(estimator.replace("-", "_").lower()) if isinstance(estimator, str) else None
    if found is None:
        names = ", ".join(repr(name) for name in ESTIMATORS)
        raise InvalidInputError(
            "unknown estimator",
            got=repr(estimator),
            allowed=f"{names}, or an Estimator",
            fix="name the estimator whose advantages the trainer computes",
        )
    return found
