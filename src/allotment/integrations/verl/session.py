"""What one training run knows: its planner, the open plans, its log. One for each trainer process.

verl makes manager, estimators, trainer and checkpoint callback apart from one another; this is where they meet. It
imports nothing of verl's.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from allotment.errors import ConfigError, StateError
from allotment.integrations import carrying
from allotment.integrations.advantages import estimated, group_terms, weighted
from allotment.integrations.carrying import row_factors, selected, selected_advantages
from allotment.integrations.generic import counts_of
from allotment.integrations.verl.config import (
    AllotmentSettings,
    Batch,
    planner_of,
    priced_estimator,
    read,
    resume_folder,
    run_folder,
    selector_of,
)
from allotment.planning import Outcome, Planner
from allotment.planning.carry_over import CarryOver
from allotment.planning.planner import PLANNER_FILE
from allotment.run_logs.figures import rollout_rows, step_figures
from allotment.run_logs.rollout_log import RolloutLog
from allotment.selection import Selection, Selector
from allotment.state import decode_json, encode_json, load_state, save_state
from allotment.types import FloatArray, Plan

log = logging.getLogger("allotment")

KIND = "verl-planner"
PATIENCE = 16
"""Steps after which a plan of an asynchronous trainer is closed with what came back for it."""


@dataclass(eq=False)
class _Open:
    """A plan whose rollouts are coming back."""

    plan: Plan
    asked_at: int
    """Training step of the request."""
    candidates: int
    """Distinct prompts that could have been planned for."""
    block: int
    """Number of the block of prompts it is part of."""
    waiting: dict[str, str]
    """uid of each group that has not come back, and its prompt."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Response tokens of each prompt so far."""

    def saved(self) -> dict[str, Any]:
        """For a checkpoint; the planner keeps the plan, but for what the loss needs of it."""
        own = {name: getattr(self, name) for name in ("asked_at", "candidates", "block", "waiting", "tokens")}
        carried = {name: getattr(self.plan, name) for name in _OF_THE_LOSS}
        return own | {name: values.tolist() for name, values in carried.items() if values is not None}

    @classmethod
    def restored(cls, plan: Plan, entry: dict[str, Any]) -> _Open:
        """The inverse of :meth:`saved`."""
        carried: dict[str, Any] = {name: np.array(entry.pop(name)) for name in _OF_THE_LOSS if name in entry}
        return cls(replace(plan, **carried), **entry)


