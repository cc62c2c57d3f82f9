"""The supervised warm start that made the shipped policies: ``python -m shipped.warm_start OUT_DIR [NAME ...]``.

First the ``short`` regime from scratch, then the ``scratchpad`` regime from there; so for each size of policy, or for
those named. Seeds are fixed; on one thread of the same machine and torch version the result is the same to the last
bit. The policy of normal size takes about five minutes on one core, the small one about half of that.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch.nn.functional import cross_entropy

from allotment.lab.checkpoint import KIND, SizeName, parameters_state, shipped_policy
from allotment.lab.generation import Lab
from allotment.lab.policy import Policy, PolicySize
from allotment.lab.regime import REGIMES, SCRATCHPAD_ALPHABET, Regime
from allotment.lab.tokenizer import Tokenizer
from allotment.state import encode_json, save_state
from allotment.tasks.mixture import Problem, load_mixture


@dataclass(frozen=True)
class Stage:
    """One run of supervised training."""

    regime: Regime
    steps: int
    learning_rate: float
    batch: int = 64
    warm_up: int = 100
    seed: int = 0


STAGES = (Stage(REGIMES["short"], 8000, 4e-3), Stage(REGIMES["scratchpad"], 5000, 2e-3))
SIZES: dict[SizeName, PolicySize] = {"normal": PolicySize(0), "small": PolicySize(0, width=32, layers=1)}
"""Shapes of the shipped policies; the vocabulary follows from the problems."""


def new_lab(problems: Sequence[Problem], regime: Regime, seed: int = 0, size: SizeName = "normal") -> Lab:
    """An untrained lab whose vocabulary comes from ``problems``."""
    answers = "".join(p.answer for p in problems)
    tokenizer = Tokenizer.train([p.question for p in problems], answers + SCRATCHPAD_ALPHABET + "=")
    torch.manual_seed(seed)
    return Lab(Policy(replace(SIZES[size], vocabulary=len(tokenizer))), tokenizer, regime)


def save_lab(path: Path, lab: Lab) -> None:
    """Write policy, vocabulary and regime to one file."""
    size = lab.policy.size
    state = {
        "regime": lab.regime.name,
        "vocabulary": encode_json(list(lab.tokenizer.vocabulary)),
        "size": {"width": size.width, "layers": size.layers, "heads": size.heads},
        "parameters": parameters_state(lab.policy),
    }
    save_state(path, state, kind=KIND)


def train_stage(lab: Lab, problems: Sequence[Problem], stage: Stage) -> float:
    """Train ``lab.policy`` in place to give the right answers.

    Levels are drawn in proportion to the square root of their number of problems. In proportion to the number itself,
    small levels are hardly seen; equally often, they are learnt by heart and their gradients become very large.

    Returns:
        The mean loss of the last 100 steps, in nats a token.
    """
    random = np.random.default_rng(stage.seed)
    sizes = Counter(p.level for p in problems)
    weights = np.array([sizes[p.level] ** -0.5 for p in problems])
    weights /= weights.sum()
    optimizer = torch.optim.AdamW(lab.policy.parameters(), lr=stage.learning_rate)
    losses: list[float] = []
    for step in track(range(stage.steps), description=f"warm start, {stage.regime.name}"):
        part = [problems[i] for i in random.choice(len(problems), size=stage.batch, p=weights)]
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * _schedule(step, stage)
        optimizer.zero_grad()
        loss = _answer_loss(lab, part, [stage.regime.target(p.answer, random) for p in part])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(lab.policy.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses[-100:]))


def _schedule(step: int, stage: Stage) -> float:
    """Linear warm-up, then linear decay to a tenth."""
    return min((step + 1) / stage.warm_up, 1 - 0.9 * step / stage.steps)


def _answer_loss(lab: Lab, problems: Sequence[Problem], targets: Sequence[str]) -> torch.Tensor:
    rows = [lab.tokenizer.encode_answer(target) for target in targets]
    length = max(map(len, rows))
    tokens_NT = torch.tensor([row + [lab.tokenizer.pad] * (length - len(row)) for row in rows])
    logits = lab.completion_logits(lab.encode(problems), tokens_NT)
    return cross_entropy(logits.flatten(0, 1), tokens_NT.flatten(), ignore_index=lab.tokenizer.pad)


def main(out: Path, sizes: Sequence[SizeName] = tuple(SIZES)) -> None:
    """Train all stages and write one policy file per size and regime."""
    torch.set_num_threads(1)
    mixture = load_mixture()
    for size in sizes:
        lab = new_lab(mixture.warm_start, STAGES[0].regime, size=size)
        for stage in STAGES:
            lab = Lab(lab.policy, lab.tokenizer, stage.regime)
            loss = train_stage(lab, mixture.warm_start, stage)
            save_lab(out / shipped_policy(stage.regime.name, size).name, lab)
            pool = lab.success_probability(mixture.pool).mean()
            held_out = lab.success_probability(mixture.held_out).mean()
            print(f"{size}, {stage.regime.name}: loss {loss:.3f}, success pool {pool:.3f}, held out {held_out:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [size for size in SIZES if size in sys.argv[2:] or len(sys.argv) == 2])
