"""Preference learning: fresh comparisons, those of a round, those of the starting policy; labels or rewards; a design.

    python benchmarks/objectives_preference.py tabular [--seeds 0 1 ... 29]
    python benchmarks/objectives_preference.py sweep [--steps 120] [--betas ...] [--learning-rates ...]
    python benchmarks/objectives_preference.py train [--arms rloo dpo ...]

``tabular``: the bandit on which policies, labels and coverage are exact; medians over seeds, beside those of the fact
sheet's simulation. ``train``: paired runs in the lab (equal seeds: the same prompts in the same order), 16 prompts x 8
rollouts a step, the first learning rate; every rollout is verified once, so that equal steps are equal rollouts and
equal labels. Success on pool and held-out prompts is exact. ``sweep``: how beta and the learning rate of ``train`` were
chosen, on another seed.

Every run is a line of ``--out``, from which the tables of markdown are made; runs that are there are not repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from allotment.lab.config import TrainConfig
from allotment.lab.train import Trainer
from theory.preference_bandit import rare_action_bandit
from theory.tabular_preferences import Rounds, distil_rewards, hybrid_dpo, offline_dpo, on_policy_dpo

Row = dict[str, Any]
DPO = "on-policy-dpo"
LONG, SHORT, OFFLINE = 60, 15, 1_000_000
"""Steps of a round; of one that no run outlasts."""
ARMS: dict[str, Row] = {
    "rloo": {},
    "rloo, vip": {"planner": "vip"},
    "dpo": {"objective": {}, "beta": 0.3},
    "dpo, vip": {"objective": {}, "beta": 0.3, "planner": "vip"},
    "dpo, design": {"objective": {"design": 0.5}, "beta": 0.3},
    "dpo, rounds of 15": {"objective": {}, "beta": 0.3, "round": SHORT},
    "dpo, rounds of 60": {"objective": {}, "beta": 1.0, "round": LONG},
    "dpo, rounds of 60, beta of dpo": {"objective": {}, "beta": 0.3, "round": LONG},
    "dpo, rounds of 60, design": {"objective": {"design": 0.5}, "beta": 1.0, "round": LONG},
    "rloo, rounds of 60": {"round": LONG},
    "dpo, offline": {"objective": {}, "beta": 1.0, "round": OFFLINE},
    "dpo, offline, beta of dpo": {"objective": {}, "beta": 0.3, "round": OFFLINE},
    "distillation": {"objective": {"loss_name": "distillation"}, "beta": 0.1},
    "distillation, offline": {"objective": {"loss_name": "distillation"}, "beta": 0.3, "round": OFFLINE},
}
"""beta is each arm's best of the sweep; with a round or a design it is that of ``dpo``."""
SWEPT = ("rloo", "dpo", "dpo, offline", "distillation", "distillation, offline")
MEASURES = ("pool_success", "held_out_success")
LOGGED = ("preference_accuracy", "margin", "coverage_number", "coverage_sample", "pairs")
LEARNERS: dict[str, tuple[Callable[..., Rounds], int]] = {
    "on-policy": (on_policy_dpo, 6),
    "offline, all labels so far": (offline_dpo, 6),
    "hybrid": (hybrid_dpo, 2),
    "distillation, on-policy": (distil_rewards, 2),
}
"""Learner and its rounds."""
SHEET = {
    "on-policy": ([0.448, 0.107, 0.197, 0.172, 0.203, 0.207], [66.6, 2.6, 1.4, 2.1, 1.8, 2.0]),
    "offline, all labels so far": ([0.425, 0.398, 0.377, 0.363, 0.369, 0.332], []),
}
"""Total variation and coverage number of each round."""


def tabular_row(learner: str, seed: int) -> Row:
    """One learner on one bandit; the seed is of the bandit and of the labels."""
    function, rounds = LEARNERS[learner]
    found = function(rare_action_bandit(seed), rounds=rounds, seed=seed)
    return {"distances": found.total_variation_T.tolist(), "coverage": found.coverage_T.tolist()}


