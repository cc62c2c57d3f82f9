"""What a step leaves behind: a line per prompt and round for ``rollouts.jsonl``, a line of metrics for the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from allotment.allocation import TokenAllocation
from allotment.lab.generation import Rollouts
from allotment.run_logs.figures import plan_rows
from allotment.types import FloatArray, Plan

Metrics = dict[str, Any]


def rollout_rows(step: int, plan: Plan, row_of: Mapping[str, int], rollouts: Rollouts) -> list[Metrics]:
    """One line per prompt that had rollouts in this round."""
    groups, rows = rollouts.group_N.numpy(), [row_of[str(i)] for i in plan.prompt_ids]
    successes_Q = np.bincount(groups, rollouts.rewards_N, minlength=len(row_of))[rows]
    tokens_Q = np.bincount(groups, rollouts.mask_NT.sum(1).numpy(), minlength=len(row_of))[rows]
    return plan_rows(plan, step, plan.counts, successes_Q, tokens_Q)


def step_metrics(plan: Plan, rows: Sequence[Metrics]) -> Metrics:
    """The step's line, from its first plan and the lines of all rounds; means are over prompts, not over rollouts."""
    n, successes, tokens = _totals(rows)
    metrics: Metrics = {
        "budget": int(n.sum()),
        "min_count": int(n.min()),
        "max_count": int(n.max()),
        "success": float((successes / n).mean()),
        "zero_variance_groups": float(((successes == 0) | (successes == n)).mean()),
    }
    predicted: dict[str, float | None] = {}
    for row in rows:
        predicted.setdefault(row["prompt_id"], row["predicted_mean"])  # of the first round a prompt is in
    if None not in predicted.values():
        means = np.array(list(predicted.values()), dtype=np.float64)
        metrics["predicted_success"] = float(means.mean())
        metrics["prediction_error"] = float(np.abs(means - successes / n).mean())
    if plan.allocation is not None:
        metrics["objective"] = plan.allocation.objective
        metrics["uniform_objective"] = plan.allocation.uniform_objective
    if isinstance(plan.allocation, TokenAllocation):
        metrics["tokens"] = int(tokens.sum())
        metrics["expected_tokens"] = plan.allocation.expected_tokens
    return metrics


def _totals(rows: Sequence[Metrics]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Rollouts, successes and tokens of each prompt over all rounds, in the order of round 0; all [Q]."""
    sums: dict[str, FloatArray] = {}
    for row in rows:
        here = np.array([row["n"], row["successes"], row["tokens"]], dtype=np.float64)
        sums[row["prompt_id"]] = sums.get(row["prompt_id"], 0.0) + here
    n, successes, tokens = np.array(list(sums.values())).T
    return n, successes, tokens
