"""Pilot-Commit (arXiv 2605.26606): a few rollouts of many prompts, the rest where they came out mixed."""

from __future__ import annotations

from typing import Unpack

import numpy as np

from allotment.allocation.exact import check_bounds
from allotment.checks import check_setting, check_whole
from allotment.methods.planners.dapo import success_shares
from allotment.planning.contract import Contract, PlannerEntry
from allotment.planning.outcome import Outcome
from allotment.planning.planner import Common, Planner
from allotment.planning.rounds import Step
from allotment.prompts.ids import PromptTable
from allotment.registry import Row
from allotment.selection import Scored, Selection, Stateless
from allotment.state import State, Stateful
from allotment.types import IntArray, Plan, PromptId


class Committed(Stateless):
    """Keeps the groups that got more than the pilot, whole; the loss averages over them.

    Args:
        pilot: rollouts of a pilot.
    """

    def __init__(self, *, pilot: int) -> None:
        self.pilot = pilot

    def select(self, scored: Scored) -> Selection:
        """The committed groups."""
        sizes_Q = np.bincount(scored.rows_N, minlength=len(scored.prompt_ids))
        return Selection((sizes_Q > self.pilot)[scored.rows_N].astype(np.float64), denominator="kept")


class PilotCommit(Planner):
    """Pilots of as many rollouts as the lower bound, until B prompts have a success rate in ``band``; they get the
    rest of their C / B rollouts, and are trained on with their pilots.

    Predicts nothing; decides between rounds. Prompts below the band are deferred: they come again when they are asked
    again. Those above it are passed over, and evicted for good where every rollout of the pilot succeeded. C bounds
    what is trained on; what is generated is random, a pilot more for every prompt that is left out.

    The pilot chooses the prompts and is then trained on: prompts near 1/2 weigh most twice over. With k successes of m
    in the pilot and K of n in all, RLOO weighs grad p by ``E[1{k/m in band} K (n - K)] / (n (n - 1) p (1 - p))``.

    Source: the paper, and code databricks/pilot-commit. There a pilot has 16 of 64 or 32 of 128 rollouts, what passes
    waits up to 4 steps in a buffer to be committed to, and advantages are GRPO's; here it is committed to in its own
    step, and surplus, drawn at random, is dropped. Where too few pass the step trains on those.

    Args:
        budget: C, rollouts that are trained on if B prompts pass.
        trained_prompts: B; all prompts asked if None or if fewer are asked.
        draw: pilots of a round; B if None. The code has 3 B, with a buffer for the surplus.
        band: least and most success rate of a pilot; (0.25, 0.75) in the code's configuration, (0.125, 0.75) in its
            scripts.
        solved: success rate from which a prompt is evicted: 1 in the code's scripts; None for never.
        evict_from: pilots of fewer rollouts evict nobody, ours: of prompts with p = 1/2 one pilot of 3 in eight is all
            right. 8 is the smallest pilot of the code.
    """

    contract = Contract(several_rounds=True, spends=(0.0, float("inf")), leaves_out=True, selects=Committed.NEEDS)

    def __init__(
        self,
        *,
        trained_prompts: int | None = None,
        draw: int | None = None,
        band: tuple[float, float] = (0.25, 0.75),
        solved: float | None = 1.0,
        evict_from: int = 8,
        success_threshold: float = 0.5,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        low, high = band
        check_setting("band", band, 0 < low <= high < 1, "0 < low <= high < 1: one class alone teaches nothing")
        check_setting("solved", solved, solved is None or high < solved <= 1, "above the band and at most 1, or None")
        check_setting("success_threshold", success_threshold, np.isfinite(success_threshold), "a finite reward")
        for name, value in (("trained_prompts", trained_prompts), ("draw", draw), ("evict_from", evict_from)):
            if value is not None:
                check_whole(name, value, 1)
        self.trained_prompts, self.draw, self.band = trained_prompts, draw, (float(low), float(high))
        self.solved, self.evict_from = solved, evict_from
        self.success_threshold = float(success_threshold)
        self._evicted = PromptTable()
        self._selector = Committed(pilot=self.bounds[0])

    @property
    def selector(self) -> Committed:
        """The prompts that got the rest, alone."""
        return self._selector

    def _open(self, ids: tuple[PromptId, ...], budget: int) -> Plan:
        pilot, upper = self.bounds
        wanted = self._wanted(len(ids))
        check_bounds(budget, pilot + 1, upper, n_prompts=wanted, minimum_count=pilot + 1)
        return self._new_plan(ids, self._pilots(self._candidates(ids, self._step), len(ids)))

    def _next(self, step: Step) -> Plan | None:
        outcome, pilot = step.needed_outcome, self.bounds[0]
        planned_Q, asked = outcome.planned, len(outcome.prompt_ids)
        if (planned_Q > pilot).any():
            return None
        wanted, candidates = self._wanted(asked), self._candidates(outcome.prompt_ids, step.number)
        shares = success_shares(outcome, self.success_threshold)[candidates]
        passed = candidates[(shares >= self.band[0]) & (shares <= self.band[1])][:wanted]
        left = candidates[planned_Q[candidates] == 0]
        if len(passed) < wanted and len(left):
            return step.next_plan(self._pilots(left, asked))
        counts_Q = np.zeros(asked, dtype=np.int64)
        if len(passed):
            rest = step.budget * len(passed) // wanted - pilot * len(passed)
            counts_Q[passed] = rest // len(passed)
            counts_Q[passed[: rest % len(passed)]] += 1
        return step.next_plan(counts_Q)

    def _pilots(self, candidates: IntArray, asked: int) -> IntArray:
        """[Q] a pilot for each of the first candidates, as many as a round has."""
        counts_Q = np.zeros(asked, dtype=np.int64)
        counts_Q[candidates[: self.draw or self._wanted(asked)]] = self.bounds[0]
        return counts_Q

    def _wanted(self, asked: int) -> int:
        return asked if self.trained_prompts is None else min(self.trained_prompts, asked)

    def _candidates(self, ids: tuple[PromptId, ...], step: int) -> IntArray:
        """The rows that are not evicted, in an order drawn anew at each step; all, if nobody is left."""
        order_Q = np.argsort(self._tie_keys(ids, "candidates/", step))
        stays_Q = self._evicted.gather(ids)[order_Q] == 0
        return order_Q[stays_Q] if stays_Q.any() else order_Q

    def _observe(self, outcome: Outcome) -> None:
        if self.solved is None:
            return
        is_pilot_Q = (outcome.planned <= self.bounds[0]) & (outcome.received >= self.evict_from)
        rows = np.flatnonzero(is_pilot_Q & (success_shares(outcome, self.success_threshold) >= self.solved))
        self._evicted.set([outcome.prompt_ids[row] for row in rows], np.ones(len(rows)))

    @property
    def _parts(self) -> dict[str, Stateful]:
        return {"evicted": self._evicted}

    def _settings(self) -> State:
        names = ("trained_prompts", "draw", "solved", "evict_from", "success_threshold")
        own = {name: getattr(self, name) for name in names}
        return {**super()._settings(), **own, "band_low": self.band[0], "band_high": self.band[1]}


ENTRY = PlannerEntry(
    PilotCommit,
    PilotCommit.contract,
    candidates=4,
    row=Row(
        "nothing",
        "between rounds of a step: after the pilots",
        "at most C trained on; generated: a pilot more for every prompt left out",
        "prompts near p = 1/2: the pilot chooses them, and is trained on; line: exact for a pilot of 3 of 8",
        "arXiv 2605.26606, code databricks/pilot-commit",
        "the pilot is the lower bound of counts; no buffer: the rest comes in the same step; pilots below 8 rollouts "
        "evict nobody",
    ),
)
