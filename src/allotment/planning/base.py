"""The ask/tell interface of every planner, and what all one-shot planners share."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from allotment.errors import InvalidInputError, RewardMismatchError, StateError, message
from allotment.planning.ledger import Ledger, Outcome
from allotment.prediction.base import canonical_ids
from allotment.pricing import get_estimator
from allotment.state import State, check_kind, load_state, save_state
from allotment.types import Allocation, Plan, Posterior, PromptId, PromptIds

log = logging.getLogger("allotment")


@runtime_checkable
class Planner(Protocol):
    """Decides how many rollouts each prompt of a batch gets.

    One loop serves one-shot and sequential planners::

        while True:
            plan = planner.ask(prompt_ids)
            rewards, group_ids = generate_and_verify(plan)
            planner.tell(plan, rewards, group_ids)
            if planner.done:
                break
    """

    @property
    def done(self) -> bool:
        """Whether the step last told is complete; False if another ``ask`` for the same prompts is to follow."""
        ...

    def ask(self, prompt_ids: PromptIds, *, budget: int | None = None) -> Plan:
        """The counts for a batch of Q distinct prompts."""
        ...

    def tell(
        self,
        plan: Plan,
        rewards: npt.ArrayLike,
        group_ids: PromptIds,
        *,
        final: bool = True,
        allow_missing_groups: bool = False,
    ) -> Outcome:
        """Report the rewards of a plan, any order, each with its prompt id."""
        ...

    def state_dict(self) -> State:
        """Everything needed to go on bit for bit."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave."""
        ...


class Stateful(Protocol):
    """Can be saved and restored."""

    def state_dict(self) -> State:
        """Everything needed to go on bit for bit."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave."""
        ...


