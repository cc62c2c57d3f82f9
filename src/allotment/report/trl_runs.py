"""A TRL run that was started from Python, as a run of the report; what its folder does not hold is named."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from allotment.config import RunConfig
from allotment.report.run import FromPython, Row, Run
from allotment.run_logs.trl_figures import evaluated_rewards, logs_each_step, step_rows, step_seconds
from allotment.run_logs.trl_folder import TRLFolder, read_trl_folder, rows_by_step

POINTS = 10
"""Points of a learning curve where nothing was evaluated."""
MEASURED = (
    "in TRL runs from Python on the training pool by the rollouts of the steps since the point before, each prompt "
    "alike, and on held-out prompts by the mean reward of TRL's evaluations"
)
NO_EVALUATION = "no evaluation is logged: success is that of the training rollouts alone."


class PythonRun(RunConfig):
    """What the folder of a TRL run says of its settings."""

    trainer: Literal["trl from Python"] = "trl from Python"
    planner: str
    """Its name; the folder's where no file says it."""
    learning_rate: float = Field(math.nan, gt=0, allow_inf_nan=True)
    """The largest that was logged; NaN where none was."""
    is_constant: bool = True
    """Whether the learning rate that was logged never changed."""
    spent: int = 0
    """Rollouts of a step."""
    not_recorded: tuple[str, ...] = ()
    """Settings that no file says: of ``planner``, ``steps``, ``budget``, ``bounds``, ``estimator``, ``seed``."""
    USUAL_ESTIMATOR: ClassVar[Literal["dr_grpo"]] = "dr_grpo"

    @property
    def budget(self) -> int:
        """Rollouts of a step."""
        return self.spent

    @property
    def task(self) -> str:
        """What is trained."""
        return "not recorded (a TRL run from Python)"

    @model_validator(mode="after")
    def _bounds_admit_the_mean(self) -> PythonRun:
        return self  # they did when the run was made


def read_python_run(path: Path) -> Run:
    """The run in a folder of TRL's. RunDirectoryError as :func:`~allotment.run_logs.trl_folder.read_trl_folder`."""
    folder = read_trl_folder(path)
    rows = {0: {"step": 0, "rollouts_total": 0, "tokens_total": 0}, **{row["step"]: row for row in step_rows(folder)}}
    rewards, notes = _evaluations(folder)
    for step, reward in rewards.items():
        if step in rows:
            rows[step]["held_out_success"] = reward
    for step, success in _pool_success(folder, [step for step in rewards if 0 < step <= folder.last_step]).items():
        rows[step]["pool_success"] = success
    config = _config(folder)
    return Run(
        path,
        config,
        sorted(rows.values(), key=lambda row: int(row["step"])),
        folder.rollouts,
        step_seconds(folder.checkpoint),
        cut_logs=("rollouts.jsonl",) if folder.is_cut else (),
        from_python=FromPython(
            ended=folder.steps is not None and folder.last_step >= folder.steps,
            notes=tuple(_notes(folder, config) + notes),
            each_step_logged=logs_each_step(folder),
        ),
    )


def _config(folder: TRLFolder) -> PythonRun:
    groups = list(rows_by_step(folder.rollouts).values())
    prompts, spent = (
        Counter(of(group) for group in groups).most_common(1)[0][0] if groups else 1
        for of in (len, lambda group: sum(int(row["n"]) for row in group))
    )
    known: dict[str, Any] = {"steps": folder.steps, "planner": folder.planner}
    settings = {} if folder.checkpoint is None else (folder.checkpoint.planner or {}).get("settings", {})
    if settings:
        spent = settings["budget"]
        known |= {"bounds": (settings["lower"], settings["upper"]), "estimator": settings["estimator"]}
        known |= {"seed": settings["seed"], "budget": spent}
    rates = [float(row["learning_rate"]) for row in _history(folder) if row.get("learning_rate")]
    known["learning_rate"] = max(rates, default=None)
    names = ("planner", "steps", "budget", "bounds", "estimator", "seed", "learning_rate")
    missing = tuple(name for name in names if known.get(name) is None)
    given = {name: value for name, value in known.items() if value is not None and name != "budget"}
    unknown = f"{folder.path.resolve().name} (planner not recorded)"
    return PythonRun(
        **{"planner": unknown, "steps": max(folder.last_step, 1), "estimator": PythonRun.USUAL_ESTIMATOR, **given},
        prompts_per_step=prompts,
        rollouts_per_prompt=max(1, round(spent / prompts)),
        spent=spent,
        is_constant=len(set(rates)) < 2,
        not_recorded=missing,
    )


def _history(folder: TRLFolder) -> tuple[Row, ...]:
    return () if folder.checkpoint is None else folder.checkpoint.history


def _evaluations(folder: TRLFolder) -> tuple[dict[int, float], list[str]]:
    """Mean reward by step, of the first data set that was evaluated; and what a reader must know of it."""
    found = evaluated_rewards(folder.checkpoint)
    if not found:
        return {}, [f"{folder.path}: {NO_EVALUATION}"]
    name, rewards = next(iter(found.items()))
    notes = []
    if len(found) > 1:
        others = ", ".join(other or "the unnamed one" for other in found if other != name)
        notes.append(f"{folder.path}: held-out prompts are those of the evaluation {name!r}; not shown: {others}.")
    if not all(0 <= reward <= 1 for reward in rewards.values()):
        return {}, [f"{folder.path}: rewards of the evaluation leave 0 to 1, so that they are no success; left out."]
    return dict(sorted(rewards.items())), notes


def _pool_success(folder: TRLFolder, points: list[int]) -> dict[int, float]:
    """Success of the training rollouts since the point before, each prompt and step alike, by the step of the point."""
    last = folder.last_step
    points = points or sorted({max(1, round(last * part / POINTS)) for part in range(1, POINTS + 1)} if last else ())
    groups, found, before = rows_by_step(folder.rollouts), {}, 0
    for point in points:
        shares = [row["successes"] / row["n"] for step in range(before + 1, point + 1) for row in groups.get(step, ())]
        if shares and point in groups:
            found[point], before = fmean(shares), point
    return found


def _notes(folder: TRLFolder, config: PythonRun) -> list[str]:
    notes = []
    if config.not_recorded:
        names = ", ".join(config.not_recorded).replace("_", " ")
        why = "no checkpoint says" if folder.checkpoint is None else f"{folder.checkpoint.path.name} does not say"
        usual = "; variances and weights are those of dr_grpo" if "estimator" in config.not_recorded else ""
        notes.append(f"{folder.path}: not recorded: {names} ({why}){usual}.")
    if folder.damaged:
        files = ", ".join(str(file.relative_to(folder.path)) for file in folder.damaged)
        notes.append(f"{folder.path}: damaged and left out: {files}, or the planner's file beside it.")
    if folder.checkpoint is not None and folder.checkpoint.told < folder.last_step:
        told = folder.checkpoint.told
        notes.append(
            f"{folder.path}: what TRL logged after step {told} is known at the next checkpoint; rollouts are known "
            f"up to step {folder.last_step}."
        )
    return notes
