"""What a reward read from hidden states knows, and what training on it does.

    python benchmarks/objectives_representation.py auc [--regime scratchpad] [--seeds 0 1 2 3]
    python benchmarks/objectives_representation.py train [--regime scratchpad] [--arms verifier-rloo preference ...]

``auc``: probes are fitted to labelled rollouts of prompts of the warm start and score rollouts of held-out and of pool
prompts; the area under the curve over all rollouts, its mean within prompts that have right and wrong ones, and the
share of prompts with judged successes and failures. Beside them the policy's own log-probability as a score; "mixed" is
there the verifier's. ``train``: paired runs (equal seeds: the same prompts in the same order), 16 prompts x 8 rollouts
a step, one learning rate; success on pool and held-out prompts is exact (easy and hard: of the pool, from 0.5 and below
it at the start), what the learnt reward says is of 8 rollouts of each held-out prompt. ``sharpening`` is the control:
the starting policy's own log-probability as the score, which no label went into.

Every result is a line of ``--out``, from which the tables of markdown are made; runs that are there are not repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from allotment.lab.checkpoint import load_lab
from allotment.lab.config import TrainConfig
from allotment.lab.generation import Lab, Rollouts, seeded_generator
from allotment.lab.representation_reward import (
    Compare,
    Pooling,
    RepresentationReward,
    balanced,
    fitted_probe,
    labelled_rollouts,
)
from allotment.lab.train import Trainer
from allotment.methods.objectives.representation import auc, auc_within
from allotment.tasks.mixture import Problem, load_mixture
from allotment.types import FloatArray

Row = dict[str, Any]
BoolArray = npt.NDArray[np.bool_]
LAYERS = {"first": slice(0, 1), "last": slice(1, 2), "all": slice(0, 2)}
BASELINES = ("log-probability, sum", "log-probability, mean")
PREFERENCE: Row = {"beta": 0.15, "pairs": "extreme", "alpha": 7.5}
CURRENT: Row = {"states": "current"}
PAPER: Row = {"pooling": "last", "compare": "prompt", **CURRENT}
ARMS: dict[str, Row] = {
    "verifier-rloo": {},
    "verifier-preference": {"objective": ("on-policy-dpo",), "objective_settings": {"on-policy-dpo": PREFERENCE}},
    "preference": CURRENT,
    "gradient": {"train": "policy-gradient", **CURRENT},
    "preference-start": {},
    "gradient-start": {"train": "policy-gradient"},
    "preference-co-loss": {"co_loss": True, **CURRENT},
    "preference-paper": PAPER,
    "gradient-paper": {"train": "policy-gradient", **PAPER},
    "preference-vip": {"planner": "vip", **CURRENT},
    "preference-start-vip": {"planner": "vip"},
    "sharpening": {},
}
"""Settings of the representation-based reward, but for the verifier's; and the planner, where it is not uniform."""
PROBES = [(pooling, compare, "all") for pooling in get_args(Pooling) for compare in get_args(Compare)]
PROBES += [(*probe, part) for probe in (("last", "prompt"), ("choice", "both")) for part in ("first", "last")]
MEASURES = ("pool", "easy", "hard", "held_out", "reward", "judged", "verified", "auc", "within", "mixed", "spread")


def drawn(lab: Lab, problems: Sequence[Problem], seed: int) -> Rollouts:
    """8 rollouts of each problem."""
    return lab.rollouts(problems, np.full(len(problems), 8), seeded_generator(seed, 77))


def areas(scores_N: FloatArray, rollouts: Rollouts) -> dict[str, float]:
    """Over all rollouts, and within prompts."""
    right_N, groups_N = rollouts.rewards_N, rollouts.group_N.numpy()
    return {"all": auc(scores_N, right_N), "within": auc_within(scores_N, right_N, groups_N)}


def mixed(successes_N: npt.ArrayLike) -> float:
    """Share of prompts whose 8 rollouts have successes and failures: of the others a planner learns no difference."""
    successes_Q8 = np.asarray(successes_N, dtype=bool).reshape(-1, 8)
    return float((successes_Q8.any(1) & ~successes_Q8.all(1)).mean())


