"""The ask/tell interface of every planner: plans before generation, rewards after it."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Required, Self, TypedDict

import numpy as np
import numpy.typing as npt

from allotment.checks import pair_of_wholes, whole
from allotment.errors import InvalidInputError
from allotment.planning.contract import Contract
from allotment.planning.ledger import Ledger
from allotment.planning.outcome import Outcome
from allotment.planning.refusals import missing_groups
from allotment.planning.rounds import Rounds, Step
from allotment.planning.saving import load_saved_state, saved_state, with_own_limits
from allotment.pricing import get_estimator
from allotment.prompts.ids import canonical_ids
from allotment.selection import Selector
from allotment.state import State, Stateful, load_state, save_state
from allotment.types import FloatArray, Plan, PromptId, PromptIds

log = logging.getLogger("allotment")
PLANNER_FILE = "planner.safetensors"
"""The planner's state inside a trainer's checkpoint."""


class Common(TypedDict, total=False):
    """The settings of :class:`Planner`, for the constructors of its subclasses."""

    budget: Required[int]
    bounds: tuple[int, int] | None
    estimator: str
    seed: int


class Planner(ABC):
    """Decides how many rollouts each prompt of a batch gets.

    One loop serves every planner::

        while True:
            plan = planner.ask(prompt_ids)
            rewards, group_ids = generate_and_verify(plan)
            planner.tell(plan, rewards, group_ids)
            if planner.done:
                break

    A subclass says how a step opens (:meth:`_open`), what is learnt at its end (:meth:`_observe`), what is saved
    (:attr:`_parts`, :meth:`_settings`), the next round if there are several (:meth:`_next`), and in :attr:`contract`
    what carrying out its plans takes.

    Args:
        budget: rollouts of a step.
        bounds: least and most rollouts of a prompt; :attr:`BOUNDS` if None.
        estimator: ``"rloo"``, ``"dr_grpo"`` or, with a planner that has a belief, ``"shrinkage"``: the gradient
            estimator whose variance is priced.
        seed: breaks ties between prompts of equal price, differently at each step.

    Raises:
        InvalidInputError: budget or bounds make no sense, or the lower bound is too small for the estimator.
    """

    BOUNDS: ClassVar[tuple[int, int]] = (3, 32)
    """Default of ``bounds``; with an estimator that believes the least is 1."""
    BELIEVES: ClassVar[bool] = False
    """Whether it has a belief for the estimator ``"shrinkage"``."""
    CONCURRENT_STEPS: ClassVar[bool] = False
    """With several rounds: whether a step may be opened while another is not complete."""
    success_threshold: float = 0.5
    """A reward of at least this counts as a success."""

    def __init__(
        self, *, budget: int, bounds: tuple[int, int] | None = None, estimator: str = "rloo", seed: int = 0
    ) -> None:
        self.budget = whole("budget", budget)
        curve = get_estimator(estimator)
        usual = (min(self.BOUNDS[0], curve.usual_lower), self.BOUNDS[1])
        self.bounds = pair_of_wholes(usual if bounds is None else bounds)
        self.estimator = curve.name
        self.seed = whole("seed", seed)
        lower, upper = self.bounds
        minimum = curve.minimum_count
        if curve.believes and not self.BELIEVES:
            raise InvalidInputError(
                f"{type(self).__name__} has no belief for the estimator {curve.name!r}",
                got=f"estimator {curve.name!r}",
                allowed="'rloo', 'dr_grpo'",
                fix="use one of them, or the planner 'vip' or 'uniform'",
            )
        if not (minimum <= lower <= upper and self.budget >= lower):
            raise InvalidInputError(
                "budget and bounds do not make sense",
                got=f"budget {self.budget}, bounds ({lower}, {upper})",
                allowed=f"{minimum} <= lower <= upper and budget >= lower ({self.estimator}: from {minimum})",
                fix="raise the lower bound or the budget",
            )
        self.name = type(self).__name__
        """Of the registry, where it was made by name; else that of its class."""
        self._step, self._ledger = 0, Ledger()
        self.missing_rollouts = 0
        """Rollouts planned but never told, over all closed steps."""
        self._rounds = Rounds(concurrent=self.CONCURRENT_STEPS)

    @property
    def contract(self) -> Contract:
        """What carrying out its plans takes."""
        return Contract()

    @property
    def selector(self) -> Selector | None:
        """How the method trains on what it generated; None for all rollouts, each alike."""
        return None

    @property
    def done(self) -> bool:
        """Whether the step last told is complete; False if another ``ask`` for the same prompts is to follow."""
        return self._rounds.done

    @property
    def open_plans(self) -> tuple[Plan, ...]:
        """Plans asked and neither told nor cancelled, oldest first, without the belief behind them.

        After :meth:`load`, this is how to tell or cancel what was open when the planner was saved.
        """
        plans = self._ledger.plans()
        if not self.contract.several_rounds:
            return plans
        steps = [self._rounds[plan.step].ordered(plan.prompt_ids) for plan in plans]
        return tuple(replace(p, expected_later=s.expected_later) for p, s in zip(plans, steps, strict=True))

    @abstractmethod
    def _open(self, ids: tuple[PromptId, ...], budget: int) -> Plan:
        """The plan of a new step, round 0; made with :meth:`_new_plan`."""

    @abstractmethod
    def _observe(self, outcome: Outcome) -> None:
        """Learn from all rounds of a step; raises before anything changes, or not at all."""

    @property
    @abstractmethod
    def _parts(self) -> dict[str, Stateful]:
        """What is saved and restored beside the settings, by name."""

    def _next(self, step: Step) -> Plan | None:
        """The plan of the next round, in the order of ``step.outcome``; None where the step is complete."""
        return None

    def _new_plan(self, ids: tuple[PromptId, ...], counts_Q: npt.NDArray[np.int64], **more: Any) -> Plan:
        """A plan of round 0 of the next step."""
        return Plan(ids, counts_Q, self._step, **more)

    def ask(self, prompt_ids: PromptIds, *, budget: int | None = None) -> Plan:
        """The counts for a batch of prompts; several plans may be open at a time.

        Args:
            prompt_ids: [Q] distinct ids, ints or strings.
            budget: rollouts of this step, if not the planner's own (a last, smaller batch).

        Raises:
            InvalidInputError: the batch is empty, an id is neither int nor str, or the budget is not a whole number.
            DuplicatePromptError: an id stands twice.
            UnknownPromptError: the predictor needs embeddings and does not know a prompt.
            InfeasibleBudgetError: the bounds do not admit the budget.
            RewardMismatchError: another step must be completed first.
        """
        ids = canonical_ids(prompt_ids)
        if not ids:
            raise InvalidInputError("the batch is empty", got="0 prompts", allowed="at least 1", fix="skip the step")
        several = self.contract.several_rounds
        due = self._rounds.due(ids, budget) if several else None
        later = None if due is None else self._next(due)
        if later is not None:
            plan = later
            self._rounds.asked(plan)
        else:
            total = self.budget if budget is None else whole("budget", budget)
            plan = self._open(ids, total)
            if several:
                self._rounds.open(plan, total)
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
            told = zip(outcome.prompt_ids, outcome.planned, outcome.received, strict=True)
            if absent := [prompt for prompt, n, k in told if n and not k]:
                raise missing_groups(absent, len(outcome.prompt_ids))
        self._finish(plan, outcome)
        self._ledger.close(plan)
        if missing := int(outcome.missing.sum()):
            self.missing_rollouts += missing
            log.warning(
                "step %d: %d of %d planned rollouts came back without a reward", plan.step, missing, plan.budget
            )
        return outcome

    def _finish(self, plan: Plan, outcome: Outcome) -> None:
        """Take in all rewards of a plan: its step goes on, or all its rounds are learnt from as one."""
        if not self.contract.several_rounds:
            return self._observe(outcome)
        step = self._rounds[plan.step].told(outcome)
        if step.outcome is not None and self._next(step) is not None:
            return self._rounds.told(step)
        self._observe(outcome if step.outcome is None else step.outcome)
        return self._rounds.forget(plan.step)

    def cancel(self, plan: Plan) -> None:
        """Forget an open plan whose rollouts will never come; its step ends with what its earlier rounds brought.

        Raises RewardMismatchError where the plan is not open.
        """
        self._ledger.close(plan)
        if self.contract.several_rounds:
            brought = self._rounds[plan.step].outcome
            self._rounds.forget(plan.step)
            if brought is not None:
                self._observe(brought)

    def _settings(self) -> State:
        """What must be equal where a state is taken over."""
        lower, upper = self.bounds
        limits: State = {"budget": self.budget, "lower": lower, "upper": upper}
        return {**limits, "estimator": self.estimator, "seed": self.seed}

    def _tie_keys(
        self, ids: tuple[PromptId, ...], purpose: str = "", step: int | None = None
    ) -> npt.NDArray[np.uint64]:
        """[Q] pseudo-random numbers from seed, step and id: ties do not depend on the order of the batch.

        ``purpose`` sets independent numbers apart; ``step`` is that of the next plan if None.
        """
        prefix = f"{purpose}{self.seed}/{self._step if step is None else step}/"
        start = hashlib.blake2b(prefix.encode(), digest_size=8)
        try:
            digests = b"".join([_hashed(start.copy(), prompt) for prompt in ids])
        except ValueError as error:
            raise InvalidInputError(
                "an id is too long", got=error, allowed="ints of up to 4,300 digits", fix="use a shorter id"
            ) from None
        return np.frombuffer(digests, dtype=np.uint64)

    def _draws(self, ids: tuple[PromptId, ...], purpose: str = "", step: int | None = None) -> FloatArray:
        """[Q] pseudo-random numbers in [0, 1), from the keys of :meth:`_tie_keys`."""
        keys_Q = self._tie_keys(ids, purpose, step)
        return np.asarray((keys_Q >> np.uint64(11)) / 2.0**53, dtype=np.float64)

    def state_dict(self) -> State:
        """Settings, beliefs, open plans: everything."""
        return saved_state(self)

    def load_state_dict(self, state: State, *, settings: Literal["equal", "own"] = "equal") -> None:
        """Take over what :meth:`state_dict` gave, all or nothing; later plans are bit-identical.

        ``settings="own"``: budget, bounds, estimator and seed may differ; then open plans are forgotten.

        Raises:
            StateError: the state is of another planner, has other settings, or lacks keys.
            StateVersionError: the state was saved by another version of this planner.
        """
        load_saved_state(self, state if settings == "equal" else with_own_limits(self, state))

    def save(self, path: str | Path) -> None:
        """Write :meth:`state_dict` to one file, atomically."""
        save_state(path, self.state_dict(), kind="planner")

    def load(self, path: str | Path) -> Self:
        """Restore what :meth:`save` wrote, and return the planner; StateError if it is damaged or does not fit."""
        self.load_state_dict(load_state(path, kind="planner"))
        return self


def _hashed(start: hashlib.blake2b, prompt: PromptId) -> bytes:
    start.update(repr(prompt).encode())
    return start.digest()
