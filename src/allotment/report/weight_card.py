"""The card on what each method really optimises."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from allotment.report.course import Visits
from allotment.report.data import Study
from allotment.report.figures import PROBABILITIES, TO_ZERO, arm_line, dashed, finish
from allotment.report.panel import Card, Panel, no_predictions
from allotment.report.style import FAINT, INK, PLANNERS, Look
from allotment.report.tables import Cell, Table
from allotment.report.weights import ALTERNATIVES, Choice, trained_choice, weights_by_tenth

COLUMNS = ("predicted", "prompts", "mean n", "relative weight")
BLUE = PLANNERS["vip"][0]
HOVER = "p about %{x:.2f}: weight %{y:.3f}"
DASH = {"rloo": "solid", "dr_grpo": "dash", "grpo": "dot"}

Weights = list[tuple[float, int, float, float]]


def weight_card(study: Study, looks: Sequence[Look], visited: Sequence[Visits]) -> Card:
    """Effective weight of a prompt against its predicted success: as trained, and with other choices."""
    card = Card("weights")
    known = [not np.isnan(seen.predicted).all() if len(seen) else False for seen in visited]
    for arm, seen, predicted in zip(study.arms, visited, known, strict=True):
        if not predicted:
            card.absent.append(no_predictions(arm, any_rollouts=len(seen) > 0))
    if not any(known):
        return card
    card.panels.append(_as_trained(study, looks, [seen if k else None for seen, k in zip(visited, known, strict=True)]))
    for number, (arm, seen, predicted) in enumerate(zip(study.arms, visited, known, strict=True)):
        if predicted and not arm.is_uniform:
            found = [(choice, weights_by_tenth(seen, choice)) for choice in ALTERNATIVES]
            label = f"Line chart for {arm.label}: relative weight of a prompt against p, a line per loss."
            note = "Blue: prompts count equally. Grey: by their rollouts. Solid rloo, dashed dr_grpo, dotted grpo."
            rows: list[tuple[Cell, ...]] = [(choice.name, *row) for choice, weights in found for row in weights]
            table = Table(("loss", *COLUMNS), rows)
            card.panels.append(Panel(arm.label, _other_choices(found), label, table, note, number))
    return card


def _as_trained(study: Study, looks: Sequence[Look], visited: Sequence[Visits | None]) -> Panel:
    figure = go.Figure()
    rows: list[tuple[Cell, ...]] = []
    for number, (arm, look, seen) in enumerate(zip(study.arms, looks, visited, strict=True)):
        weights = [] if seen is None else weights_by_tenth(seen, trained_choice(arm))
        rows += [(arm.label, *row) for row in weights]
        x, y = [row[0] for row in weights], [row[3] for row in weights]
        figure.add_trace(arm_line(number, arm, look, x, y, HOVER, marker={"size": 7}))
    label = "Line chart: relative weight of a prompt against its predicted success, one line per planner."
    used = "; ".join(dict.fromkeys(f"{arm.label}: {trained_choice(arm).name}" for arm in study.arms))
    return Panel("As trained", _finished(figure), label, Table(("planner", *COLUMNS), rows), f"{used}.")


def _other_choices(found: Sequence[tuple[Choice, Weights]]) -> str:
    figure = go.Figure()
    for choice, weights in found:
        figure.add_scatter(
            x=[row[0] for row in weights],
            y=[row[3] for row in weights],
            mode="lines",
            name=choice.name,
            line={"color": FAINT if choice.by_rollouts else BLUE, "width": 2, "dash": DASH[choice.advantage]},
            hovertemplate=f"%{{fullData.name}}<br>{HOVER}<extra></extra>",
        )
    return _finished(figure)


def _finished(figure: go.Figure) -> str:
    figure.add_hline(y=1, line=dashed(INK, 1))
    return finish(figure, "predicted success probability p", "relative weight", x=PROBABILITIES, y=TO_ZERO)
