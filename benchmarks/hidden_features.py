"""Does the policy itself know which prompts it will fail? Its hidden state as a feature of the predictor, in the lab.

    python benchmarks/hidden_features.py [--regime scratchpad] [--seeds 3]

Four visits of 8 rollouts of every prompt of the pool at the fixed base policy, 16 prompts a step in an order that is
new at each visit; every predictor replays them as ``allotment audit`` does. "Hidden" is the last hidden state at the
answer token [64], before anything is generated: it is there in the forward pass on the prompt that is made anyway.
A cell is the mean over seeds of variance ratio / log loss / MAE.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np
import torch

from allotment.audit import Figures, Log, replay
from allotment.lab.checkpoint import load_lab
from allotment.lab.generation import Lab, seeded_generator
from allotment.prediction import DiscountedCounts, HierarchicalPredictor, Predictor, Ridge, embed, text_features
from allotment.tasks.mixture import Problem, load_mixture
from allotment.types import FloatArray

VISITS, ROLLOUTS, TOGETHER = 4, 8, 16


def simulated_log(lab: Lab, pool: list[Problem], seed: int) -> Log:
    """The visits, with the steps they belong to."""
    prompt, successes = [], []
    for visit in range(VISITS):
        order = np.random.default_rng([seed, visit]).permutation(len(pool))
        for first in range(0, len(pool), TOGETHER):
            rows = order[first : first + TOGETHER]
            problems = [pool[i] for i in rows]
            rollouts = lab.rollouts(problems, np.full(len(rows), ROLLOUTS), seeded_generator(seed, 7, visit, first))
            prompt.append(rows)
            successes.append(rollouts.rewards_N.reshape(len(rows), -1).sum(1).astype(np.int64))
    visits = np.repeat(np.arange(1, VISITS + 1), len(pool))
    steps = np.concatenate([np.full(len(rows), step) for step, rows in enumerate(prompt)])
    trials = np.full(len(visits), ROLLOUTS)
    return Log(tuple(p.id for p in pool), np.concatenate(prompt), visits, np.concatenate(successes), trials, steps)


@torch.no_grad()
def hidden_states(lab: Lab, pool: list[Problem]) -> FloatArray:
    """[M, 64] last hidden state at the answer token."""
    answer_M1 = torch.full((len(pool), 1), lab.tokenizer.answer)
    return np.asarray(lab.policy.hidden(lab.encode(pool), answer_M1)[0][:, 0].double().numpy())


def contestants(ids: tuple[str, ...], x: FloatArray, text: FloatArray, hidden: FloatArray) -> dict[str, Predictor]:
    """New predictors, by what they know of a prompt."""
    makers: dict[str, Callable[[], Predictor]] = {
        "discounted counts": DiscountedCounts,
        "ridge on embeddings": lambda: Ridge(x, ids=ids),
        "default, nothing": HierarchicalPredictor,
        "default, embeddings": lambda: HierarchicalPredictor(x, ids=ids),
        "default, embeddings + text": lambda: HierarchicalPredictor(x, ids=ids, features=text),
        "default, hidden": lambda: HierarchicalPredictor(hidden, ids=ids),
        "default, embeddings + hidden": lambda: HierarchicalPredictor(x, ids=ids, features=hidden),
        "default, embeddings + text + hidden": lambda: HierarchicalPredictor(
            x, ids=ids, features=np.hstack([text / text.std(0).clip(1e-9), hidden / hidden.std(0)])
        ),
    }
    return {name: make() for name, make in makers.items()}


def cell(figures: list[Figures]) -> str:
    """Mean over seeds."""
    means = np.mean([(f.variance_ratio, f.log_loss, f.mae) for f in figures], axis=0)
    return "/".join(f"{value:.3f}" for value in means)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Hidden states as features of the predictor.")
    parser.add_argument("--regime", choices=("scratchpad", "short"), default="scratchpad")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of rollouts and order")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lab, pool = load_lab(options.regime), list(load_mixture().pool)
    questions = [p.question for p in pool]
    known = embed(questions).astype(np.float64), text_features(questions), hidden_states(lab, pool)
    results: dict[str, list[list[Figures]]] = {}
    for seed in range(options.seeds):
        log = simulated_log(lab, pool, seed)
        for name, predictor in contestants(tuple(p.id for p in pool), *known).items():
            played = replay(log, predictor)
            by_visit = [played.figures(visit, visit) for visit in range(1, VISITS + 1)]
            results.setdefault(name, []).append([figures for figures in by_visit if figures is not None])
    print("| predictor | " + " | ".join(f"visit {v}" for v in range(1, VISITS + 1)) + " |")
    print("| --- " * (VISITS + 1) + "|")
    for name, runs in results.items():
        print(f"| {name} | " + " | ".join(cell(list(visit)) for visit in zip(*runs, strict=True)) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
