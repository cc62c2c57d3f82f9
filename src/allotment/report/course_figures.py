"""The figures over the course of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from allotment.audit.figures import BINS
from allotment.report.course import Ratio, Window
from allotment.report.data import Arm
from allotment.report.figures import TO_ZERO, arm_line, dashed, diagonal, finish, mark
from allotment.report.style import INK, LITTLE, MUCH, Look
from allotment.types import FloatArray

History = tuple[Window, int, float, float, float]
THIN = 1.2
"""Width of the lines to compare with."""


def heat_map(counts_BW: FloatArray, over: Sequence[Window]) -> str:
    """Mean rollouts of a prompt (colour) by window of steps (x) and tenth of the prediction (y)."""
    figure = go.Figure()
    figure.add_heatmap(
        x=[w.middle for w in over],
        y=[(b + 0.5) / BINS for b in range(BINS)],
        z=[[None if np.isnan(n) else round(float(n), 2) for n in row] for row in counts_BW],
        customdata=[[f"{w.first} to {w.last}" for w in over]] * BINS,
        colorscale=[[0, LITTLE], [1, MUCH]],
        xgap=1,
        ygap=1,
        hoverongaps=False,
        colorbar={"title": {"text": "rollouts", "side": "right"}, "thickness": 10, "outlinewidth": 0, "xpad": 6},
        hovertemplate="steps %{customdata}<br>predicted about %{y:.2f}<br>%{z:.1f} rollouts<extra></extra>",
    )
    bare = {"showgrid": False}
    return finish(figure, "step", "predicted success p", x=bare, y={**bare, "range": [0, 1]})


def lorenz_figure(arms: Sequence[Arm], looks: Sequence[Look], curves: Sequence[tuple[FloatArray, FloatArray]]) -> str:
    """Share of rollouts against share of prompts, a line per arm; an empty curve draws none."""
    figure = go.Figure()
    diagonal(figure, width=THIN)
    for number, (arm, look, (x, y)) in enumerate(zip(arms, looks, curves, strict=True)):
        hover = "%{x:.0%} of prompts: %{y:.0%} of rollouts"
        figure.add_trace(arm_line(number, arm, look, x.round(4), y.round(4), hover, "lines"))
    shares = {"range": [0, 1.01], "tickformat": ".0%"}
    return finish(figure, "share of prompts, fewest first", "share of rollouts", x=shares, y=shares)


def history_figure(
    arms: Sequence[Arm], looks: Sequence[Look], histories: Sequence[Sequence[History]], *, bias: bool
) -> str:
    """By windows of steps: observed minus predicted success, or the mean absolute error beyond chance."""
    figure = go.Figure()
    for number, (arm, look, history) in enumerate(zip(arms, looks, histories, strict=True)):
        x = [found[0].middle for found in history]
        y = [found[4] if bias else found[2] - found[3] for found in history]
        figure.add_trace(arm_line(number, arm, look, x, np.round(y, 5), "about step %{x:.0f}: %{y:+.3f}"))
    figure.add_hline(y=0, line=dashed(INK, THIN))
    return finish(figure, "step", "observed − predicted" if bias else "error beyond chance", x=TO_ZERO)


def variance_figure(ratios: Sequence[Ratio], look: Look) -> str:
    """Predicted (dashed) and realised (points with one standard error) variance against uniform's."""
    figure = go.Figure()
    planned = [r for r in ratios if r.predicted is not None]
    figure.add_scatter(
        x=[r.window.middle for r in planned],
        y=[r.predicted for r in planned],
        mode="lines",
        line=dashed(look.colour, 2),
        hovertemplate="predicted about step %{x:.0f}: %{y:.3f}<extra></extra>",
    )
    came = [r for r in ratios if r.realised is not None]
    figure.add_scatter(
        x=[r.window.middle for r in came],
        y=[r.realised for r in came],
        error_y={"array": [r.standard_error for r in came], "thickness": 1.2, "width": 3},
        mode="markers",
        marker={"color": look.colour, "symbol": look.symbol, "size": 8},
        hovertemplate="realised about step %{x:.0f}: %{y:.3f}<extra></extra>",
    )
    mark(figure, 1)
    return finish(figure, "step", "variance / that of equal counts", x=TO_ZERO)
