"""Prompt pruning before generation (Dynamic Pruning, arXiv 2603.04135), unbiased by importance weights."""

from __future__ import annotations

from typing import Unpack

import numpy as np

from allotment.allocation import uniform
from allotment.methods.selectors.completion_pruning import check_rate, prune
from allotment.planning.contract import Contract, PlannerEntry
from allotment.planning.outcome import Outcome
from allotment.planning.planner import Common, Planner
from allotment.pricing import RLOO
from allotment.prompts.ids import PromptTable
from allotment.registry import BEFORE, Row
from allotment.state import State, Stateful
from allotment.types import FloatArray, Plan, PromptId


class DynamicPruning(Planner):
    """Leaves out prompts whose last group had a small mean absolute advantage, with probability ``rate``.

    At risk are the prompts below the mean, over the prompts asked that have a history, of h: the mean ``|A|`` of a
    prompt's last group, by the run's estimator (RLOO: ``2 k (n - k) / (n (n - 1))`` for k successes of n). A prompt
    without a history is kept. Plans carry weights, one over the probability with which a prompt was
    let through and averages over all prompts asked, so the gradient has the expectation of the unpruned one: it
    optimises what its estimator optimises, with more variance (``P / (1 - P)`` times each squared prompt gradient).

    Decides before generation. Every kept prompt gets what it would get of ``budget`` split evenly over all prompts
    asked, so the budget shrinks; the plan's counts are 0 for pruned prompts. A batch is never emptied: not every
    prompt can lie below the mean. Only prompts that were rolled out refresh h; groups of one rollout say nothing.

    The paper's method section could not be read; rates up to 0.7 are reported as harmless.
    Combine with :class:`~allotment.methods.selectors.completion_pruning.CompletionPruning` for the whole method.

    Args:
        budget: rollouts of a step if no prompt is pruned.
        rate: probability of leaving out a prompt at risk, in [0, 1).
        random: False drops the ``floor(rate n)`` smallest of the n at risk, with the same weights for the rest.
    """

    contract = Contract(spends=(0.0, 1.0), leaves_out=True, weights=True)

    def __init__(self, *, rate: float = 0.5, random: bool = True, **common: Unpack[Common]) -> None:
        super().__init__(**common)
        self.rate, self.random = check_rate(rate), random
        self._record = PromptTable()

    def _open(self, ids: tuple[PromptId, ...], budget: int) -> Plan:
        lower, upper = self.bounds
        keys = self._tie_keys(ids)
        even = uniform(len(ids), budget, lower=lower, upper=upper, estimator=self.estimator, tie_keys=keys)
        history_Q = self._record.gather(ids, np.nan)
        known = np.isfinite(history_Q)
        is_kept_Q, keep_probability_Q = np.ones(len(ids), dtype=np.bool_), np.ones(len(ids))
        is_kept_Q[known], keep_probability_Q[known] = prune(
            history_Q[known],
            np.zeros(int(known.sum()), dtype=np.int64),
            self._draws(ids, "pruning/")[known],
            self.rate,
            random=self.random,
        )
        return self._new_plan(ids, np.where(is_kept_Q, even.counts, 0), weights=1 / keep_probability_Q)

    def _observe(self, outcome: Outcome) -> None:
        measured_Q = mean_absolute_advantage(outcome, self.estimator)
        known = np.isfinite(measured_Q)
        self._record.set([p for p, some in zip(outcome.prompt_ids, known, strict=True) if some], measured_Q[known])

    @property
    def _parts(self) -> dict[str, Stateful]:
        return {"record": self._record}

    def _settings(self) -> State:
        return {**super()._settings(), "rate": self.rate, "random": self.random}


def mean_absolute_advantage(outcome: Outcome, estimator: str) -> FloatArray:
    """[Q] mean ``|A|`` of each group by ``"rloo"`` or ``"dr_grpo"``; NaN where fewer than two rewards were told."""
    count_Q = outcome.received
    order_N = np.lexsort((outcome.rewards_N, outcome.rows_N))  # the last bits of a sum depend on its order
    rows_N, rewards_N = outcome.rows_N[order_N], outcome.rewards_N[order_N]
    mean_Q = np.bincount(rows_N, rewards_N, minlength=len(count_Q)) / np.maximum(count_Q, 1)
    sums_Q = np.bincount(rows_N, np.abs(rewards_N - mean_Q[rows_N]), minlength=len(count_Q))
    others_Q = count_Q - 1 if estimator == RLOO.name else count_Q
    return np.where(count_Q >= 2, sums_Q / np.maximum(others_Q, 1), np.nan)


ENTRY = PlannerEntry(
    DynamicPruning,
    DynamicPruning.contract,
    row=Row(
        "mean absolute advantage of a prompt's last group",
        BEFORE,
        "at most C: pruned prompts are not replaced",
        "the mean success probability, by importance weights `1/(1-P)`: 1, with more variance; `random=False`: biased",
        "DPPO, arXiv 2603.04135",
        "rule, statistic and rate are a reconstruction; the paper's proof is of random pruning, its algorithm 1 is not",
    ),
)
