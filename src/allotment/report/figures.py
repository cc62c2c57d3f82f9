"""The figures, as Plotly specifications in JSON that is safe inside a ``<script>`` element."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from allotment.audit.figures import BINS
from allotment.report.data import Arm
from allotment.report.predictions import Predictions, Ratio, Window, bins, ideal_counts
from allotment.report.style import AXIS, FAINT, FONT, GRID, GROUND, INK, LITTLE, MUCH, Look, tinted
from allotment.report.summary import Axis, Curve, Measure, curve
from allotment.types import FloatArray

SPENT: dict[Axis, str] = {
    "rollouts_total": "rollouts generated",
    "tokens_total": "tokens generated",
    "seconds_total": "seconds of training",
}
"""What the horizontal axis of a learning curve measures."""

MOST_DOTS = 1500
"""Dots drawn per allocation figure; more make a page slow and a cloud opaque."""

JITTER = 0.3
"""Largest vertical shift of a dot, in rollouts."""

PROBABILITIES = {"range": [-0.02, 1.02]}
"""Settings of an axis from 0 to 1."""

TO_ZERO = {"rangemode": "tozero"}
"""Settings of an axis that begins at 0."""


def learning_figure(arms: Sequence[Arm], looks: Sequence[Look], axis: Axis, measure: Measure) -> str:
    """Success probability against what was spent: a mean line per arm, a band of one standard error, thin runs."""
    figure = go.Figure()
    for number, (arm, look) in enumerate(zip(arms, looks, strict=True)):
        group = f"arm-{number}"
        for run in (run for run in arm.runs if run.evaluations and arm.counted != (run,)):
            single = curve(arm, axis, measure, [run])
            line = {"color": look.tint(0.5 if run not in arm.counted else 0.25), "width": 1, "dash": look.dash}
            figure.add_scatter(
                x=single.x, y=single.mean, mode="lines", line=line, hoverinfo="skip", legendgroup=group, name=arm.label
            )
        mean = curve(arm, axis, measure)
        if mean.standard_error is not None:
            figure.add_trace(_band(mean, look, group))
        figure.add_trace(_mean_line(number, arm, mean, look))
    across = {"tickformat": ",~r" if axis == "seconds_total" else "~s", **TO_ZERO, "nticks": 6}
    return finish(figure, SPENT[axis], "success probability", height=360, x=across, y={"tickformat": ".3f"})


def allocation_figure(forecast: Predictions, look: Look, *, ideal: bool) -> str:
    """Rollouts given against predicted success: one dot per prompt and step, the mean, and the shape to compare with.

    Prompts met for the first time are grey, and no part of the mean.

    Args:
        forecast: at least one prediction.
        look: of the arm.
        ideal: whether to draw the best shape for RLOO.
    """
    figure = go.Figure()
    returning = forecast.only(~forecast.first)
    figure.add_trace(_dots(forecast, look))
    if ideal and len(returning):
        at = np.sin(np.linspace(0, np.pi / 2, 61)) ** 2  # dense near 0 and 1, where the curve is steep
        best = ideal_counts(returning, at)
        figure.add_scatter(x=at, y=best, mode="lines", line=dashed(INK), name="√(p(1−p))", hoverinfo="skip")
    found = bins(returning)
    figure.add_scatter(
        **columns(found, x="mean_prediction", y="mean_count", customdata="prompts"),
        mode="lines+markers",
        name="mean",
        line={"color": look.colour, "width": 2.5},
        marker={"symbol": look.symbol, "size": 9, "line": {"color": GROUND, "width": 1.5}},
        hovertemplate="mean of %{customdata:,} prompts<br>predicted %{x:.2f}: %{y:.1f} rollouts<extra></extra>",
    )
    mark(figure, float(forecast.n.mean()))
    title = "predicted success probability p"
    return finish(figure, title, "rollouts given", height=340, x=PROBABILITIES, y=TO_ZERO)


def calibration_figure(forecast: Predictions, look: Look) -> str:
    """Observed against predicted success by bins, with 95 % intervals; below, how many prompts each bin holds."""
    found = bins(forecast)
    above, below = [b.interval[1] - b.observed for b in found], [b.observed - b.interval[0] for b in found]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.78, 0.22], vertical_spacing=0.05)
    diagonal(figure, row=1, col=1)
    figure.add_scatter(
        **columns(found, x="predicted", y="observed"),
        error_y={"array": above, "arrayminus": below, "thickness": 1.5, "width": 4},
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
    _lay_out(figure, "", "observed success", 400, x=PROBABILITIES)
    figure.update_xaxes(title_text="predicted success probability", row=2, col=1)
    figure.update_yaxes(range=[-0.04, 1.04], row=1, col=1)
    figure.update_yaxes(title_text="prompts", nticks=3, tickformat="~s", row=2, col=1)
    return to_json(figure)


def arm_line(
    number: int, arm: Arm, look: Look, x: Any, y: Any, hover: str, mode: str = "lines+markers", **more: Any
) -> Any:
    """The line of an arm in a figure of all arms; ``more`` stands in for what is usual, ``line`` and ``marker`` too."""
    return go.Scatter(
        x=x,
        y=y,
        mode=mode,
        name=html.escape(arm.label),
        legendgroup=f"arm-{number}",
        line={"color": look.colour, "width": 2.5, "dash": look.dash} | more.pop("line", {}),
        marker={"symbol": look.symbol, "size": 6} | more.pop("marker", {}),
        hovertemplate=f"%{{fullData.name}}<br>{hover}<extra></extra>",
        **more,
    )


def _mean_line(number: int, arm: Arm, mean: Curve, look: Look) -> Any:
    error = [""] * len(mean.step) if mean.standard_error is None else [f" ± {e:.4f}" for e in mean.standard_error]
    told = [[step, text] for step, text in zip(mean.step, error, strict=True)]
    hover = "step %{customdata[0]}, %{x:,.0f}<br>%{y:.4f}%{customdata[1]}"
    line = {"width": 1.5 if len(arm.counted) == 1 else 2.5}
    return arm_line(number, arm, look, mean.x, mean.mean, hover, customdata=told, line=line, cliponaxis=False)


def _band(mean: Curve, look: Look, group: str) -> Any:
    """One standard error to each side."""
    assert mean.standard_error is not None
    low, high = mean.mean - mean.standard_error, mean.mean + mean.standard_error
    x, y = np.concatenate([mean.x, mean.x[::-1]]), np.concatenate([high, low[::-1]])
    filled = {"fill": "toself", "fillcolor": look.tint(0.18), "line": {"width": 0}, "mode": "lines"}
    return go.Scatter(x=x, y=y, hoverinfo="skip", legendgroup=group, **filled)


def _dots(forecast: Predictions, look: Look) -> Any:
    at = forecast.sample(MOST_DOTS)
    shift = np.random.default_rng(0).uniform(-JITTER, JITTER, len(at))
    texts = [
        f"{html.escape(forecast.names[i])}, step {forecast.step[i]}<br>"
        f"predicted {forecast.predicted[i]:.2f}: {forecast.n[i]} rollouts, {forecast.successes[i]} right"
        for i in at
    ]
    return go.Scatter(
        x=forecast.predicted[at].round(4),
        y=(forecast.n[at] + shift).round(3),
        text=texts,
        mode="markers",
        marker={"color": [tinted(FAINT, 0.22) if forecast.first[i] else look.tint(0.25) for i in at], "size": 5},
        hovertemplate="%{text}<extra></extra>",
    )


def columns(rows: Sequence[Any], **attributes: str) -> dict[str, list[Any]]:
    """Attributes of rows as lists for a trace, by plotly's name."""
    return {name: [attrgetter(attribute)(row) for row in rows] for name, attribute in attributes.items()}


