"""Learning of designs of different shape, each at its own best learning rate: ``python benchmarks/joint_learning.py``.

The best of at least four rates is found on seeds of its own (--choosing), then the arm is reported on other seeds.
Every run is one line in --out, which may be read while it grows; the same command goes on where one was stopped.

    python benchmarks/joint_learning.py --case one-pass --out /tmp/joint/one-pass.jsonl --processes 2
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

from allotment.lab.config import TrainConfig
from allotment.registry import OBJECTIVES, PLANNERS

Row = dict[str, Any]
ONE_EACH: Row = {"prompts_per_step": 128, "rollouts_per_prompt": 1, "bounds": (1, 1), "estimator": "shrinkage"}
ARMS: dict[str, Row] = {
    "uniform": {"planner": "uniform"},
    "joint": {"planner": "joint"},
    "joint-scores": {"planner": "joint-scores"},
    "128x1-mean": {"planner": "uniform", "planner_settings": {"predictor": "global-mean"}, **ONE_EACH},
    "128x1-shrinkage": {"planner": "vip", **ONE_EACH},
    "uniform-32x8": {"planner": "uniform", "prompts_per_step": 32},
    "uniform-16x16": {"planner": "uniform", "rollouts_per_prompt": 16},
    "vip": {"planner": "vip"},
    "mopps": {"planner": "mopps"},
    "spo": {"planner": "spo"},
    "uniform-64x2": {"planner": "uniform", "prompts_per_step": 64, "rollouts_per_prompt": 2, "bounds": (2, 32)},
    "vip-64-shrinkage": {"planner": "vip", "prompts_per_step": 64, "rollouts_per_prompt": 2, "estimator": "shrinkage"},
    "dynamic-pruning": {"planner": "dynamic-pruning"},
    "pilot-commit": {"planner": "pilot-commit"},
    "jspo": {"planner": "uniform", "objective": ("jspo",)},
}
"""Settings by arm; uniform first, the others are compared with it. The budget is 128 rollouts a step, or twice that."""
CASES: dict[str, Row] = {
    "one-pass": {"pool": "generated", "steps": 100, "evaluate_every": 20},
    "scratchpad": {"steps": 120, "evaluate_every": 40},
    "short": {"regime": "short", "steps": 120, "evaluate_every": 40},
    "words": {"regime": "pronunciation", "steps": 60, "evaluate_every": 20},
    "words-one-pass": {"regime": "pronunciation", "pool": "generated", "steps": 60, "evaluate_every": 20},
}
STEP_DOWN, STEP_UP = 0.5, 2.0


class Job(NamedTuple):
    """One run."""

    arm: str
    rate: float
    seed: int


@dataclass(frozen=True)
class Options:
    """Which runs are made."""

    out: Path
    """Lines of runs are added here."""
    case: Literal["one-pass", "scratchpad", "short", "words", "words-one-pass"] = "one-pass"
    arms: tuple[str, ...] = tuple(ARMS)
    """In this order; those whose planner or objective is not there are left out."""
    rates: tuple[float, ...] = (5e-5, 1e-4, 2e-4, 4e-4)
    """Learning rates that are tried; further ones where the best is the first or the last."""
    choosing: tuple[int, ...] = (100, 101)
    """Seeds on which an arm's rate is chosen."""
    seeds: tuple[int, ...] = tuple(range(8))
    """Seeds that are reported."""
    at: tuple[str, ...] = ()
    """Further cells that are reported on the same seeds, ARM@RATE."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    processes: int = 1
    """Runs at a time."""
    dry_run: bool = False
    """Print the table of what is there."""

    @property
    def measure(self) -> str:
        """What the rate is chosen by."""
        return "held_out" if self.case.endswith("one-pass") else "pool"


def main() -> None:
    """Make the runs that are missing, then print the table."""
    options = tyro.cli(Options)
    rows = {} if not options.out.exists() else read(options)
    if not options.dry_run:
        make(options, rows)
    print(table(options, rows))


def read(options: Options) -> dict[Job, Row]:
    """The runs of the case that are there."""
    lines = [json.loads(line) for line in options.out.read_text().splitlines()]
    of_case = [row for row in lines if (row["case"], row["optimizer"]) == (options.case, options.optimizer)]
    return {Job(row["arm"], row["rate"], row["seed"]): row for row in of_case}


def make(options: Options, rows: dict[Job, Row]) -> None:
    """Make what is missing, so many at a time; the next run is chosen when a process is free."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    running: dict[Future[Row], Job] = {}
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        while True:
            while len(running) < options.processes:
                job = next((j for j in wanted(options, rows) if j not in rows and j not in running.values()), None)
                if job is None:
                    break
                is_drawn = job.seed not in options.choosing
                running[pool.submit(run, options.case, options.optimizer, job, is_drawn)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                rows[job] = future.result()
                with options.out.open("a") as file:
                    file.write(json.dumps(rows[job]) + "\n")


def wanted(options: Options, rows: dict[Job, Row]) -> Iterator[Job]:
    """The runs of all arms as far as is known by now, in order; of an arm whose rate is not chosen the tries alone."""
    for arm in filter(is_there, options.arms):
        tries = [Job(arm, rate, seed) for rate in tried(options, rows, arm) for seed in options.choosing]
        yield from tries
        if all(job in rows for job in tries):
            yield from (Job(arm, best(options, rows, arm), seed) for seed in options.seeds)
    for cell in options.at:
        arm, _, rate = cell.partition("@")
        yield from (Job(arm, float(rate), seed) for seed in options.seeds)


def is_there(arm: str) -> bool:
    """Whether the planner and the objectives of an arm are registered."""
    settings = ARMS[arm]
    return settings["planner"] in PLANNERS and all(name in OBJECTIVES for name in settings.get("objective", ()))


def tried(options: Options, rows: dict[Job, Row], arm: str) -> list[float]:
    """The rates to try: the given ones, and one more as long as the best so far is at an edge."""
    rates = sorted(options.rates)
    while (scores := chosen_by(options, rows, arm, rates)) is not None:
        at = int(np.argmax(scores))
        if 0 < at < len(rates) - 1:
            break
        rates = [round(rates[0] * STEP_DOWN, 12), *rates] if at == 0 else [*rates, round(rates[-1] * STEP_UP, 12)]
    return rates


def best(options: Options, rows: dict[Job, Row], arm: str) -> float:
    """The rate of highest success on the choosing seeds."""
    rates = tried(options, rows, arm)
    scores = chosen_by(options, rows, arm, rates)
    assert scores is not None
    return rates[int(np.argmax(scores))]


def chosen_by(options: Options, rows: dict[Job, Row], arm: str, rates: Sequence[float]) -> list[float] | None:
    """Mean success at the end of each rate on the choosing seeds; None if a run is missing."""
    jobs = [[Job(arm, rate, seed) for seed in options.choosing] for rate in rates]
    if not all(job in rows for of_rate in jobs for job in of_rate):
        return None
    return [float(np.mean([rows[job]["curve"][-1][options.measure] for job in of_rate])) for of_rate in jobs]


def run(case: str, optimizer: str, job: Job, is_drawn: bool) -> Row:
    """One run: success, rollouts, tokens and seconds of computation without the evaluations; with ``is_drawn`` after
    every few steps, else at both ends.
    """
    from allotment.lab.train import Trainer

    settings = {**CASES[case], **ARMS[job.arm], "learning_rate": job.rate, "seed": job.seed, "optimizer": optimizer}
    config = TrainConfig(**settings)
    trainer, seconds = Trainer(config), 0.0
    curve = [point(trainer, 0, seconds)]
    for step in range(1, config.steps + 1):
        started = time.process_time()
        trainer.step(step)
        seconds += time.process_time() - started
        if step == config.steps or (is_drawn and step % config.evaluate_every == 0):
            curve.append(point(trainer, step, seconds))
    return {"case": case, "optimizer": optimizer, **job._asdict(), "curve": curve}


def point(trainer: Any, step: int, seconds: float) -> Row:
    """Success on prompts never trained on and, where prompts come back, on the pool; and what it took."""
    lab, mixture = trainer.lab, trainer.mixture
    sets = {"held_out": mixture.held_out, **({} if mixture.measured else {"pool": mixture.pool})}
    success = {name: round(float(lab.success_probability(own).mean()), 6) for name, own in sets.items()}
    spent = {"rollouts": trainer.rollouts_total, "tokens": trainer.tokens_total, "seconds": round(seconds, 2)}
    return {"step": step, **success, **spent}


def table(options: Options, rows: dict[Job, Row]) -> str:
    """Markdown: success at the end on the reported seeds, differences to uniform at its own best rate."""
    names = ["held_out"] if options.case.endswith("one-pass") else ["pool", "held_out"]
    reference: dict[int, Row] = {}
    lines = [_row("arm", "rate", "n", *(x for n in names for x in (n.replace("_", " "), "to uniform")), *SPENT)]
    lines.append("|" + "---|" * lines[0].count(" | ") + "---|")
    for arm, rate in cells(options, rows):
        own = {seed: rows[job] for seed in options.seeds if (job := Job(arm, rate, seed)) in rows}
        reference = reference or own
        lines.append(_row(arm, f"{rate:g}", len(own), *figures(own, reference, names)))
    lines += ["", "Success on the choosing seeds, by rate:", ""]
    for arm in options.arms:
        rates = sorted({job.rate for job in rows if job.arm == arm and job.seed in options.choosing})
        shown = [(rate, chosen_by(options, rows, arm, [rate])) for rate in rates]
        lines.append(f"- {arm}: " + ", ".join(f"{rate:g} {s[0]:.4f}" for rate, s in shown if s is not None))
    return "\n".join(lines)


SPENT = ("to uniform's end", "rollouts", "tokens", "seconds")


def cells(options: Options, rows: dict[Job, Row]) -> Iterator[tuple[str, float]]:
    """Arms at the rate that was chosen, and further cells, that have runs."""
    found = []
    for arm in filter(is_there, options.arms):
        if chosen_by(options, rows, arm, tried(options, rows, arm)) is not None:
            found.append((arm, best(options, rows, arm)))
    found += [(cell.partition("@")[0], float(cell.partition("@")[2])) for cell in options.at]
    return (cell for cell in found if any((job.arm, job.rate) == cell and job.seed in options.seeds for job in rows))


def figures(own: dict[int, Row], reference: dict[int, Row], names: Sequence[str]) -> Iterator[str]:
    """The cells of a row: success and difference by set, share of uniform's rollouts to its end, and what it took."""
    pairs = [(own[seed]["curve"], reference[seed]["curve"]) for seed in own if seed in reference]
    for name in names:
        yield mean_se([row["curve"][-1][name] for row in own.values()])
        yield "" if own is reference else mean_se([a[-1][name] - b[-1][name] for a, b in pairs], sign=True)
    yield "" if own is reference or not pairs else f"{reached(pairs, names[0]):.2f}"
    for name in SPENT[1:]:
        yield f"{np.mean([row['curve'][-1][name] for row in own.values()]):,.0f}"


def reached(pairs: Sequence[tuple[list[Row], list[Row]]], name: str) -> float:
    """Share of uniform's rollouts after which the mean curve is at uniform's mean success at the end."""
    success_E, target = (np.mean([[p[name] for p in c] for c in curves], 0) for curves in zip(*pairs, strict=True))
    rollouts_E = np.mean([[p["rollouts"] for p in curve] for curve, _ in pairs], 0)
    above = np.flatnonzero(success_E >= target[-1])
    if not len(above):
        return float("inf")
    here = slice(max(above[0] - 1, 0), above[0] + 1)
    return float(np.interp(target[-1], success_E[here], rollouts_E[here]) / pairs[0][1][-1]["rollouts"])


def mean_se(values: Sequence[float], *, sign: bool = False) -> str:
    """``mean (standard error)``."""
    if not values:
        return ""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{np.mean(values):{'+' if sign else ''}.4f} ({error:.4f})"


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
