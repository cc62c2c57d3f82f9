"""The warm start of the ``countdown`` regime's policy: ``python -m shipped.countdown OUT_DIR``.

From scratch, on answers drawn from all right
ones, so that it gives many of them. About five minutes on one core, the same to the last bit on the same machine and
torch version.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from allotment.lab.regime import REGIMES
from allotment.tasks.countdown import solutions_of, warm_start_problems
from allotment.tasks.mixture import Problem
from shipped.warm_start import Stage, new_lab, save_lab, train_stage

STAGE = Stage(REGIMES["countdown"], 3500, 4e-3)
ANSWERS_PER_PROBLEM = 16


def with_drawn_answers(problems: Sequence[Problem], each: int, seed: int = 0) -> list[Problem]:
    """Every problem ``each`` times, with right answers drawn from all it has, with replacement."""
    random = np.random.default_rng(seed)
    return [
        replace(problem, answer=str(answer))
        for problem in problems
        for answer in random.choice(list(solutions_of(problem)), each)
    ]


def main(out: Path) -> None:
    """Train and write the policy."""
    torch.set_num_threads(1)
    problems = warm_start_problems()
    lab = new_lab(problems, STAGE.regime)
    loss = train_stage(lab, with_drawn_answers(problems, ANSWERS_PER_PROBLEM), STAGE)
    save_lab(out / f"{STAGE.regime.name}.safetensors", lab)
    print(f"{STAGE.regime.name}: loss {loss:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
