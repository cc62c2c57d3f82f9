"""Figures of each step of a TRL run, by its ``rollouts.jsonl`` and what TRL logged: as a run directory has them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from allotment.run_logs.trl_folder import Checkpoint, Row, TRLFolder, rows_by_step

LOGGED = {"grad_norm": "gradient_norm", "loss": "loss", "reward": "reward", "kl": "kl", "entropy": "entropy"}
"""Figures of TRL that are taken over, and their names here; those of Allotment's are, with theirs."""
NOT_TAKEN = ("seconds", "tokens", "budget", "min_count", "max_count", "success", "predicted_success")
"""Figures of Allotment's that are worked out from the rollouts of each step, or are times."""


def step_rows(folder: TRLFolder) -> list[Row]:
    """A line a step: counts, success and totals by the rollouts; what TRL logged where it logged every step."""
    logged = logged_rows(folder.checkpoint)
    rows, rollouts, tokens = [], 0, 0
    for step, group in rows_by_step(folder.rollouts).items():
        figures = _by_rollouts(group)
        own = logged.get(step, {})
        rollouts += figures["budget"] + int(own.get("unscored", 0))
        tokens += sum(int(row["tokens"]) for row in group)
        rows.append({"step": step, "rollouts_total": rollouts, "tokens_total": tokens, **figures, **own})
    return rows


def logs_each_step(folder: TRLFolder) -> bool:
    """Whether what TRL logged is known of every step up to the checkpoint."""
    told = 0 if folder.checkpoint is None else folder.checkpoint.told
    return told > 0 and set(range(1, told + 1)) <= logged_rows(folder.checkpoint).keys()


def logged_rows(checkpoint: Checkpoint | None) -> dict[int, Row]:
    """What TRL logged of single steps; lines that are means over several steps, or parts of one, are left out."""
    if checkpoint is None or checkpoint.told != checkpoint.updates:
        return {}
    found: dict[int, Row] = {}
    before = 0
    for row in checkpoint.history:
        if "loss" not in row:
            continue
        if row["step"] - before == 1:
            own = {k.removeprefix("allotment/"): v for k, v in row.items() if k.startswith("allotment/")}
            figures = {k: v for k, v in own.items() if k not in NOT_TAKEN}
            found[row["step"]] = {**figures, **{name: row[key] for key, name in LOGGED.items() if key in row}}
        before = row["step"]
    return found


def step_seconds(checkpoint: Checkpoint | None) -> list[Row]:
    """Seconds of each step, where TRL logged every step."""
    known = logged_rows(checkpoint)
    history = () if checkpoint is None else checkpoint.history
    rows = [row for row in history if "loss" in row and "step_time" in row and row["step"] in known]
    return [{"step": row["step"], "seconds": float(row["step_time"])} for row in rows]


def evaluated_rewards(checkpoint: Checkpoint | None) -> dict[str, dict[int, float]]:
    """Mean reward of each evaluation, by the name of its data set (empty where there is one) and the step."""
    found: dict[str, dict[int, float]] = {}
    for row in () if checkpoint is None else checkpoint.history:
        for key, value in row.items():
            if checkpoint is not None and key.startswith("eval_") and key.endswith("reward"):
                name = key.removeprefix("eval_").removesuffix("reward").removesuffix("_")
                found.setdefault(name, {})[checkpoint.step(row["step"])] = float(value)
    return found


def _by_rollouts(group: Sequence[Row]) -> dict[str, Any]:
    counts = [int(row["n"]) for row in group]
    shares = [row["successes"] / row["n"] for row in group]
    known = [row["predicted_mean"] for row in group if row.get("predicted_mean") is not None]
    figures = {
        "budget": sum(counts),
        "min_count": min(counts),
        "max_count": max(counts),
        "zero_variance_groups": fmean(share in (0.0, 1.0) for share in shares),
        "success": fmean(shares),
    }
    return {**figures, **({"predicted_success": fmean(known)} if known else {})}
