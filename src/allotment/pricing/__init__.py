"""What is a rollout worth? The variance that n rollouts of a prompt leave, and the prices built from it."""

from typing import TYPE_CHECKING

from allotment.lazy import lazily
from allotment.pricing.price import (
    DR_GRPO,
    ESTIMATORS,
    RLOO,
    Estimator,
    Price,
    WeightedPrice,
    bernoulli_weights,
    check_probabilities,
    check_vector,
    get_estimator,
    posterior_weights,
)

if TYPE_CHECKING:
    from allotment.pricing.gradient_moments import gradient_moments_price
    from allotment.pricing.second_look import SecondLookPrice
    from allotment.pricing.table import TablePrice

__getattr__ = lazily(
    __name__,
    {
        "gradient_moments": "gradient_moments_price",
        "second_look": "SecondLookPrice",
        "table": "TablePrice",
    },
)

__all__ = [
    "DR_GRPO",
    "ESTIMATORS",
    "RLOO",
    "Estimator",
    "Price",
    "SecondLookPrice",
    "TablePrice",
    "WeightedPrice",
    "bernoulli_weights",
    "check_probabilities",
    "check_vector",
    "get_estimator",
    "gradient_moments_price",
    "posterior_weights",
]