def tabular_table(rows: Sequence[Row]) -> str:
    """Medians over seeds for each round; how often fresh labels end below the starting policy's."""
    rounds = max(count for _, count in LEARNERS.values())
    lines = ["| learner | figure | " + " | ".join(f"round {t + 1}" for t in range(rounds)) + " |"]
    lines.append("|---|---|" + "--:|" * rounds)

    def line(learner: str, figure: str, values_T: Iterable[float], digits: int) -> str:
        cells = [f"{value:.{digits}f}" for value in values_T]
        return f"| {learner} | {figure} | {' | '.join(cells + [''] * (rounds - len(cells)))} |"

    for learner in LEARNERS:
        own = [row for row in rows if row["arm"] == learner]
        for k, (key, figure, digits) in enumerate(
            [("distances", "total variation", 3), ("coverage", "coverage number", 1)]
        ):
            lines.append(line(learner, figure, np.median([row[key] for row in own], axis=0), digits))
            if learner in SHEET and SHEET[learner][k]:
                lines.append(line(learner, f"{figure}, fact sheet", SHEET[learner][k], digits))
    ends = {learner: np.array([r["distances"] for r in rows if r["arm"] == learner]) for learner in LEARNERS}
    fresh, offline = ends["on-policy"], ends["offline, all labels so far"]
    shares = ", ".join(f"{share:.2f}" for share in (fresh < offline).mean(0))
    return "\n".join([*lines, "", f"Share of {len(fresh)} seeds where on-policy is nearer, by round: {shares}."])


def config(arm: str, options: argparse.Namespace, seed: int, rate: float, beta: float) -> TrainConfig:
    """The settings of a run."""
    settings: Row = {"planner": ARMS[arm].get("planner", "uniform"), "learning_rate": rate}
    if "objective" in ARMS[arm]:
        settings |= {"objective": (DPO,), "objective_settings": {DPO: {"beta": beta, **ARMS[arm]["objective"]}}}
    if "round" in ARMS[arm]:
        settings |= {"actor": "rounds", "actor_settings": {"steps": ARMS[arm]["round"]}}
    return TrainConfig(regime=options.regime, seed=seed, steps=options.steps, **settings)


def train_row(arm: str, options: argparse.Namespace, seed: int, rate: float, beta: float) -> Row:
    """One run: exact success every ``options.every`` steps, and means of what was logged since."""
    made = Trainer(config(arm, options, seed, rate, beta))
    points, since = [made.evaluate() | {"step": 0}], []
    for step in range(1, options.steps + 1):
        since.append(made.step(step)[0])
        if step % options.every == 0:
            logged = {name: float(np.mean([r[name] for r in since])) for name in LOGGED if name in since[0]}
            totals = {name: since[-1][name] for name in ("rollouts_total", "tokens_total")}
            points.append({"step": step, **made.evaluate(), **totals, **logged})
            since = []
    return {"points": points}


def cell(values: Sequence[float], digits: int = 4) -> str:
    """Mean and standard error over seeds."""
    if not len(values):
        return ""
    error = f" ({np.std(values, ddof=1) / len(values) ** 0.5:.{digits}f})" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{error}"


