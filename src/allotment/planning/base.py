"""The ask/tell interface of every planner, and what all one-shot planners share."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from allotment.errors import InvalidInputError, RewardMismatchError, StateError
from allotment.planning.ledger import Ledger, Outcome
from allotment.pricing import get_estimator
from allotment.prompts.ids import canonical_ids
from allotment.selection.base import Selector
from allotment.state import State, Stateful, check_state, load_state, save_state
from allotment.types import Allocation, FloatArray, Plan, Posterior, PromptId, PromptIds

log = logging.getLogger("allotment")


@runtime_checkable
class Planner(Stateful, Protocol):
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
        scores: npt.ArrayLike | None = None,
        lengths: npt.ArrayLike | None = None,
        answers: Sequence[str | None] | None = None,
        final: bool = True,
        allow_missing_groups: bool = False,
    ) -> Outcome:
        """Report the rewards of a plan, any order, each with its prompt id; and what else was measured of each."""
        ...

    def cancel(self, plan: Plan) -> None:
        """Forget an open plan whose rollouts will never come."""
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
        self.budget = _whole("budget", budget)
        self.bounds = _pair(bounds)
        self.estimator = get_estimator(estimator).name
        self.seed = _whole("seed", seed)
        self._check_settings()
        self._step = 0
        self._ledger = Ledger()
        self._missing = 0

    @property
    def done(self) -> bool:
        """True: one round makes a step."""
        return True

    @property
    def selector(self) -> Selector | None:
        """How the method trains on what it generated; None for all rollouts, each alike."""
        return None

    @property
    def missing_rollouts(self) -> int:
        """Rollouts planned but never told, over all closed steps."""
        return self._missing

    @property
    def open_plans(self) -> tuple[Plan, ...]:
        """Plans asked and neither told nor cancelled, oldest first, without the belief behind them.

        After :meth:`load`, this is how to tell or cancel what was open when the planner was saved.
        """
        return self._ledger.plans()

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
            raise InvalidInputError("the batch is empty", got="0 prompts", allowed="at least 1", fix="skip the step")
        plan = self._plan(ids, budget)
        self._ledger.open(plan)
        self._step = max(self._step, plan.step + 1)
        return plan

    def tell(
        self,
        plan: Plan,
        rewards: npt.ArrayLike,
        group_ids: PromptIds,
        *,
        scores: npt.ArrayLike | None = None,
        lengths: npt.ArrayLike | None = None,
        answers: Sequence[str | None] | None = None,
        final: bool = True,
        allow_missing_groups: bool = False,
    ) -> Outcome:
        """Report rewards; on any error nothing is recorded.

        Args:
            plan: an open plan of this planner.
            rewards: [N] finite numbers, ragged groups in any order; fewer than planned are accepted and counted.
            group_ids: [N] the prompt id of each reward.
            scores: [N, K] or [N], K from 1 to 16: a sketch of each rollout's score, the derivatives of its
                log-probability along K fixed random directions; in all parts of a plan or in none.
            lengths: [N] completion tokens of each rollout, > 0; in all parts of a plan or in none.
            answers: [N] extracted answer of each rollout, None where there is none; in all parts of a plan or in none.
            final: whether these are the last rewards of the plan. False keeps it open for more and learns nothing yet.
            allow_missing_groups: accept that a prompt of the plan got no reward at all.

        Returns:
            All rewards of the plan so far; its ``missing`` says how many are short.

        Raises:
            RewardMismatchError: the plan is not open, has more rewards than planned, or a group is missing.
            InvalidInputError: a reward, score or length is not allowed, or their numbers differ.
            UnknownPromptError: a reward belongs to a prompt that was not asked.
        """
        outcome = self._ledger.with_rewards(plan, rewards, group_ids, scores, lengths, answers)
        if not final:
            self._ledger.record(plan, outcome)
            return outcome
        if not allow_missing_groups:
            _refuse_missing_groups(outcome)
        self._finish(plan, outcome)
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

    def _plan(self, ids: tuple[PromptId, ...], budget: int | None) -> Plan:
        """The next plan for these prompts; None is the planner's own budget."""
        allocation, posterior = self._decide(ids, self.budget if budget is None else budget)
        return Plan(ids, allocation.counts, self._step, 0, posterior, allocation)

    def _finish(self, plan: Plan, outcome: Outcome) -> None:
        """Take in all rewards of a plan; raises before anything changes, or not at all."""
        self._observe(outcome)

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
        """Take over what :meth:`state_dict` gave, all or nothing; later plans are bit-identical.

        Raises:
            StateError: the state is of another planner, has other settings, or lacks keys.
        """
        check_state(state, type(self).__name__, ("settings", "step", "missing", "predictor", "ledger"))
        self._check_saved_settings(state["settings"])
        ledger = Ledger.from_state(state["ledger"])
        step, missing = state["step"], state["missing"]
        newest = max((plan.step for plan in ledger.plans()), default=-1)
        if not (type(step) is type(missing) is int and newest < step and missing >= 0):
            raise StateError(
                "the counters of a planner state cannot be right",
                got=f"step {step!r}, missing {missing!r}, newest open plan of step {newest}",
                allowed="step above that of every open plan, missing >= 0",
                fix="load a whole state_dict(), or start anew",
            )
        self._belief.load_state_dict(state["predictor"])  # the last that can fail; it is all or nothing itself
        self._ledger, self._step, self._missing = ledger, step, missing

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

    def _tie_keys(
        self, ids: tuple[PromptId, ...], purpose: str = "", step: int | None = None
    ) -> npt.NDArray[np.uint64]:
        """[Q] pseudo-random numbers from seed, step and id: ties do not depend on the order of the batch.

        ``purpose`` sets independent numbers apart; ``step`` is that of the next plan if None.
        """
        prefix = f"{purpose}{self.seed}/{self._step if step is None else step}/".encode()
        digests = b"".join(hashlib.blake2b(prefix + repr(i).encode(), digest_size=8).digest() for i in ids)
        return np.frombuffer(digests, dtype=np.uint64)

    def _draws(self, ids: tuple[PromptId, ...], purpose: str = "", step: int | None = None) -> FloatArray:
        """[Q] pseudo-random numbers in [0, 1), from the keys of :meth:`_tie_keys`."""
        keys_Q = self._tie_keys(ids, purpose, step)
        return np.asarray((keys_Q >> np.uint64(11)) / 2.0**53, dtype=np.float64)

    def _check_saved_settings(self, saved: object) -> None:
        own = self._settings()
        if saved == own:
            return
        values = saved if isinstance(saved, dict) else {}
        different = {k: (values.get(k), own.get(k)) for k in {**own, **values} if values.get(k) != own.get(k)}
        raise StateError(
            "the planner state does not fit this planner",
            got=f"settings (saved, own) {different}",
            allowed="equal settings",
            fix="make the planner with the settings it was saved with; ask(budget=...) varies a single step",
        )

    def _check_settings(self) -> None:
        lower, upper = self.bounds
        minimum = get_estimator(self.estimator).minimum_count
        if not (minimum <= lower <= upper and self.budget >= lower):
            raise InvalidInputError(
                "budget and bounds do not make sense",
                got=f"budget {self.budget}, bounds ({lower}, {upper})",
                allowed=f"{minimum} <= lower <= upper and budget >= lower ({self.estimator}: from {minimum})",
                fix="raise the lower bound or the budget",
            )


def _whole(name: str, value: object) -> int:
    """``value`` as a plain int: numpy's cannot be saved, and a float or bool is a mistake."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InvalidInputError(
            f"`{name}` is not a whole number", got=repr(value), allowed="an int", fix=f"pass int({name})"
        )
    return int(value)


def _pair(bounds: Any) -> tuple[int, int]:
    try:
        lower, upper = bounds
    except (TypeError, ValueError):
        raise InvalidInputError(
            "`bounds` is not a pair",
            got=repr(bounds),
            allowed="(least, most) rollouts of a prompt",
            fix="pass bounds=(3, 32)",
        ) from None
    return _whole("lower bound", lower), _whole("upper bound", upper)


def _refuse_missing_groups(outcome: Outcome) -> None:
    absent = [p for p, n, k in zip(outcome.prompt_ids, outcome.planned, outcome.received, strict=True) if n and not k]
    if absent:
        raise RewardMismatchError(
            "groups are missing: prompts of the plan got no reward",
            got=f"{len(absent)} of {len(outcome.prompt_ids)}, the first {absent[:3]}",
            allowed="at least one reward for every prompt with a planned rollout",
            fix="tell them too (final=False for parts), or pass allow_missing_groups=True",
        )
