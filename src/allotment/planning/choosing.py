"""Which of the candidates get rollouts, and how many: drawn with known probabilities, weighed by their inverse.

The derivation is in docs/joint.md; the numbers are in :mod:`allotment.allocation.inclusion`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from allotment.allocation.inclusion import inclusion, systematic, with_sum
from allotment.checks import check_setting
from allotment.errors import InfeasibleBudgetError
from allotment.pricing import Price, taken
from allotment.types import FloatArray, IntArray, Plan, PromptId

if TYPE_CHECKING:
    from allotment.planning.vip import VIP


@dataclass(frozen=True)
class PromptChoice:
    """How prompts are drawn among the candidates; ``VIP(choose=PromptChoice(...))``.

    Raises InvalidInputError: a setting is out of its range.
    """

    least_probability: float = 1 / 16
    """Every candidate is drawn at least with this probability, in (0, 1]: no prompt weighs more than one over it."""
    prompt_cost: float = 0.0
    """What a prompt costs beside its rollouts (its prefill), in rollouts, or in tokens where the budget is in tokens:
    the larger, the fewer prompts. A budget of rollouts is spent on rollouts alone; one of tokens pays for this too."""

    def __post_init__(self) -> None:
        least, cost = self.least_probability, self.prompt_cost
        check_setting("least_probability", least, 0.0 < least <= 1.0, "in (0, 1], such as 1/16")
        check_setting("prompt_cost", cost, 0.0 <= cost < math.inf, "a number >= 0, such as 0")

    def spendable(self, budget: float, fewest_Q: FloatArray) -> float:
        """Tokens of completions of a step with these prompts, whose fewest rollouts take ``fewest_Q`` [Q]: the budget
        without the prompts' own cost, or what they take at least; the budget holds in expectation.
        """
        return max(budget - self.prompt_cost * len(fewest_Q), float(fewest_Q.sum()))


def open_chosen(planner: VIP, ids: tuple[PromptId, ...], budget: int) -> Plan:
    """The plan of a new step: of the prompts that are drawn among the candidates ``ids``."""
    assert planner.choice is not None
    assert planner.sizes is not None
    belief, order_M = planner.predictor.predict(ids), np.argsort(planner._tie_keys(ids, "order"))
    costs_M = None if planner.lengths is None else planner.token_costs(ids, budget)
    price, sizes_M = planner.price_of(ids, belief), planner.sizes.predict(belief)
    start = float(planner._draws(("start",), "choose")[0])
    drawn = draw(planner.choice, price, sizes_M, budget, planner.bounds, order_M, start, costs_M)
    chosen, weights_Q = tuple(ids[row] for row in drawn.rows), 1.0 / drawn.probabilities
    posterior = belief.take(drawn.rows)
    allocation = planner._allocate(chosen, posterior, budget, taken(price, drawn.rows, weights_Q**2))
    believed = {} if planner.shrinkage is None else planner.shrinkage.of_plan(posterior, allocation.counts)
    more = {"weights": weights_Q, "candidates": len(ids), **believed}
    return planner._new_plan(chosen, allocation.counts, posterior=posterior, allocation=allocation, **more)


@dataclass(frozen=True, eq=False)
class Drawn:
    """The prompts of a step."""

    rows: IntArray
    """[P] rows of the candidates, ascending."""
    probabilities: FloatArray
    """[P] with which each was drawn."""


def draw(
    choice: PromptChoice,
    price: Price,
    between_M: FloatArray,
    budget: float,
    bounds: tuple[int, int],
    order_M: npt.NDArray[np.int64],
    start: float,
    costs_M: FloatArray | None = None,
) -> Drawn:
    """Draw a fixed number of prompts among M candidates by systematic sampling.

    Args:
        choice: its settings.
        price: of the candidates.
        between_M: [M] squared gradient of each, in units of the price.
        budget: of the step.
        bounds: least and most rollouts of a prompt that is drawn.
        order_M: a random permutation.
        start: a random number in [0, 1).
        costs_M: [M] tokens of a rollout, where the budget is in tokens.

    Raises:
        InfeasibleBudgetError: too few candidates for the budget, or too many for the least probability.
    """
    in_tokens, least = costs_M is not None, choice.least_probability
    found = inclusion(
        price,
        between_M,
        budget,
        bounds=bounds,
        least=least,
        costs=1.0 if costs_M is None else costs_M,
        prompt_cost=choice.prompt_cost,
        is_prompt_charged=in_tokens,
    )
    fewest, most = _numbers(len(price), least, budget, bounds, in_tokens)
    number = min(max(round(float(found.probabilities.sum())), fewest), most)
    probabilities_M = with_sum(found.probabilities, number, least)
    rows = np.flatnonzero(systematic(probabilities_M, order_M, start))
    return Drawn(rows, probabilities_M[rows])


def _numbers(candidates: int, least: float, budget: float, bounds: tuple[int, int], in_tokens: bool) -> tuple[int, int]:
    """Fewest and most prompts that a step may have."""
    fewest, most = max(math.ceil(least * candidates), 1), candidates
    if not in_tokens:
        fewest, most = max(fewest, math.ceil(budget / bounds[1])), min(most, math.floor(budget / bounds[0]))
    if fewest > most:
        raise InfeasibleBudgetError(
            "no number of prompts spends the budget",
            got=f"budget {budget:g}, bounds {bounds}, {candidates} candidates, least probability {least:g}",
            allowed=f"at least {fewest} prompts by bounds and least probability, at most {most} by the budget",
            fix="take fewer candidates, lower the least probability or the lower bound, or raise the budget",
        )
    return fewest, most
