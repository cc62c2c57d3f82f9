"""The numbers behind each figure, as a table for the page and for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from allotment.report.data import Arm
from allotment.report.predictions import Bin
from allotment.report.summary import Axis, Measure, curve

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Columns with their names; None where there is no number."""

    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]

    def to_json(self) -> dict[str, Any]:
        """``columns`` and ``rows``, numbers to six significant digits."""
        return {"columns": list(self.columns), "rows": [[_short(cell) for cell in row] for row in self.rows]}


def learning_table(arms: Sequence[Arm], axis: Axis, measure: Measure) -> Table:
    """The mean curves of all arms."""
    rows: list[tuple[Cell, ...]] = []
    for arm in arms:
        found = curve(arm, axis, measure)
        for i, step in enumerate(found.step):
            error = None if found.standard_error is None else float(found.standard_error[i])
            rows.append((arm.label, step, float(found.x[i]), float(found.mean[i]), error, len(arm.counted)))
    return Table(("planner", "step", axis, measure, "standard error", "runs"), rows)


def bins_table(found: Sequence[Bin]) -> Table:
    """Tenths of the predicted success probability."""
    columns = ("from", "to", "prompts", "rollouts", "predicted", "observed", "low 95 %", "high 95 %", "mean n")
    return Table(
        columns,
        [(b.lower, b.upper, b.prompts, b.rollouts, b.predicted, b.observed, *b.interval, b.mean_count) for b in found],
    )


def cell_text(cell: Cell) -> str:
    """A cell as the page shows it: four significant digits, whole numbers in full."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _short(cell: Cell) -> Cell:
    return float(f"{cell:.6g}") if isinstance(cell, float) else cell
