"""DAPO's dynamic sampling (arXiv 2503.14476): draw prompts until enough groups are mixed, train on those alone."""

from __future__ import annotations

from typing import Unpack

import numpy as np
import numpy.typing as npt

from allotment.allocation.exact import check_bounds
from allotment.checks import check_setting
from allotment.planning.contract import Contract, PlannerEntry
from allotment.planning.outcome import Outcome
from allotment.planning.planner import Common, Planner
from allotment.planning.rounds import Step
from allotment.pricing import get_estimator
from allotment.registry import Row
from allotment.selection import Scored, Selection, Stateless, draws
from allotment.state import State, Stateful
from allotment.types import FloatArray, IntArray, Plan, PromptId


class MixedGroups(Stateless):
    """Keeps whole groups that hold successes and failures, at most ``limit``, drawn at random where there are more.

    The loss averages over what is kept. Where no group is mixed nothing is kept.

    Args:
        limit: most groups; no limit if None.
        success_threshold: a reward of at least this counts as a success.
        seed: of the draws, which are a function of seed, step and group.
    """

    def __init__(self, *, limit: int | None = None, success_threshold: float = 0.5, seed: int = 0) -> None:
        self.limit, self.success_threshold, self.seed = limit, success_threshold, seed

    def select(self, scored: Scored) -> Selection:
        """The mixed groups."""
        is_kept_Q = mixed_groups(scored, self.success_threshold)
        mixed = np.flatnonzero(is_kept_Q)
        if self.limit is not None and len(mixed) > self.limit:
            first_Q = np.full(len(is_kept_Q), np.iinfo(np.int64).max)
            np.minimum.at(first_Q, scored.rows_N, scored.numbers_N)
            draws_L = draws(self.seed, scored.step, first_Q[mixed], "surplus")
            is_kept_Q[mixed[np.argsort(draws_L)[self.limit :]]] = False
        return Selection(is_kept_Q[scored.rows_N].astype(np.float64), denominator="kept")