def dashed(colour: str, width: float = 1.5) -> dict[str, Any]:
    """A dashed line."""
    return {"color": colour, "width": width, "dash": "dash"}


def diagonal(figure: Any, low: float = 0, high: float = 1, width: float = 1.5, **place: int) -> None:
    """Draw the dashed line on which both axes are equal."""
    ends = [low, high]
    figure.add_scatter(x=ends, y=ends, mode="lines", line=dashed(INK, width), hoverinfo="skip", **place)


def mark(figure: Any, y: float) -> None:
    """Draw a dotted line across, at a value to compare with."""
    figure.add_hline(y=y, line={"color": FAINT, "width": 1, "dash": "dot"})


Settings = Mapping[str, Any]
"""Of an axis, as plotly names them."""


def finish(
    figure: Any, x_title: str, y_title: str, *, height: int = 320, x: Settings | None = None, y: Settings | None = None
) -> str:
    """The figure as JSON, with the fonts, margins and axes that all share; ``x`` and ``y`` set their axis further."""
    _lay_out(figure, x_title, y_title, height, x, y)
    return to_json(figure)


def _lay_out(
    figure: Any, x_title: str, y_title: str, height: int, x: Settings | None = None, y: Settings | None = None
) -> None:
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
    figure.update_xaxes(title={"text": x_title, "standoff": 8}, **axis, **(x or {}))
    figure.update_yaxes(title={"text": y_title, "standoff": 8}, **axis, **(y or {}))


def to_json(figure: Any) -> str:
    """A specification that may stand inside a ``<script>`` element."""
    return safe(str(figure.to_json()))


def safe(text: str) -> str:
    """JSON that cannot end the ``<script>`` element it stands in."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


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
        **columns(planned, x="window.middle", y="predicted"),
        mode="lines",
        line=dashed(look.colour, 2),
        hovertemplate="predicted about step %{x:.0f}: %{y:.3f}<extra></extra>",
    )
    came = [r for r in ratios if r.realised is not None]
    figure.add_scatter(
        **columns(came, x="window.middle", y="realised"),
        error_y={**columns(came, array="standard_error"), "thickness": 1.2, "width": 3},
        mode="markers",
        marker={"color": look.colour, "symbol": look.symbol, "size": 8},
        hovertemplate="realised about step %{x:.0f}: %{y:.3f}<extra></extra>",
    )
    mark(figure, 1)
    return finish(figure, "step", "variance / that of equal counts", x=TO_ZERO)