class OneShotPlanner(ABC):
    """One allocation a step, made before anything is generated; learns from the rewards afterwards.

    Args:
        budget: rollouts of a step, spent exactly.
        bounds: least and most rollouts of a prompt.
        estimator: ``"rloo"`` or ``"dr_grpo"``, the gradient estimator whose variance is priced.
        seed: breaks ties between prompts of equal price, differently at each step.

    Raises:
        InvalidInputError: budget or bounds make no sense, or the lower bound is too small for the estimator.
    """

    def __init__(
        self,
        *,
        budget: int,
        bounds: tuple[int, int] = (3, 32),
        estimator: str = "rloo",
        seed: int = 0,
    ) -> None:
        self.budget, self.bounds = budget, bounds
        self.estimator = get_estimator(estimator).name
        self.seed = seed
        self._check_settings()
        self._step = 0
        self._ledger = Ledger()
        self._missing = 0

    @property
    def done(self) -> bool:
        """True: one round makes a step."""
        return True

    @property
    def missing_rollouts(self) -> int:
        """Rollouts planned but never told, over all closed steps."""
        return self._missing

    @abstractmethod
    def _decide(self, ids: tuple[PromptId, ...], budget: int) -> tuple[Allocation, Posterior | None]:
        """Split ``budget`` over the Q prompts, and the belief behind it."""

    @abstractmethod
    def _observe(self, outcome: Outcome) -> None:
        """Learn from the rewards of a closed plan; raises before anything changes, or not at all."""

    @property
    @abstractmethod
    def _belief(self) -> Stateful:
        """What is saved and restored beside the settings."""

    def ask(self, prompt_ids: PromptIds, *, budget: int | None = None) -> Plan:
        """The counts for a batch of prompts; several plans may be open at a time.

        Args:
            prompt_ids: [Q] distinct ids, ints or strings.
            budget: rollouts of this step, if not the planner's own (a last, smaller batch).

        Raises:
            InvalidInputError: the batch is empty, or an id is neither int nor str.
            DuplicatePromptError: an id stands twice.
            UnknownPromptError: the predictor needs embeddings and does not know a prompt.
            InfeasibleBudgetError: the bounds do not admit the budget.
        """
        ids = canonical_ids(prompt_ids)
        if not ids:
            raise InvalidInputError(
                message("the batch is empty", got="0 prompts", allowed="at least 1", fix="skip the step")
            )
        allocation, posterior = self._decide(ids, self.budget if budget is None else budget)
        plan = Plan(ids, allocation.counts, self._step, 0, posterior, allocation)
        self._ledger.open(plan)
        self._step += 1
        return plan

    def tell(
        self,
        plan: Plan,
        rewards: npt.ArrayLike,
        group_ids: PromptIds,
        *,
        final: bool = True,
        allow_missing_groups: bool = False,
    ) -> Outcome:
        """Report rewards; on any error nothing is recorded.

        Args:
            plan: an open plan of this planner.
            rewards: [N] finite numbers, ragged groups in any order; fewer than planned are accepted and counted.
            group_ids: [N] the prompt id of each reward.
            final: whether these are the last rewards of the plan. False keeps it open for more and learns nothing yet.
            allow_missing_groups: accept that a prompt of the plan got no reward at all.

        Returns:
            All rewards of the plan so far; its ``missing`` says how many are short.

        Raises:
            RewardMismatchError: the plan is not open, has more rewards than planned, or a group is missing.
            InvalidInputError: a reward is NaN or infinite, or the lengths differ.
            UnknownPromptError: a reward belongs to a prompt that was not asked.
        """
        outcome = self._ledger.with_rewards(plan, rewards, group_ids)
        if not final:
            self._ledger.record(plan, outcome)
            return outcome
        if not allow_missing_groups:
            _refuse_missing_groups(outcome)
        self._observe(outcome)
        self._ledger.close(plan)
        missing = int(outcome.missing.sum())
        if missing:
            self._missing += missing
            log.warning(
                "step %d: %d of %d planned rollouts came back without a reward", plan.step, missing, plan.budget
            )
        return outcome

    def cancel(self, plan: Plan) -> None:
        """Forget an open plan whose rollouts will never come.

        Raises:
            RewardMismatchError: the plan is not open.
        """
        self._ledger.close(plan)

    def state_dict(self) -> State:
        """Settings, beliefs, open plans: everything."""
        return {
            "kind": type(self).__name__,
            "settings": self._settings(),
            "step": self._step,
            "missing": self._missing,
            "predictor": self._belief.state_dict(),
            "ledger": self._ledger.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave; later plans are bit-identical.

        Raises:
            StateError: the state is of another planner, has other settings, or lacks keys.
        """
        check_kind(state.get("kind"), type(self).__name__, "the planner state")
        lacking = {"settings", "step", "missing", "predictor", "ledger"} - state.keys()
        saved, own = state.get("settings", {}), self._settings()
        different = {key: (saved.get(key), own[key]) for key in own if saved.get(key) != own[key]}
        if lacking or different:
            raise StateError(
                message(
                    "the planner state does not fit this planner",
                    got=f"missing keys {sorted(lacking)}, settings (saved, own) {different}",
                    allowed="all keys, equal settings",
                    fix="make the planner with the settings it was saved with; ask(budget=...) varies a single step",
                )
            )
        self._belief.load_state_dict(state["predictor"])
        self._ledger.load_state_dict(state["ledger"])
        self._step, self._missing = state["step"], state["missing"]

    def save(self, path: str | Path) -> None:
        """Write :meth:`state_dict` to one file, atomically."""
        save_state(path, self.state_dict(), kind="planner")

    def load(self, path: str | Path) -> Self:
        """Restore what :meth:`save` wrote, and return the planner.

        Raises:
            StateError: the file is damaged, or its state does not fit.
        """
        self.load_state_dict(load_state(path, kind="planner"))
        return self

    def _settings(self) -> State:
        return {
            "budget": self.budget,
            "lower": self.bounds[0],
            "upper": self.bounds[1],
            "estimator": self.estimator,
            "seed": self.seed,
        }

    def _tie_keys(self, ids: tuple[PromptId, ...]) -> npt.NDArray[np.uint64]:
        """[Q] pseudo-random numbers from seed, step and id: ties do not depend on the order of the batch."""
        prefix = f"{self.seed}/{self._step}/".encode()
        digests = b"".join(hashlib.blake2b(prefix + repr(i).encode(), digest_size=8).digest() for i in ids)
        return np.frombuffer(digests, dtype=np.uint64)

    def _check_settings(self) -> None:
        lower, upper = self.bounds
        minimum = get_estimator(self.estimator).minimum_count
        if not (minimum <= lower <= upper and self.budget >= lower):
            raise InvalidInputError(
                message(
                    "budget and bounds do not make sense",
                    got=f"budget {self.budget}, bounds ({lower}, {upper})",
                    allowed=f"{minimum} <= lower <= upper and budget >= lower ({self.estimator}: from {minimum})",
                    fix="raise the lower bound or the budget",
                )
            )


def _refuse_missing_groups(outcome: Outcome) -> None:
    absent = [p for p, n, k in zip(outcome.prompt_ids, outcome.planned, outcome.received, strict=True) if n and not k]
    if absent:
        raise RewardMismatchError(
            message(
                "groups are missing: prompts of the plan got no reward",
                got=f"{len(absent)} of {len(outcome.prompt_ids)}, the first {absent[:3]}",
                allowed="at least one reward for every prompt with a planned rollout",
                fix="tell them too (final=False for parts), or pass allow_missing_groups=True",
            )
        )
