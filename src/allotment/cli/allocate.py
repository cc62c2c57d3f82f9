"""``allotment allocate``: split a budget over given success probabilities."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from allotment.allocation import Method, allocate
from allotment.config import EstimatorName
from allotment.errors import InvalidInputError


@dataclass(frozen=True)
class Allocate:
    """Split a rollout budget over prompts whose success probabilities are given; prints one JSON object."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE|-")]
    """JSON array of success probabilities, or - for standard input."""
    budget: Annotated[int, tyro.conf.arg(metavar="C")]
    """Rollouts to spend, exactly."""
    bounds: Annotated[tuple[int, int], tyro.conf.arg(metavar="L U")] = (3, 32)
    """Least and most rollouts of a prompt."""
    estimator: EstimatorName = "rloo"
    """Gradient estimator whose variance is minimised."""
    method: Method = "exact"
    """exact: the integer optimum. relaxed: the paper's theorems and rounding. The others are baselines."""

    def run(self) -> None:
        """Print counts, objective, the same under uniform, and the multiplier interval (null: unbounded)."""
        allocation = allocate(
            self._probabilities(),
            self.budget,
            lower=self.bounds[0],
            upper=self.bounds[1],
            estimator=self.estimator,
            method=self.method,
        )
        result = {
            "counts": allocation.counts.tolist(),
            "budget": allocation.budget,
            "objective": allocation.objective,
            "uniform_objective": allocation.uniform_objective,
            "multiplier": [bound if math.isfinite(bound) else None for bound in allocation.multiplier],
        }
        print(json.dumps(result))

    def _probabilities(self) -> list[float]:
        try:
            values = json.loads(sys.stdin.read() if self.file == "-" else Path(self.file).read_text())
        except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InvalidInputError(
                "cannot read the success probabilities",
                got=f"{self.file}: {error}",
                allowed="a JSON array of numbers in [0, 1]",
                fix="write for example [0.1, 0.5, 0.9] to the file, or pass - and pipe it in",
            ) from error
        if not isinstance(values, list) or not all(type(v) in (int, float) for v in values):
            raise InvalidInputError(
                "the success probabilities are not a JSON array of numbers",
                got=repr(values)[:80],
                allowed="a JSON array of numbers in [0, 1]",
                fix="write for example [0.1, 0.5, 0.9]",
            )
        return values
