"""The card on what each method really optimises."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from allotment.report.course import Visits
from allotment.report.data import Study
from allotment.report.figures import finish, to_json
from allotment.report.panel import Card, Panel, no_predictions
from allotment.report.style import FAINT, INK, PLANNERS, Look
from allotment.report.tables import Cell, Table
from allotment.report.weights import ALTERNATIVES, Choice, own_choice, weights_by_tenth

COLUMNS = ("predicted", "prompts", "mean n", "relative weight")
BLUE = PLANNERS["vip"][0]
DASH = {"rloo": "solid", "dr_grpo": "dash", "grpo": "dot"}

Weights = list[tuple[float, int, float, float]]


def weight_card(study: Study, looks: Sequence[Look], visited: Sequence[Visits]) -> Card:
    """Effective weight of a prompt against its predicted success: as trained, and with other choices."""
    card = Card("weights")
    known = [not np.isnan(made.predicted).all() if len(made) else False for made in visited]
    for arm, made, predicted in zip(study.arms, visited, known, strict=True):
        if not predicted:
            card.absent.append(no_predictions(arm, any_rollouts=len(made) > 0))
    if not any(known):
        return card
    card.panels.append(_as_trained(study, looks, [made if k else None for made, k in zip(visited, known, strict=True)]))
    for number, (arm, made, predicted) in enumerate(zip(study.arms, visited, known, strict=True)):
        if predicted and not arm.is_uniform:
            found = [(choice, weights_by_tenth(made, choice)) for choice in ALTERNATIVES]
            label = f"Line chart for {arm.label}: relative weight of a prompt against p, a line per loss."
            note = "Blue: prompts count equally. Grey: by their rollouts. Solid rloo, dashed dr_grpo, dotted grpo."
            rows: list[tuple[Cell, ...]] = [(choice.name, *row) for choice, weights in found for row in weights]
            table = Table(("loss", *COLUMNS), rows)
            card.panels.append(Panel(arm.label, _other_choices(found), label, table, note, number))
    return card


def _as_trained(study: Study, looks: Sequence[Look], visited: Sequence[Visits | None]) -> Panel:
    figure = go.Figure()
    rows: list[tuple[Cell, ...]] = []
    for number, (arm, look, made) in enumerate(zip(study.arms, looks, visited, strict=True)):
        weights = [] if made is None else weights_by_tenth(made, own_choice(arm))
        rows += [(arm.label, *row) for row in weights]
        figure.add_scatter(
            x=[row[0] for row in weights],
            y=[row[3] for row in weights],
            mode="lines+markers",
            name=html.escape(arm.label),
            legendgroup=f"arm-{number}",
            line={"color": look.colour, "width": 2.5, "dash": look.dash},
            marker={"symbol": look.symbol, "size": 7},
            hovertemplate="%{fullData.name}<br>p about %{x:.2f}: weight %{y:.3f}<extra></extra>",
        )
    _axes(figure)
    label = "Line chart: relative weight of a prompt against its predicted success, one line per planner."
    used = "; ".join(dict.fromkeys(f"{arm.label}: {own_choice(arm).name}" for arm in study.arms))
    return Panel("As trained", to_json(figure), label, Table(("planner", *COLUMNS), rows), f"{used}.")


def _other_choices(found: Sequence[tuple[Choice, Weights]]) -> str:
    figure = go.Figure()
    for choice, weights in found:
        figure.add_scatter(
            x=[row[0] for row in weights],
            y=[row[3] for row in weights],
            mode="lines",
            name=choice.name,
            line={"color": FAINT if choice.by_rollouts else BLUE, "width": 2, "dash": DASH[choice.advantage]},
            hovertemplate="%{fullData.name}<br>p about %{x:.2f}: weight %{y:.3f}<extra></extra>",
        )
    _axes(figure)
    return to_json(figure)


def _axes(figure: go.Figure) -> None:
    figure.add_hline(y=1, line={"color": INK, "width": 1, "dash": "dash"})
    finish(figure, "predicted success probability p", "relative weight", height=320)
    figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_yaxes(rangemode="tozero")
