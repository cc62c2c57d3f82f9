"""What a step leaves behind: figures for the trainer's log, lines for ``rollouts.jsonl``."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import numpy as np

from allotment.audit.figures import calibration_error
from allotment.planning import Outcome
from allotment.pricing import get_estimator
from allotment.types import Allocation, FloatArray, IntArray, Plan


def step_figures(plan: Plan, candidates: int, outcome: Outcome, threshold: float, estimator: str) -> dict[str, float]:
    """Figures of one step by name; those that cannot be computed are left out.

    ``plan``, ``outcome``: what was asked and what came back. ``candidates``: distinct prompts that could have been
    planned for. ``threshold``: least reward of a success. ``estimator``: whose variance the realised ratio is of.
    """
    counts_Q = plan.counts
    figures = {
        "budget": float(counts_Q.sum()),
        "min_count": float(counts_Q[counts_Q > 0].min()),
        "max_count": float(counts_Q.max()),
        "zero_count": float(candidates - (counts_Q > 0).sum()),
        "unscored": float(outcome.missing.sum()),
    }
    told_Q = outcome.received > 0
    if not told_Q.any():
        return figures
    trials_Q, successes_Q = outcome.received[told_Q], outcome.successes(threshold)[told_Q]
    figures["success"] = float((successes_Q / trials_Q).mean())
    if plan.posterior is not None:
        p_Q = plan.posterior.success_probability()[told_Q]
        figures["predicted_success"] = float(p_Q.mean())
        figures["calibration_error"] = calibration_error(p_Q, successes_Q, trials_Q)
    figures |= _variance_ratios(plan.allocation, trials_Q, outcome.reward_variance()[told_Q], estimator)
    return figures


def _variance_ratios(
    allocation: Allocation | None, trials_Q: IntArray, variance_Q: FloatArray, estimator: str
) -> dict[str, float]:
    """Variance of the gradient relative to equal counts: as the plan expected it, and with the variances of the rewards
    that came, of whatever size.
    """
    ratios = {}
    if allocation is not None and allocation.uniform_objective > 0:
        ratios["predicted_variance_ratio"] = allocation.objective / allocation.uniform_objective
    if trials_Q.min() < 2:
        return ratios
    curve = get_estimator(estimator).variance
    equal = float((variance_Q * curve(np.full(len(trials_Q), trials_Q.mean()))).sum())
    if equal > 0:
        ratios["realised_variance_ratio"] = float((variance_Q * curve(trials_Q)).sum()) / equal
    return ratios


def rollout_rows(plan: Plan, outcome: Outcome, tokens_Q: IntArray, threshold: float) -> list[dict[str, Any]]:
    """A line for each prompt that had rollouts.

    ``tokens_Q``: completion tokens of each prompt of the plan. Rollouts without a reward are in ``tokens`` alone.
    """
    return plan_rows(plan, plan.step + 1, outcome.received, outcome.successes(threshold), tokens_Q)


def plan_rows(
    plan: Plan, step: int, counts_Q: IntArray, successes_Q: IntArray, tokens_Q: IntArray
) -> list[dict[str, Any]]:
    """The lines of ``rollouts.jsonl`` for the prompts with ``counts_Q`` > 0; arrays are [Q], as the plan's."""
    rows_R, belief = np.flatnonzero(counts_Q), plan.posterior
    columns: dict[str, Iterable[Any]] = {
        "prompt_id": [plan.prompt_ids[q] for q in rows_R.tolist()],
        "step": repeat(step),
        "round": repeat(plan.round),
        "n": counts_Q[rows_R].tolist(),
        "successes": successes_Q[rows_R].tolist(),
        "tokens": tokens_Q[rows_R].tolist(),
        "predicted_mean": repeat(None) if belief is None else belief.success_probability()[rows_R].round(6).tolist(),
        "predicted_sd": repeat(None) if belief is None else belief.standard_deviation()[rows_R].round(6).tolist(),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=False)]  # repeats never end