_OF_THE_LOSS = ("baselines", "baseline_shares")
"""What an open plan says of the advantages of its rollouts. Weights: none, where plans stay open (``checks``)."""


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
        self._selector, self._estimator, self._patience = selector, estimator, patience
        self._threshold = planner.success_threshold
        self._carry = CarryOver(planner, prompts=batch.block, budget=batch.block * batch.mean)
        self._asked = 0
        self._open: dict[int, _Open] = {}
        self._told: dict[str, tuple[str, Plan]] = {}
        self._log = RolloutLog(folder / "rollouts.jsonl")
        self._figures: deque[dict[str, float]] = deque(maxlen=64)  # nobody takes them without the trainer hook
        self._seconds = 0.0
        self.step = 0
        """Training step of the newest request."""

    def plan(self, uids: Sequence[str], keys: Sequence[str], step: int) -> list[int]:
        """[Q] rollouts of each row: 0, or 2 and more; 1 too where the planner has baselines.

        Args:
            uids: [Q] verl's names of the rows; one that has not come back keeps its count (verl issues it again).
            keys: [Q] prompt ids; the same prompt may stand twice, and is then planned for twice.
            step: training step.
        """
        started = time.perf_counter()
        self.step = int(step)
        count_of = self._open_counts(uids)
        new = [(uid, key) for uid, key in zip(uids, keys, strict=True) if uid not in count_of]
        while new:
            first: dict[str, str] = {}  # the first row of each prompt
            for uid, key in new:
                first.setdefault(key, uid)
            for asked in self._ask(list(first)):
                uid_of = {key: first[str(key)] for key in asked.prompt_ids}
                own = {uid_of[key]: count for key, count in zip(asked.prompt_ids, asked.counts.tolist(), strict=True)}
                count_of.update(own)
                waiting = {uid: str(key) for key, uid in uid_of.items() if own[uid]}
                candidates = len(own) if self.settings.trained_prompts is None else len(first)
                self._open[asked.step] = _Open(asked, self.step, candidates, self._asked // self.batch.block, waiting)
                self._asked += len(own)
            taken = set(first.values())
            count_of.update({uid: 0 for uid in taken if uid not in count_of})
            new = [(uid, key) for uid, key in new if uid not in taken]
        self._seconds += time.perf_counter() - started
        return [count_of[uid] for uid in uids]

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
            if uid in place:
                rows_of.setdefault(place[uid], []).append(row)
        if rows_of:
            self._told = {}
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

    def whole_blocks_first(self, uids: Sequence[str]) -> list[str]:
        """The rows of complete blocks, block by block, then the others, in the order they stand in."""
        block_of = {uid: entry.block for entry in self._open.values() for uid in entry.waiting}
        ready = Counter(block_of[uid] for uid in uids if uid in block_of)
        last = len(ready) and max(ready) + 1
        rank = {block: block if count == self.batch.block else last for block, count in ready.items()}
        return sorted(uids, key=lambda uid: rank.get(block_of.get(uid, -1), last))

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
        state = {
            "planner": self.planner.state_dict(),
            "carry": self._carry.state_dict(),
            "step": self.step,
            "asked": self._asked,
        }
        if self._selector is not None:
            state["selector"] = self._selector.state_dict()
        save_state(folder / PLANNER_FILE, {**state, "under_way": encode_json(entries)}, kind=KIND)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint; one without a planner is gone on from with a warning.

        Raises:
            StateError: the state is damaged, or of another planner or batch size.
        """
        if not (file := folder / PLANNER_FILE).exists():
            log.warning("%s has no %s: the planner starts without a record", folder, PLANNER_FILE)
            return
        state = load_state(file, kind=KIND)
        try:
            entries, step, self._asked = decode_json(state["under_way"]), int(state["step"]), int(state["asked"])
            self._carry.load_state_dict(state["carry"])
            self.planner.load_state_dict(state["planner"])
            plans = {p.step: p for p in self.planner.open_plans}
            self._open = {e["plan"]: _Open.restored(plans[e.pop("plan")], e) for e in entries}
            if self._selector is not None and "selector" in state:
                self._selector.load_state_dict(state["selector"])
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

    def _ask(self, keys: list[str]) -> list[Plan]:
        """Plans for distinct prompts, on the average ``batch.mean`` rollouts each."""
        kept = self.settings.trained_prompts
        if kept is None:
            return self._carry.ask(keys)
        keep = -(-len(keys) * kept // self.batch.prompts)
        return [carrying.ask(self.planner, keys, budget=len(keys) * self.batch.mean, trained_prompts=keep)]

    def _open_counts(self, uids: Sequence[str]) -> dict[str, int]:
        wanted = set(uids)
        return {
            uid: count
            for entry in self._open.values()
            for uid, count in zip(entry.waiting, counts_of(entry.plan, entry.waiting.values()), strict=True)
            if uid in wanted
        }

    def _close_due(self, *, is_told: bool) -> None:
        for number in sorted(self._open):
            entry = self._open[number]
            is_late = self.step - entry.asked_at >= self._patience
            if not entry.waiting or is_late or (self.batch.is_sync and is_told):
                del self._open[number]
                self._close(entry)

    def _close(self, entry: _Open) -> None:
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


_current: Session | None = None


def start_session(config: Any) -> Session:
    """A new session for this process, from verl's configuration; restored where verl resumes.

    Raises:
        ConfigError: verl's configuration rules out counts of their own for each prompt.
        StateError: the planner's state in the checkpoint cannot be used.
    """
    global _current
    settings, batch = read(config)
    threshold = config.trainer.v1.sampler.get("max_off_policy_threshold")
    planner = planner_of(config, settings, batch)
    session = Session(
        planner,
        settings,
        batch,
        run_folder(config),
        selector=selector_of(config, settings, batch, planner),
        estimator=priced_estimator(config),
        patience=int(threshold or PATIENCE),
    )
    if (folder := resume_folder(config)) is not None:
        session.load(folder)
    _current = session
    return session


def current_session() -> Session:
    """The session of this process.

    Raises:
        ConfigError: there is none.
    """
    if _current is None:
        raise ConfigError(
            "no planner was started",
            got="an Allotment estimator, trainer or callback without Allotment's agent-loop manager",
            allowed="all of them together",
            fix="set actor_rollout_ref.rollout.agent.agent_loop_manager_class to "
            "allotment.integrations.verl.AllotmentAgentLoopManager",
        )
    return _current