@torch.no_grad()
def auc_rows(options: argparse.Namespace, seed: int) -> Iterator[Row]:
    """A row for each score and set of prompts."""
    lab, mixture = load_lab(options.regime), load_mixture()
    sets = {"held out": mixture.held_out, "pool": mixture.pool}
    rollouts = {name: drawn(lab, problems, seed) for name, problems in sets.items()}
    for name, those in rollouts.items():
        sums_N = those.log_probs_NT.sum(1).double().numpy()
        for score, scores_N in zip(BASELINES, (sums_N, sums_N / those.mask_NT.sum(1).numpy()), strict=True):
            yield {"score": score, "set": name, "mixed": mixed(those.rewards_N), **areas(scores_N, those)}
    problems = balanced(mixture.warm_start, options.prompts, seed)
    labelled = {pooling: labelled_rollouts(lab, problems, 8, pooling, seed) for pooling in get_args(Pooling)}
    for pooling, compare, layers in PROBES:
        part = LAYERS[layers]
        sliced = replace(labelled[pooling], states_NLH=labelled[pooling].states_NLH[:, part])
        with torch.enable_grad():
            probe, shift = fitted_probe(sliced, compare, options.pairs, 50, 1e-3, seed)
        for name, those in rollouts.items():
            scores_N = probe(lab.representations(sets[name], those, pooling)[:, part]).double().numpy()
            score = f"{pooling}, pairs of {compare}, layers {layers}"
            yield {"score": score, "set": name, "mixed": mixed(scores_N > shift), **areas(scores_N, those)}


class LogProbability(RepresentationReward):
    """The starting policy's log-probability of a completion as its score; above 0 as often as rollouts are right."""

    def __init__(self, lab: Lab, problems: Sequence[Problem], seed: int) -> None:
        self.start, self.shift, self.co_loss = deepcopy(lab), 0.0, False
        rollouts = lab.rollouts(problems, np.full(len(problems), 8), seeded_generator(seed, 78))
        self.shift = float(np.quantile(self.scores(problems, rollouts).numpy(), 1 - rollouts.rewards_N.mean()))

    @torch.no_grad()
    def scores(self, problems: Sequence[Problem], rollouts: Rollouts) -> Tensor:
        """[N]"""
        given = (problems, rollouts.group_N, rollouts.tokens_NT, rollouts.mask_NT)
        return self.start.log_probs(*given).sum(1) - self.shift


def trainer(arm: str, options: argparse.Namespace, seed: int) -> Trainer:
    """A new run."""
    settings = {"planner": "uniform", **ARMS[arm]}
    if not arm.startswith("verifier"):
        planner = settings.pop("planner")
        table = {"representation-reward": {"prompts": options.prompts, "fit_pairs": options.pairs, **settings}}
        settings = {"planner": planner, "objective": ("representation-reward",), "objective_settings": table}
    rate, steps = options.learning_rate, options.steps
    made = Trainer(TrainConfig(regime=options.regime, seed=seed, steps=steps, learning_rate=rate, **settings))
    if arm == "sharpening":
        made.judge = LogProbability(made.lab, balanced(made.mixture.warm_start, options.prompts, seed), seed)
    return made


def measures(made: Trainer, seed: int, easy_Q: BoolArray) -> Row:
    """Exact success, and what the learnt reward says of rollouts of the held-out prompts."""
    pool_Q = made.lab.success_probability(made.mixture.pool)
    held_out = made.lab.success_probability(made.mixture.held_out).mean()
    exact = {"pool": pool_Q.mean(), "easy": pool_Q[easy_Q].mean(), "hard": pool_Q[~easy_Q].mean(), "held_out": held_out}
    problems = list(made.mixture.held_out)
    rollouts = drawn(made.lab, problems, seed)
    row = {**exact, "verified": rollouts.rewards_N.mean(), "mixed": mixed(rollouts.rewards_N)}
    if made.judge is None:
        return row
    assert isinstance(made.judge, RepresentationReward)
    scores_N = made.judge.scores(problems, rollouts).double().numpy()
    judged = made.judge.judge(problems, rollouts)
    areas_of = areas(scores_N, rollouts)
    rewards_QN = judged.rewards_N.reshape(len(problems), -1)
    return row | {
        "reward": judged.rewards_N.mean(),
        "judged": judged.successes_N.mean(),
        "auc": areas_of["all"],
        "within": areas_of["within"],
        "mixed": mixed(judged.successes_N),
        "spread": (rewards_QN.max(1) - rewards_QN.min(1)).mean(),
    }


