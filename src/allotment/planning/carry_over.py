"""A hard budget for prompts that come in pieces of any size: what one piece leaves, the next ones spend."""

from __future__ import annotations

from collections import deque

from allotment.errors import InvalidInputError, StateError
from allotment.planning.planner import Planner
from allotment.prompts.ids import canonical_ids
from allotment.state import State, check_state, decode_json, encode_json
from allotment.types import Plan, PromptId, PromptIds


class CarryOver:
    """Spends exactly C rollouts over every block of W consecutive prompts, however these are asked for.

    For asynchronous trainers, which fetch prompts one by one or in odd numbers. A piece that completes a block gets
    what the block has left; a smaller one gets what the planner would give it in a whole batch, together with the
    prompts asked last, as far as the bounds leave enough and not too much for the rest of the block. Blocks are
    counted from the first prompt on: any k W prompts from there cost k C rollouts.

    Args:
        planner: its ``bounds`` are kept for every prompt; its steps also count the plans that are only looked at.
        prompts: W, prompts of a block.
        budget: C, if not the planner's own budget.

    Raises InvalidInputError where the bounds do not admit the budget.
    """

    KIND = "CarryOver"

    def __init__(self, planner: Planner, *, prompts: int, budget: int | None = None) -> None:
        self.planner, self.prompts = planner, prompts
        self.budget = planner.budget if budget is None else budget
        lower, upper = self.bounds = planner.bounds
        if not lower * prompts <= self.budget <= upper * prompts:
            raise InvalidInputError(
                "the bounds do not admit the budget",
                got=f"budget {self.budget} for {prompts} prompts, bounds ({lower}, {upper})",
                allowed=f"a budget from {lower * prompts} to {upper * prompts}",
                fix="change the budget, or the number of prompts",
            )
        self.left: tuple[int, int] = (self.budget, prompts)
        """Rollouts and prompts that the unfinished block still has; those of a whole block between two."""
        self._recent: deque[PromptId] = deque(maxlen=prompts)

    def ask(self, prompt_ids: PromptIds) -> list[Plan]:
        """Plans for the next prompts, one for each block they touch; in order, every prompt in one of them. Errors are
        those of the planner's ``ask``; nothing was spent then.
        """
        ids, before = canonical_ids(prompt_ids), self.left
        plans: list[Plan] = []
        try:
            while ids:
                piece, ids = ids[: self.left[1]], ids[self.left[1] :]
                plans.append(self.planner.ask(piece, budget=self._share(piece)))
                budget, prompts = self.left[0] - plans[-1].budget, self.left[1] - len(piece)
                self.left = (budget, prompts) if prompts else (self.budget, self.prompts)
        except BaseException:
            self.left = before
            for plan in plans:
                self.planner.cancel(plan)
            raise
        for plan in plans:
            self._recent.extend(plan.prompt_ids)
        return plans

    def _share(self, piece: tuple[PromptId, ...]) -> int:
        """The budget of a piece: its demand, within what the rest of the block can take."""
        budget, prompts = self.left
        lower, upper = self.bounds
        rest = prompts - len(piece)
        most, least = min(upper * len(piece), budget - lower * rest), max(lower * len(piece), budget - upper * rest)
        return most if most <= least else min(max(self._demand(piece), least), most)

    def _demand(self, piece: tuple[PromptId, ...]) -> int:
        """Rollouts the piece would get in a block with the prompts asked last; its even share if they are too few."""
        own = set(piece)
        company = [p for p in dict.fromkeys(reversed(self._recent)) if p not in own][: self.prompts - len(piece)]
        if len(company) + len(piece) < self.prompts:
            return round(self.left[0] * len(piece) / self.left[1])
        looked_at = self.planner.ask([*piece, *company], budget=self.budget)
        self.planner.cancel(looked_at)
        return int(looked_at.counts[: len(piece)].sum())

    def state_dict(self) -> State:
        """The unfinished block, without the planner."""
        (budget, prompts), recent = self.left, encode_json(list(self._recent))
        return {"kind": self.KIND, "block": self.prompts, "budget": budget, "prompts": prompts, "recent": recent}

    def load_state_dict(self, state: State) -> None:
        """See :class:`~allotment.state.Stateful`; blocks must be of the same size."""
        check_state(state, self.KIND, ("block", "budget", "prompts", "recent"))
        lower, upper = self.bounds
        prompts, budget = state["prompts"], state["budget"]
        if state["block"] != self.prompts or not lower * prompts <= budget <= upper * prompts:
            raise StateError(
                "the state of a carried budget does not fit",
                got=f"blocks of {state['block']}, {budget} rollouts left for {prompts} prompts",
                allowed=f"blocks of {self.prompts} prompts, from {lower} to {upper} rollouts each",
                fix="resume with the batch size and bounds the state was saved with",
            )
        self.left = (budget, prompts)
        self._recent = deque(decode_json(state["recent"]), maxlen=self.prompts)
