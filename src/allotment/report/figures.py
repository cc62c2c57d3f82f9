"""The figures, as Plotly specifications in JSON that is safe inside a ``<script>`` element."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from allotment.report.data import Arm
from allotment.report.predictions import Predictions, bins, ideal_counts
from allotment.report.style import AXIS, FAINT, FONT, GRID, GROUND, INK, Look, tinted
from allotment.report.summary import Axis, Curve, Measure, curve

AXIS_TITLES: dict[Axis, str] = {
    "rollouts_total": "rollouts generated",
    "tokens_total": "tokens generated",
    "seconds_total": "seconds of training",
}

MOST_DOTS = 1500
"""Dots drawn per allocation figure; more make a page slow and a cloud opaque."""

JITTER = 0.3
"""Largest vertical shift of a dot, in rollouts."""


def learning_figure(arms: Sequence[Arm], looks: Sequence[Look], axis: Axis, measure: Measure) -> str:
    """Success probability against what was spent: a mean line per arm, a band of one standard error, thin runs."""
    figure = go.Figure()
    for number, (arm, look) in enumerate(zip(arms, looks, strict=True)):
        group = f"arm-{number}"
        thin = [run for run in arm.runs if run.evaluations and arm.counted != (run,)]
        for run in thin:
            single = curve(arm, axis, measure, [run])
            line = {"color": look.tint(0.5 if run not in arm.counted else 0.25), "width": 1, "dash": look.dash}
            figure.add_scatter(
                x=single.x, y=single.mean, mode="lines", line=line, hoverinfo="skip", legendgroup=group, name=arm.label
            )
        mean = curve(arm, axis, measure)
        if mean.standard_error is not None:
            figure.add_trace(_band(mean, look, group))
        figure.add_trace(_mean_line(arm, mean, look, group))
    finish(figure, AXIS_TITLES[axis], "success probability", height=360)
    figure.update_xaxes(tickformat=",~r" if axis == "seconds_total" else "~s", rangemode="tozero", nticks=6)
    figure.update_yaxes(tickformat=".3f")
    return to_json(figure)


def allocation_figure(made: Predictions, look: Look, *, ideal: bool) -> str:
    """Rollouts given against predicted success: one dot per prompt and step, the mean, and the shape to compare with.

    Prompts met for the first time are grey, and no part of the mean.

    Args:
        made: at least one prediction.
        look: of the arm.
        ideal: whether to draw the best shape for RLOO.
    """
    figure = go.Figure()
    returning = made.only(~made.first)
    figure.add_trace(_dots(made, look))
    if ideal and len(returning):
        at = np.sin(np.linspace(0, np.pi / 2, 61)) ** 2  # dense near 0 and 1, where the curve is steep
        line = {"color": INK, "width": 1.5, "dash": "dash"}
        figure.add_scatter(
            x=at, y=ideal_counts(returning, at), mode="lines", line=line, name="√(p(1−p))", hoverinfo="skip"
        )
    found = bins(returning)
    figure.add_scatter(
        x=[b.mean_prediction for b in found],
        y=[b.mean_count for b in found],
        customdata=[b.prompts for b in found],
        mode="lines+markers",
        name="mean",
        line={"color": look.colour, "width": 2.5},
        marker={"symbol": look.symbol, "size": 9, "line": {"color": GROUND, "width": 1.5}},
        hovertemplate="mean of %{customdata:,} prompts<br>predicted %{x:.2f}: %{y:.1f} rollouts<extra></extra>",
    )
    figure.add_hline(y=float(made.n.mean()), line={"color": FAINT, "width": 1, "dash": "dot"})
    finish(figure, "predicted success probability p", "rollouts given", height=340)
    figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_yaxes(rangemode="tozero")
    return to_json(figure)


def calibration_figure(made: Predictions, look: Look) -> str:
    """Observed against predicted success by bins, with 95 % intervals; below, how many prompts each bin holds."""
    found = bins(made)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.78, 0.22], vertical_spacing=0.05)
    diagonal = {"color": INK, "width": 1.5, "dash": "dash"}
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=diagonal, hoverinfo="skip", row=1, col=1)
    figure.add_scatter(
        x=[b.predicted for b in found],
        y=[b.observed for b in found],
        error_y={
            "array": [b.interval[1] - b.observed for b in found],
            "arrayminus": [b.observed - b.interval[0] for b in found],
            "thickness": 1.5,
            "width": 4,
        },
        customdata=[[b.prompts, b.rollouts] for b in found],
        mode="markers",
        marker={"color": look.colour, "symbol": look.symbol, "size": 9, "line": {"color": GROUND, "width": 1}},
        hovertemplate="predicted %{x:.3f}<br>observed %{y:.3f}<br>"
        "%{customdata[0]:,} prompts, %{customdata[1]:,} rollouts<extra></extra>",
        row=1,
        col=1,
    )
    figure.add_bar(
        x=[(b.lower + b.upper) / 2 for b in found],
        y=[b.prompts for b in found],
        width=[0.9 * (b.upper - b.lower) for b in found],
        marker={"color": look.tint(0.5)},
        hovertemplate="%{y:,} prompts<extra></extra>",
        row=2,
        col=1,
    )
    finish(figure, "", "observed success", height=400)
    figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_xaxes(title_text="predicted success probability", row=2, col=1)
    figure.update_yaxes(range=[-0.04, 1.04], row=1, col=1)
    figure.update_yaxes(title_text="prompts", nticks=3, tickformat="~s", row=2, col=1)
    return to_json(figure)


def _mean_line(arm: Arm, mean: Curve, look: Look, group: str) -> Any:
    error = [""] * len(mean.step) if mean.standard_error is None else [f" ± {e:.4f}" for e in mean.standard_error]
    single = len(arm.counted) == 1
    return go.Scatter(
        x=mean.x,
        y=mean.mean,
        customdata=[[step, text] for step, text in zip(mean.step, error, strict=True)],
        mode="lines+markers",
        name=html.escape(arm.label),
        legendgroup=group,
        line={"color": look.colour, "width": 1.5 if single else 2.5, "dash": look.dash},
        marker={"symbol": look.symbol, "size": 6},
        cliponaxis=False,
        hovertemplate="%{fullData.name}<br>step %{customdata[0]}, %{x:,.0f}<br>%{y:.4f}%{customdata[1]}<extra></extra>",
    )


def _band(mean: Curve, look: Look, group: str) -> Any:
    """One standard error to each side."""
    assert mean.standard_error is not None
    low, high = mean.mean - mean.standard_error, mean.mean + mean.standard_error
    return go.Scatter(
        x=np.concatenate([mean.x, mean.x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        fill="toself",
        fillcolor=look.tint(0.18),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        legendgroup=group,
    )


def _dots(made: Predictions, look: Look) -> Any:
    at = made.sample(MOST_DOTS)
    shift = np.random.default_rng(0).uniform(-JITTER, JITTER, len(at))
    texts = [
        f"{html.escape(made.names[i])}, step {made.step[i]}<br>"
        f"predicted {made.predicted[i]:.2f}: {made.n[i]} rollouts, {made.successes[i]} right"
        for i in at
    ]
    return go.Scatter(
        x=made.predicted[at].round(4),
        y=(made.n[at] + shift).round(3),
        text=texts,
        mode="markers",
        marker={"color": [tinted(FAINT, 0.22) if made.first[i] else look.tint(0.25) for i in at], "size": 5},
        hovertemplate="%{text}<extra></extra>",
    )


def finish(figure: Any, x_title: str, y_title: str, *, height: int) -> None:
    """Fonts, margins and axes that all figures share."""
    figure.update_layout(
        template=None,
        height=height,
        margin={"l": 56, "r": 14, "t": 10, "b": 48},
        font={"family": FONT, "size": 13, "color": INK},
        showlegend=False,
        hovermode="closest",
        dragmode=False,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    axis = {"gridcolor": GRID, "linecolor": AXIS, "zeroline": False, "automargin": True, "ticks": ""}
    figure.update_xaxes(title={"text": x_title, "standoff": 8}, **axis)
    figure.update_yaxes(title={"text": y_title, "standoff": 8}, **axis)


def to_json(figure: Any) -> str:
    """A specification that may stand inside a ``<script>`` element."""
    return safe(str(figure.to_json()))


def safe(text: str) -> str:
    """JSON that cannot end the ``<script>`` element it stands in."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
