"""``allotment gradient-variance``: what each planner does to the noise of the gradient."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from allotment.errors import needs_extra
from allotment.lab.config import GradientVarianceConfig


@dataclass(frozen=True)
class GradientVariance:
    """Measure the policy gradient's variance at the lab's fixed policy: split of fixed batches, and whole steps.

    `ratio`: of fixed batches, relative to the uniform split at the same budget; none for planners that choose prompts
    or steps of another shape. `between` (which prompts a step has), `within` (their rollouts and baselines) and
    `total`: of whole steps, relative to the total of uniform with 16 prompts and 8 rollouts each.
    """

    settings: Annotated[GradientVarianceConfig, tyro.conf.arg(name="")] = field(default_factory=GradientVarianceConfig)
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        """Print the figures of every planner with their standard errors."""
        with needs_extra("train"):
            from allotment.lab.gradient_variance import measure

        config = self.settings
        console = Console(file=sys.stderr)
        with console.status("measuring") as status:
            found = measure(config, lambda text: status.update(text) if console.is_terminal else console.print(text))
        if self.json:
            planners = {name: asdict(figures) for name, figures in found.items()}
            print(json.dumps({"regime": config.regime, "history": config.history, "planners": planners}))
            return
        reference = f"whole steps relative to uniform, {config.prompts_per_step} x {config.rollouts_per_prompt}"
        title = f"{config.regime}, {config.history} past rollouts a prompt; {reference}"
        names = ("ratio", "se", "between", "within", "total", "total_se")
        columns = ("planner", "fixed batch / uniform", "se", "between", "within", "total", "se of total")
        table = Table(*columns, title=title)
        for name, figures in found.items():
            numbers = (getattr(figures, column) for column in names)
            table.add_row(name, *("" if number is None else f"{number:.3f}" for number in numbers))
        Console().print(table)