def train_rows(arm: str, options: argparse.Namespace, seed: int) -> Iterator[Row]:
    """A row before the first step and every ``options.every`` steps."""
    made = trainer(arm, options, seed)
    easy_Q = made.lab.success_probability(made.mixture.pool) >= 0.5
    for step in range(options.steps + 1):
        if step:
            made.step(step)
        if step % options.every == 0:
            yield {"arm": arm, "step": step, **measures(made, seed, easy_Q)}


def cell(values: Sequence[float]) -> str:
    """Mean and standard error over seeds."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}" if len(values) > 1 else "-"


def auc_table(rows: Sequence[Row]) -> str:
    """A line for each score."""
    columns = [(where, kind) for where in ("held out", "pool") for kind in ("all", "within", "mixed")]
    lines = ["| score | " + " | ".join(f"{w}, {k}" for w, k in columns) + " |", "|---|" + "--:|" * len(columns)]
    for score in dict.fromkeys(row["score"] for row in rows):
        cells = [cell([r[k] for r in rows if (r["score"], r["set"]) == (score, w)]) for w, k in columns]
        lines.append(f"| {score} | {' | '.join(cells)} |")
    return "\n".join(lines)


def train_table(rows: Sequence[Row]) -> str:
    """A line for each arm and step; then, at the last step, paired differences of success to its start."""
    lines = ["| arm | step | " + " | ".join(MEASURES) + " |", "|---|--:|" + "--:|" * len(MEASURES)]
    for arm, step in dict.fromkeys((row["arm"], row["step"]) for row in rows):
        own = [row for row in rows if (row["arm"], row["step"]) == (arm, step)]
        lines.append(f"| {arm} | {step} | " + " | ".join(cell([r[m] for r in own if m in r]) for m in MEASURES) + " |")
    last = max(row["step"] for row in rows)
    lines += ["", f"| arm | pool, step {last} less 0 | held out, step {last} less 0 |", "|---|--:|--:|"]
    at = {(row["arm"], row["step"], row["seed"]): row for row in rows}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        seeds = [seed for (a, step, seed) in at if a == arm and step == last]
        gains = [[at[arm, last, s][m] - at[arm, 0, s][m] for s in seeds] for m in ("pool", "held_out")]
        lines.append(f"| {arm} | {' | '.join(map(cell, gains))} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Run what is not there yet, print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("auc", "train"))
    parser.add_argument("--regime", choices=("scratchpad", "short"), default="scratchpad")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--prompts", type=int, default=1100)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--every", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--out", type=Path, default=Path("objectives_representation.jsonl"))
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    names = options.arms if options.what == "train" else ["auc"]
    shared = {name: getattr(options, name) for name in ("what", "regime", "prompts", "pairs", "learning_rate", "steps")}
    if options.what == "auc":
        shared |= {"learning_rate": 0.0, "steps": 0}
    found = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    found = [row for row in found if shared.items() <= row.items()]
    done = {(row.get("arm", "auc"), row["seed"]) for row in found}
    for name in names:
        for seed in options.seeds:
            if (name, seed) in done:
                continue
            made = auc_rows(options, seed) if name == "auc" else train_rows(name, options, seed)
            rows = [{**shared, "seed": seed, **row} for row in made]
            found += rows
            with options.out.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    found = [row for row in found if row["seed"] in options.seeds and row.get("arm", "auc") in names]
    print(auc_table(found) if options.what == "auc" else train_table(found))


if __name__ == "__main__":
    main()
