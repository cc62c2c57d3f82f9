"""The figures over the course of a run."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from allotment.report.course import Ratio, Window
from allotment.report.data import Arm
from allotment.report.figures import finish, to_json
from allotment.report.predictions import BINS
from allotment.report.style import FAINT, INK, LITTLE, MUCH, Look
from allotment.types import FloatArray

History = tuple[Window, int, float, float, float]


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
    finish(figure, "step", "predicted success p", height=320)
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False, range=[0, 1])
    return to_json(figure)


def lorenz_figure(arms: Sequence[Arm], looks: Sequence[Look], curves: Sequence[tuple[FloatArray, FloatArray]]) -> str:
    """Share of rollouts against share of prompts, a line per arm; an empty curve draws none."""
    figure = go.Figure()
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=_dashed(INK), hoverinfo="skip")
    for number, (arm, look, (x, y)) in enumerate(zip(arms, looks, curves, strict=True)):
        figure.add_trace(_line(number, arm, look, x.round(4), y.round(4), "%{x:.0%} of prompts: %{y:.0%} of rollouts"))
    finish(figure, "share of prompts, fewest first", "share of rollouts", height=320)
    figure.update_xaxes(range=[0, 1.01], tickformat=".0%")
    figure.update_yaxes(range=[0, 1.01], tickformat=".0%")
    return to_json(figure)


def history_figure(
    arms: Sequence[Arm], looks: Sequence[Look], histories: Sequence[Sequence[History]], *, bias: bool
) -> str:
    """By windows of steps: observed minus predicted success, or the mean absolute error beyond chance."""
    figure = go.Figure()
    for number, (arm, look, history) in enumerate(zip(arms, looks, histories, strict=True)):
        x = [found[0].middle for found in history]
        y = [found[4] if bias else found[2] - found[3] for found in history]
        figure.add_trace(_line(number, arm, look, x, np.round(y, 5), "about step %{x:.0f}: %{y:+.3f}", "lines+markers"))
    figure.add_hline(y=0, line=_dashed(INK))
    finish(figure, "step", "observed − predicted" if bias else "error beyond chance", height=320)
    figure.update_xaxes(rangemode="tozero")
    return to_json(figure)


def variance_figure(ratios: Sequence[Ratio], look: Look) -> str:
    """Predicted (dashed) and realised (points with one standard error) variance against uniform's."""
    figure = go.Figure()
    planned = [r for r in ratios if r.predicted is not None]
    figure.add_scatter(
        x=[r.window.middle for r in planned],
        y=[r.predicted for r in planned],
        mode="lines",
        line={**_dashed(look.colour), "width": 2},
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
    figure.add_hline(y=1, line={"color": FAINT, "width": 1, "dash": "dot"})
    finish(figure, "step", "variance / that of equal counts", height=320)
    figure.update_xaxes(rangemode="tozero")
    return to_json(figure)


def _line(number: int, arm: Arm, look: Look, x: Any, y: Any, hover: str, mode: str = "lines") -> Any:
    return go.Scatter(
        x=x,
        y=y,
        mode=mode,
        name=html.escape(arm.label),
        legendgroup=f"arm-{number}",
        line={"color": look.colour, "width": 2.5, "dash": look.dash},
        marker={"symbol": look.symbol, "size": 6},
        hovertemplate=f"%{{fullData.name}}<br>{hover}<extra></extra>",
    )


def _dashed(colour: str) -> dict[str, Any]:
    return {"color": colour, "width": 1.2, "dash": "dash"}