class DAPO(Planner):
    """Draws candidates until ``trained_prompts`` groups hold successes and failures; each draw gets C / B rollouts.

    Predicts nothing. A step opens with ``draw`` of the candidates asked, in an order drawn anew at each step, and
    goes on by as many until B groups are mixed or the candidates are used up. The :attr:`selector` drops groups of
    accuracy 0 or 1, and mixed ones beyond B, at random. So C bounds what is trained on; what is generated is random, up
    to C / B rollouts for every candidate.

    With RLOO every drawn prompt's expected contribution is that of its success probability's gradient, mixed or not
    (an unmixed group contributes 0), so no prompt is re-weighted against another: all count 1 / (share of mixed
    groups) times as much, which is a larger step and not another objective. Only with advantages divided by their
    standard deviation, as in the paper, do weights depend on p.

    Source: section 3.2 and algorithm 1; verl's ``recipe/dapo``. Paper: B = 512, 16 rollouts each. verl draws three
    batches at a time (``draw=3 * trained_prompts``), keeps the groups generated first instead of some at random,
    gives up with an error after ``max_num_gen_batches``, and filters by the standard deviation of any metric; here the
    candidates asked are the limit and success is counted. Where too few groups are mixed the step trains on those
    there are; where none is, every weight is 0 and nothing is learnt.

    Args:
        budget: C, rollouts that are trained on if B groups are found.
        trained_prompts: B, groups wanted; all prompts asked if None or if fewer are asked.
        draw: candidates of a round; B if None.
    """

    contract = Contract(several_rounds=True, spends=(0.0, float("inf")), leaves_out=True, selects=MixedGroups.NEEDS)

    def __init__(
        self,
        *,
        success_threshold: float = 0.5,
        trained_prompts: int | None = None,
        draw: int | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        check_setting("success_threshold", success_threshold, np.isfinite(success_threshold), "a finite reward")
        for name, value in (("trained_prompts", trained_prompts), ("draw", draw)):
            is_count = value is None or (type(value) is int and value >= 1)
            check_setting(name, value, is_count, "a whole number >= 1, or None")
        self.success_threshold = float(success_threshold)
        self.trained_prompts, self.draw = trained_prompts, draw

    @property
    def selector(self) -> MixedGroups:
        """Mixed groups alone, at most ``trained_prompts``."""
        return MixedGroups(limit=self.trained_prompts, success_threshold=self.success_threshold, seed=self.seed)

    def _open(self, ids: tuple[PromptId, ...], budget: int) -> Plan:
        wanted = self._wanted(len(ids))
        lower, upper = self.bounds
        minimum = get_estimator(self.estimator).minimum_count
        check_bounds(budget, lower, upper, n_prompts=wanted, minimum_count=minimum)
        drawn = self._candidates(ids, self._step)[: self._first_draw(wanted)]
        return self._new_plan(ids, _even(drawn, budget * len(drawn) // wanted, len(ids)))

    def _next(self, step: Step) -> Plan | None:
        outcome = step.needed_outcome
        asked = len(outcome.prompt_ids)
        wanted = self._wanted(asked)
        missing = wanted - int(mixed_groups(outcome, self.success_threshold).sum())
        candidates = self._candidates(outcome.prompt_ids, step.number)
        left = candidates[outcome.planned[candidates] == 0]
        if missing <= 0 or not len(left):
            return None
        drawn = left[: self._next_draw(outcome, wanted, missing)]
        return step.next_plan(_even(drawn, step.budget * len(drawn) // wanted, asked))

    def _wanted(self, asked: int) -> int:
        return asked if self.trained_prompts is None else min(self.trained_prompts, asked)

    def _candidates(self, ids: tuple[PromptId, ...], step: int) -> IntArray:
        """The rows that may be drawn, in order; the same in every round of a step."""
        return np.argsort(self._tie_keys(ids, "candidates/", step))

    def _first_draw(self, wanted: int) -> int:
        return self.draw or wanted

    def _next_draw(self, outcome: Outcome, wanted: int, missing: int) -> int:
        """Candidates of a further round, while ``missing`` of ``wanted`` groups are."""
        return self._first_draw(wanted)

    def _observe(self, outcome: Outcome) -> None:
        """Nothing."""

    @property
    def _parts(self) -> dict[str, Stateful]:
        return {}

    def _settings(self) -> State:
        own = {"success_threshold": self.success_threshold, "prompts": self.trained_prompts, "draw": self.draw}
        return {**super()._settings(), **own}


def mixed_groups(rollouts: Outcome | Scored, threshold: float) -> npt.NDArray[np.bool_]:
    """[Q] whether a group holds both rewards of at least ``threshold`` and others."""
    shares_Q = success_shares(rollouts, threshold)
    return (shares_Q > 0) & (shares_Q < 1)


def success_shares(rollouts: Outcome | Scored, threshold: float) -> FloatArray:
    """[Q] the share of each group's rewards that are at least ``threshold``; NaN where there are none."""
    is_success_N = rollouts.rewards_N >= threshold
    count_Q = np.bincount(rollouts.rows_N, minlength=len(rollouts.prompt_ids))
    successes_Q = np.bincount(rollouts.rows_N, is_success_N, minlength=len(count_Q))
    return np.where(count_Q > 0, successes_Q / np.maximum(count_Q, 1), np.nan)


def _even(rows: IntArray, rollouts: int, asked: int) -> IntArray:
    """[Q] ``rollouts`` split evenly over these rows, what is left over to the first of them; 0 for the others."""
    counts_Q = np.zeros(asked, dtype=np.int64)
    counts_Q[rows] = rollouts // len(rows)
    counts_Q[rows[: rollouts % len(rows)]] += 1
    return counts_Q


ENTRY = PlannerEntry(
    DAPO,
    DAPO.contract,
    candidates=4,
    row=Row(
        "nothing",
        "between rounds of a step",
        "at most C trained on; generated: until enough groups are mixed",
        "the mean success probability, with a larger step: 1 / (share of mixed groups) for every p; with GRPO's "
        "standard deviation not",
        "arXiv 2503.14476, verl `recipe/dapo`",
        "surplus groups are dropped at random, not by order; the candidates asked are the limit",
    ),
)