def train_table(rows: Sequence[Row]) -> str:
    """Means at each point; then paired differences to ``rloo`` and to ``dpo``."""
    of = {(row["arm"], row["seed"]): row for row in rows}
    arms, seeds = (list(dict.fromkeys(row[key] for row in rows)) for key in ("arm", "seed"))
    steps = [point["step"] for point in rows[0]["points"]]

    def values(arm: str, k: int, name: str) -> list[float]:
        return [of[arm, s]["points"][k].get(name, np.nan) for s in seeds if (arm, s) in of]

    columns = (*MEASURES, *LOGGED, "tokens_total")
    lines = ["| arm | rate, beta | step | " + " | ".join(columns) + " |", "|---|---|--:|" + "--:|" * len(columns)]
    for arm, (k, step) in product(arms, enumerate(steps)):
        if k:
            row = next(row for row in rows if row["arm"] == arm)
            cells = [cell(values(arm, k, name), digits_of(name)) for name in columns]
            lines.append(f"| {arm} | {row['rate']:g}, {row['beta']:g} | {step} | {' | '.join(cells)} |")
    for base in [base for base in ("rloo", "dpo", "dpo, offline") if base in arms]:
        lines += ["", f"| arm, less {base} | seeds | " + " | ".join(f"{m}, {s}" for s in steps[1:] for m in MEASURES)]
        lines += ["|---|--:|" + "--:|" * (len(MEASURES) * (len(steps) - 1))]
        for arm in [arm for arm in arms if arm != base]:
            both = [s for s in seeds if (arm, s) in of and (base, s) in of]
            cells = [
                cell([of[arm, s]["points"][k][m] - of[base, s]["points"][k][m] for s in both])
                for k in range(1, len(steps))
                for m in MEASURES
            ]
            lines.append(f"| {arm} | {len(both)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def digits_of(name: str) -> int:
    """Decimals that are shown."""
    return 0 if name in ("tokens_total", "pairs") else 4 if name in MEASURES else 3


def sweep_table(rows: Sequence[Row]) -> str:
    """Pool and held-out success at the last step for each rate and beta."""
    lines = ["| arm | rate | beta | " + " | ".join(MEASURES) + " |", "|---|--:|--:|" + "--:|" * len(MEASURES)]
    for arm, rate, beta in dict.fromkeys((row["arm"], row["rate"], row["beta"]) for row in rows):
        own = [row["points"][-1] for row in rows if (row["arm"], row["rate"], row["beta"]) == (arm, rate, beta)]
        lines.append(f"| {arm} | {rate:g} | {beta:g} | {' | '.join(cell([p[m] for p in own]) for m in MEASURES)} |")
    return "\n".join(lines)


def jobs(options: argparse.Namespace) -> list[Row]:
    """What is to be there, a seed of all arms before the next seed."""
    if options.what == "tabular":
        return [{"arm": learner, "seed": seed} for seed, learner in product(options.seeds, LEARNERS)]
    shared = {"regime": options.regime, "steps": options.steps, "every": options.every}
    if options.what == "train":
        settings = [(arm, options.learning_rates[0], ARMS[arm].get("beta", 0.0)) for arm in options.arms]
    else:
        betas = {arm: options.betas if "objective" in ARMS[arm] else [0.0] for arm in options.arms}
        settings = [(a, rate, beta) for a in options.arms for rate in options.learning_rates for beta in betas[a]]
    return [
        {**shared, "arm": arm, "rate": rate, "beta": beta, "seed": seed}
        for seed in options.seeds
        for arm, rate, beta in settings
    ]


def main(words: Sequence[str] | None = None) -> None:
    """Run what is not there yet, print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tabular", "sweep", "train"))
    parser.add_argument("--regime", choices=("scratchpad", "short"), default="scratchpad")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS))
    parser.add_argument("--betas", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--every", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path("objectives_preference.jsonl"))
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    default_seeds = {"tabular": range(30), "sweep": (100,), "train": range(8)}
    options.seeds = options.seeds or list(default_seeds[options.what])
    options.arms = options.arms or list(SWEPT if options.what == "sweep" else ARMS)
    found = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    rows = []
    for job in jobs(options):
        row = next((row for row in found if job.items() <= row.items()), None)
        if row is None:
            result = (
                tabular_row(job["arm"], job["seed"])
                if options.what == "tabular"
                else train_row(job["arm"], options, job["seed"], job["rate"], job["beta"])
            )
            row = {**job, **result}
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        rows.append(row)
    print({"tabular": tabular_table, "sweep": sweep_table, "train": train_table}[options.what](rows))


if __name__ == "__main__":
    main()
