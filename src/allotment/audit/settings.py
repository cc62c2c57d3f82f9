"""How a log is replayed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from allotment.allocation.exact import check_bounds
from allotment.checks import check_choice, check_setting
from allotment.errors import InvalidInputError
from allotment.pricing import RLOO, Estimator, get_estimator

Observe = Literal["logged", "allotted"]


@dataclass(frozen=True)
class Settings:
    """How a log is replayed. Raises InvalidInputError: a setting is out of its range; InfeasibleBudgetError: the bounds
    do not admit the budget.
    """

    budget_per_prompt: int = 8
    """Rollouts of a batch, divided by its prompts; what uniform gives each prompt."""
    lower: int = 3
    """Least rollouts of a prompt."""
    upper: int = 32
    """Most rollouts of a prompt."""
    estimator: str = "rloo"
    """The gradient estimator whose variance is priced and scored. ``"rloo"`` and ``"dr_grpo"`` are compared with
    uniform under the same estimator; ``"shrinkage"``, which takes the belief as baseline, with uniform under RLOO.
    """
    batch: int = 128
    """Prompts of a step, where the log does not say which prompts shared a step."""
    seed: int = 0
    """Fixes the order of the prompts, where it is assumed, the order among prompts of equal price, and the draws of
    ``observe``.
    """
    observe: Observe = "logged"
    """What the predictor learns from a visit: all its logged rollouts; or ``"allotted"``, as many of them, drawn at
    random, as it was given, if the log has so many: what a run with this budget would have taught it at least.
    """

    def __post_init__(self) -> None:
        least, budget = get_estimator(self.estimator).minimum_count, self.budget_per_prompt
        check_bounds(budget, self.lower, self.upper, n_prompts=1, minimum_count=least)
        if budget < (needed := self.compared.minimum_count):
            raise InvalidInputError(
                f"uniform with {budget} a prompt has no leave-one-out baseline to be compared with",
                got=f"budget_per_prompt {budget}",
                allowed=f"budget_per_prompt >= {needed}",
                fix=f"compare at {needed} a prompt; the lower bound may stay at {self.lower}",
            )
        check_setting("batch", self.batch, self.batch >= 1, "a whole number >= 1")
        check_setting("seed", self.seed, self.seed >= 0, "a whole number >= 0")
        check_choice("observe", self.observe, Observe)

    @property
    def believes(self) -> bool:
        """Whether the estimator takes the belief as baseline."""
        return get_estimator(self.estimator).believes

    @property
    def compared(self) -> Estimator:
        """The estimator of uniform, with which everything is compared."""
        return RLOO if self.believes else get_estimator(self.estimator)
