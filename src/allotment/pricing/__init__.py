"""What is a rollout worth? The variance that n rollouts of a prompt leave, and the prices built from it."""

from typing import TYPE_CHECKING

from allotment.lazy import lazily
from allotment.pricing.price import (
    DR_GRPO,
    ESTIMATORS,
    RLOO,
    SHRINKAGE,
    Estimator,
    Price,
    WeightedPrice,
    bernoulli_weights,
    get_estimator,
    posterior_weights,
)

if TYPE_CHECKING:
    from allotment.pricing.prices import SecondLookPrice, TablePrice, gradient_moments_price
    from allotment.pricing.shrinkage import ShrinkagePrice, taken

__getattr__ = lazily(
    __name__,
    {
        "prices": "SecondLookPrice TablePrice gradient_moments_price",
        "shrinkage": "ShrinkagePrice taken",
    },
)

__all__ = [
    "DR_GRPO",
    "ESTIMATORS",
    "RLOO",
    "SHRINKAGE",
    "Estimator",
    "Price",
    "SecondLookPrice",
    "ShrinkagePrice",
    "TablePrice",
    "WeightedPrice",
    "bernoulli_weights",
    "get_estimator",
    "gradient_moments_price",
    "posterior_weights",
    "taken",
]
