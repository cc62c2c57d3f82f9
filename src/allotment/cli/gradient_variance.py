"""``allotment gradient-variance``: what each planner does to the noise of the gradient."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from allotment.errors import needs_extra
from allotment.lab.config import GradientVarianceConfig


@dataclass(frozen=True)
class GradientVariance:
    """Measure the policy gradient's variance at the lab's fixed policy, relative to uniform at the same budget."""

    settings: Annotated[GradientVarianceConfig, tyro.conf.arg(name="")] = field(default_factory=GradientVarianceConfig)
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        """Print the variance ratio of every planner with its standard error over batches of prompts."""
        with needs_extra("train"):
            from allotment.lab.gradient_variance import measure

        config = self.settings
        console = Console(file=sys.stderr)
        with console.status("measuring") as status:
            ratios = measure(config, lambda text: status.update(text) if console.is_terminal else console.print(text))
        if self.json:
            planners = {name: {"ratio": r.ratio, "se": r.se} for name, r in ratios.items()}
            print(json.dumps({"regime": config.regime, "history": config.history, "planners": planners}))
            return
        title = f"{config.regime}, {config.history} past rollouts a prompt"
        table = Table("planner", "variance / uniform", "standard error", title=title)
        for name, r in ratios.items():
            table.add_row(name, f"{r.ratio:.3f}", f"{r.se:.3f}")
        Console().print(table)
