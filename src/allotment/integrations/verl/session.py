"""What one training run knows: its planner, the open plans, its log. One for each trainer process.

verl makes manager, estimators, trainer and checkpoint callback apart from one another; this is where they meet. It
imports nothing of verl's.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from allotment.errors import StateError
from allotment.integrations import carrying
from allotment.integrations.advantages import estimated, group_terms, weighted
from allotment.integrations.carrying import row_factors, selected, selected_advantages
from allotment.integrations.verl.book import PromptBook
from allotment.integrations.verl.config import AllotmentSettings, Batch
from allotment.integrations.verl.rewards import warn_of_rewards
from allotment.integrations.verl.under_way import UnderWay, restored, take_lost
from allotment.planning import Outcome, Planner
from allotment.planning.carry_over import CarryOver
from allotment.planning.planner import PLANNER_FILE
from allotment.planning.success import SuccessPlanner
from allotment.run_logs.figures import rollout_rows, step_figures
from allotment.run_logs.rollout_log import RolloutLog
from allotment.selection import Selection, Selector
from allotment.state import State, decode_json, encode_json, load_state, save_state
from allotment.types import FloatArray, Plan

log = logging.getLogger("allotment")

KIND = "verl-planner"
PATIENCE = 16
"""Steps after which a plan of an asynchronous trainer is closed with what came back for it."""


class Session:
    """Counts for the prompts that verl fetches, and what came back for them to the planner.

    Args:
        planner: who decides.
        settings: the block ``allotment``.
        batch: sizes of a step.
        folder: where ``rollouts.jsonl`` goes.
        selector: what chooses among the rollouts of a batch; None for all of them.
        estimator: whose variance the realised ratio in the log is of.
        patience: training steps after which an asynchronous plan is closed with what came back.
    """

    def __init__(
        self,
        planner: Planner,
        settings: AllotmentSettings,
        batch: Batch,
        folder: Path,
        *,
        selector: Selector | None = None,
        estimator: str = "rloo",
        patience: int = PATIENCE,
    ) -> None:
        self.planner, self.settings, self.batch = planner, settings, batch
        self.book = PromptBook()
        """What each prompt's name stands for."""
        self._selector, self._estimator, self._patience = selector, estimator, patience
        self._threshold = planner.success_threshold
        self._carry: CarryOver | None = None
        if not batch.is_sync:
            self._carry = CarryOver(planner, prompts=batch.block, budget=batch.block * batch.mean)
        self._open: dict[int, UnderWay] = {}
        self._adrift: dict[str, int] = {}
        """Rollouts of each group that was given no longer to come back: if verl gives it up, its budget returns."""
        self._told: dict[str, tuple[str, Plan]] = {}
        self._has_seen_rewards = False
        self._log = RolloutLog(folder / "rollouts.jsonl", alone=True)
        self._figures: deque[dict[str, float]] = deque(maxlen=64)  # nobody takes them without the trainer hook
        self._seconds = 0.0
        self.step = 0
        """Training step of the newest request."""

    @property
    def success_key(self) -> str | None:
        """Entry of ``reward_extra_info`` that is told in place of the score; None where the planner goes by scores."""
        return self.settings.success_key if isinstance(self.planner, SuccessPlanner) else None

    def plan(
        self, uids: Sequence[str], keys: Sequence[str], step: int, alive: Collection[str] | None = None
    ) -> list[int]:
        """[Q] rollouts of each row: 0, or 2 and more; 1 too where the planner has baselines.

        A synchronous request gets exactly ``n`` rollouts a row; one in place of groups that failed in this step gets
        what these had. An asynchronous one draws on a budget that is carried on, to which a failed group gives back.

        Args:
            uids: [Q] verl's names of the rows; one that has not come back keeps its count (verl issues it again).
            keys: [Q] prompt ids; the same prompt may stand twice, and is then planned for twice.
            step: training step.
            alive: uids of all groups that verl has not given up; None if that is not known.
        """
        started = time.perf_counter()
        self.step = int(step)
        again = {uid for uid in uids if uid in self._adrift}  # verl issues them anew
        returned = 0 if alive is None else self._take_back({*alive} - again)
        count_of = {uid: count for entry in self._open.values() for uid, count in entry.counts().items()}
        new = [(uid, key) for uid, key in zip(uids, keys, strict=True) if uid not in count_of]
        purse = self._purse(len(new), returned) if new else None
        while purse is not None and new:
            first: dict[str, str] = {}  # the first row of each prompt
            for uid, key in new:
                first.setdefault(key, uid)
            for asked in self._ask(list(first), purse, is_refill=bool(returned)):
                self._enter(asked, first)
                rows = [first[str(key)] for key in asked.prompt_ids]
                count_of.update(zip(rows, asked.counts.tolist(), strict=True))
            taken = set(first.values())
            count_of.update({uid: 0 for uid in taken if uid not in count_of})
            new = [(uid, key) for uid, key in new if uid not in taken]
        self._seconds += time.perf_counter() - started
        return [count_of[uid] for uid in uids]

    def _enter(self, asked: Plan, uid_of: dict[str, str]) -> None:
        own = zip(map(str, asked.prompt_ids), asked.counts.tolist(), strict=True)
        waiting = {uid_of[key]: key for key, count in own if count}
        candidates = len(asked.prompt_ids) if self.settings.trained_prompts is None else len(uid_of)
        self._open[asked.step] = UnderWay(asked, self.step, candidates, waiting)

    def _purse(self, prompts: int, returned: int) -> CarryOver:
        """Where the budget of a request comes from."""
        if self._carry is not None:
            return self._carry
        return CarryOver(self.planner, prompts=prompts, budget=returned or prompts * self.batch.mean)

    def _take_back(self, alive: Collection[str]) -> int:
        """Rollouts of the groups of this step that a synchronous trainer gave up; others give back to the budget."""
        if self._carry is None:
            return sum(take_lost([e for e in self._open.values() if e.asked_at == self.step], alive))
        counts = take_lost(self._open.values(), alive)
        counts += [self._adrift.pop(uid) for uid in list(self._adrift) if uid not in alive]
        budget, prompts = self._carry.left
        self._carry.left = budget + sum(counts), prompts + len(counts)
        self._close_due(is_told=False)
        return 0

    def tell(self, uids: Sequence[str], rewards_N: npt.ArrayLike, tokens_N: npt.ArrayLike) -> None:
        """Take in rollouts, any number, in any order; those already told, or of nobody, are ignored.

        All rollouts of a row come at once. A plan is closed, and learnt from, when all its rows have come; that of a
        synchronous trainer at once, whatever is missing; an asynchronous one at the latest after ``patience`` steps.
        """
        started = time.perf_counter()
        rewards, tokens = np.asarray(rewards_N, dtype=np.float64), np.asarray(tokens_N)
        place = {uid: n for n, entry in self._open.items() for uid in entry.waiting}
        rows_of: dict[int, list[int]] = {}
        for row, uid in enumerate(uids):
            self._adrift.pop(uid, None)
            if uid in place:
                rows_of.setdefault(place[uid], []).append(row)
        if rows_of:
            self._told = {}
            self._look_at(rewards[[row for rows in rows_of.values() for row in rows]])
        for number, rows in rows_of.items():
            entry = self._open[number]
            prompts = [entry.waiting[uids[row]] for row in rows]
            scored = [i for i, row in enumerate(rows) if np.isfinite(rewards[row])]
            lengths = np.maximum(tokens[rows][scored], 1) if "lengths" in self.planner.contract.told else None
            self.planner.tell(
                entry.plan, rewards[rows][scored], [prompts[i] for i in scored], lengths=lengths, final=False
            )
            for prompt, row in zip(prompts, rows, strict=True):
                entry.tokens[prompt] = entry.tokens.get(prompt, 0) + int(tokens[row])
            for uid in {uids[row] for row in rows}:
                self._told[uid] = entry.waiting.pop(uid), entry.plan
        self._close_due(is_told=bool(rows_of))
        self._seconds += time.perf_counter() - started

    def _look_at(self, rewards_N: FloatArray) -> None:
        """Once a run, whether rewards say what a success is."""
        if not self._has_seen_rewards:
            warn_of_rewards(rewards_N[np.isfinite(rewards_N)], self.planner, self.settings.success_key)
        self._has_seen_rewards = True

    def advantages(
        self, uids: Sequence[str], rewards_N: FloatArray, tokens_N: npt.NDArray[Any], estimator: str
    ) -> FloatArray:
        """[N] of the rollouts last told: weights, baselines and the selection of their plans are in them.

        Every rollout is compared with those of the same uid. One of a uid that was not told just now belongs to no
        plan: it has neither weight nor baseline.

        Raises:
            InvalidInputError: a reward is not finite.
        """
        number: dict[str, int] = {}
        group_N = np.array([number.setdefault(uid, len(number)) for uid in uids], dtype=np.int64)
        told = [self._told.get(uid, (uid, None)) for uid in number]
        prompts, plans = tuple(prompt for prompt, _ in told), [plan for _, plan in told]
        terms, weighting = group_terms(prompts, plans), self.settings.prompt_weighting
        own_N = estimated(rewards_N, group_N, estimator, terms)
        if self._selector is None:
            return weighted(own_N, group_N, weighting) * terms.factors_Q[group_N]
        rollouts = carrying.Batch(prompts, group_N, rewards_N, own_N, np.asarray(tokens_N, dtype=np.int64))
        selection = self._selected(self._selector, rollouts, min((plan.step for plan in plans if plan), default=0))

        def estimate(rewards_N: FloatArray, among_N: npt.NDArray[np.bool_]) -> FloatArray:
            return estimated(rewards_N, group_N, estimator, terms, among_N)

        factors_N = row_factors(group_N, weighting, selection) * terms.factors_Q[group_N]
        return selected_advantages(selection, rollouts, estimate) * factors_N

    def _selected(self, selector: Selector, rollouts: carrying.Batch, step: int) -> Selection:
        first = step * self.batch.budget
        progress = min((self.step - 1) / self.batch.steps, 1.0) if self.batch.steps else 0.0
        return selected(selector, rollouts, step=step, first_number=first, progress=progress)

    def prompt_factors(self, uids: Sequence[str]) -> FloatArray:
        """[N] what the advantages of an estimator of verl's are multiplied with, so that prompts count the same."""
        number: dict[str, int] = {}
        group_N = np.array([number.setdefault(uid, len(number)) for uid in uids], dtype=np.int64)
        return weighted(np.ones(len(group_N)), group_N, self.settings.prompt_weighting)

    def take_figures(self) -> dict[str, float]:
        """Figures of the plans closed since the last call, as one; empty if none was."""
        taken = list(self._figures)
        self._figures.clear()
        if not taken:
            return {}
        names = dict.fromkeys(name for figures in taken for name in figures)
        merged = {name: _REDUCE.get(name, np.mean)([f[name] for f in taken if name in f]) for name in names}
        merged["seconds"], self._seconds = self._seconds, 0.0
        return {name: float(value) for name, value in merged.items()}

    def save(self, folder: Path) -> None:
        """Write everything into verl's checkpoint, atomically."""
        self._log.sync()
        entries = [{"plan": number, **entry.saved()} for number, entry in self._open.items()]
        state: State = {"planner": self.planner.state_dict(), "step": self.step, "book": self.book.state_dict()}
        if self._carry is not None:
            state |= {"carry": self._carry.state_dict(), "block": self.batch.block, "mean": self.batch.mean}
            state["adrift"] = encode_json(self._adrift)
        if self._selector is not None:
            state["selector"] = self._selector.state_dict()
        save_state(folder / PLANNER_FILE, {**state, "under_way": encode_json(entries)}, kind=KIND)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint; one without a planner is gone on from with a warning.

        What is believed is taken over whatever ``n``, batch size, bounds and estimator are now; plans that were open
        are dropped where these differ.

        Raises:
            StateError: the state is damaged, or of another planner.
        """
        if not (file := folder / PLANNER_FILE).exists():
            log.warning("%s has no %s: the planner starts without a record", folder, PLANNER_FILE)
            return
        state = load_state(file, kind=KIND)
        try:
            entries, step = decode_json(state["under_way"]), int(state["step"])
            self.planner.load_state_dict(state["planner"], settings="own")
            self._open = restored(entries, self.planner.open_plans)
            self.book.load_state_dict(state["book"])
            if self._selector is not None and "selector" in state:
                self._selector.load_state_dict(state["selector"])
            self._resume_budget(state, dropped=len(entries) - len(self._open))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, StateError):
                raise
            raise StateError(
                f"{file} cannot be used",
                got=f"{type(error).__name__}: {error}",
                allowed="what Allotment wrote into verl's checkpoint",
                fix="resume from an older checkpoint, or move the file away: the planner then starts anew",
            ) from error
        self.step = step
        self._log.resume(step)

    def _resume_budget(self, state: State, *, dropped: int) -> None:
        """An unfinished block of prompts goes on if its batch is the same; else a new one begins."""
        if dropped:
            log.warning("%d plans were open with other settings: their prompts are planned for anew", dropped)
        if self._carry is None or dropped or "carry" not in state:
            return
        try:
            if (state["block"], state["mean"]) == (self.batch.block, self.batch.mean):
                self._carry.load_state_dict(state["carry"])
                self._adrift = decode_json(state["adrift"], dict)
        except StateError as error:
            log.warning("a new block of prompts begins, since the saved one does not fit: %s", error)

    def _ask(self, keys: list[str], purse: CarryOver, *, is_refill: bool) -> list[Plan]:
        """Plans for distinct prompts."""
        kept = self.settings.trained_prompts
        if kept is None or is_refill:
            return purse.ask(keys)
        keep = -(-len(keys) * kept // self.batch.prompts)
        return [carrying.ask(self.planner, keys, budget=len(keys) * self.batch.mean, trained_prompts=keep)]

    def _close_due(self, *, is_told: bool) -> None:
        for number in sorted(self._open):
            entry = self._open[number]
            is_late = self.step - entry.asked_at >= self._patience
            if not entry.waiting or is_late or (self.batch.is_sync and is_told):
                del self._open[number]
                self._close(entry)
                self._adrift |= {} if self.batch.is_sync else entry.counts()

    def _close(self, entry: UnderWay) -> None:
        if not entry.tokens:
            self.planner.cancel(entry.plan)
            log.warning("step %d: nothing came back for a plan of %d rollouts", entry.asked_at, entry.plan.budget)
            return
        outcome = self.planner.tell(entry.plan, [], [], allow_missing_groups=True)
        tokens_Q = np.array([entry.tokens.get(str(p), 0) for p in entry.plan.prompt_ids], dtype=np.int64)
        rows = rollout_rows(entry.plan, outcome, tokens_Q, self._threshold)
        self._log.append({**row, "step": self.step} for row in rows)
        figures = step_figures(entry.plan, entry.candidates, outcome, self._threshold, self._estimator)
        self._figures.append({**figures, "tokens": float(tokens_Q.sum()), "dead_rollouts": _dead(outcome)})


_REDUCE: dict[str, Any] = {
    "budget": np.sum,
    "unscored": np.sum,
    "zero_count": np.sum,
    "tokens": np.sum,
    "min_count": np.min,
    "max_count": np.max,
}
"""How figures of several plans become one; means otherwise."""


def _dead(outcome: Outcome) -> float:
    """Share of rollouts whose group has equal rewards throughout."""
    received_Q = outcome.received
    return float(received_Q[~(outcome.reward_variance() > 0)].sum() / max(received_Q.sum(), 1))
