"""The numbers behind each figure, as a table for the page and for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from allotment.audit.figures import BINS
from allotment.report.course import Ratio, Window
from allotment.report.data import Arm
from allotment.report.predictions import Bin
from allotment.report.summary import Axis, Measure, curve
from allotment.types import FloatArray

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


def heat_table(counts_BW: FloatArray, over: Sequence[Window]) -> Table:
    """A row per window of steps, a column per tenth of the prediction."""
    columns = ("steps", *(f"{b / BINS:g} to {(b + 1) / BINS:g}" for b in range(BINS)))
    rows: list[tuple[Cell, ...]] = [
        (f"{w.first} to {w.last}", *(None if n != n else float(n) for n in column))
        for w, column in zip(over, counts_BW.T, strict=True)
    ]
    return Table(columns, rows)


def lorenz_table(arms: Sequence[Arm], curves: Sequence[tuple[FloatArray, FloatArray]]) -> Table:
    """The Lorenz curves of all arms."""
    return Table(
        ("planner", "share of prompts", "share of rollouts"),
        [
            (arm.label, float(x), float(y))
            for arm, pair in zip(arms, curves, strict=True)
            for x, y in zip(*pair, strict=True)
        ],
    )


def history_table(arms: Sequence[Arm], histories: Sequence[Sequence[tuple[Window, int, float, float, float]]]) -> Table:
    """How predictions fared, by arm and window of steps."""
    columns = (
        "planner",
        "first step",
        "last step",
        "prompts",
        "mean absolute error",
        "by chance",
        "observed − predicted",
    )
    return Table(
        columns,
        [
            (arm.label, window.first, window.last, *rest)
            for arm, history in zip(arms, histories, strict=True)
            for window, *rest in history
        ],
    )


def variance_table(ratios: Sequence[Ratio]) -> Table:
    """Variance relative to equal counts, by window of steps."""
    return Table(
        ("first step", "last step", "predicted", "realised", "standard error"),
        [(r.window.first, r.window.last, r.predicted, r.realised, r.standard_error) for r in ratios],
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
