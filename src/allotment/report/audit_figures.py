"""The figures of an audit's page."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from allotment.audit.summary import Audited, Summary
from allotment.report.figures import PROBABILITIES, TO_ZERO, columns, diagonal, finish, mark, safe
from allotment.report.panel import Panel, Table
from allotment.report.style import PLANNERS

MOST_PROMPTS = 2000
"""Prompts drawn, evenly spaced in the log's order."""
COLOUR = PLANNERS["vip"][0]
HEIGHT = 360


def figures(audited: Audited) -> list[Panel]:
    """The page's figures of one run, those that have numbers."""
    found = (_worth(audited.summary), _allotments(audited.summary), _calibration(audited.summary, audited.predictor))
    return list(filter(None, found))


def _worth(summary: Summary) -> Panel | None:
    worth, budget = summary.equivalence, summary.budget_per_prompt
    if np.isnan(worth.worth).any():
        return None
    figure = go.Figure()
    diagonal(figure, float(worth.budgets[0]), float(worth.budgets[-1]))
    figure.add_scatter(
        x=worth.budgets.tolist(),
        y=worth.worth.tolist(),
        mode="lines+markers",
        line={"color": COLOUR, "width": 2.5},
        hovertemplate="%{x:.1f} rollouts a prompt are worth %{y:.1f} of uniform<extra></extra>",
    )
    mark(figure, budget)
    rows = [(float(b), float(w)) for b, w in zip(worth.budgets, worth.worth, strict=True)]
    return Panel(
        "What the rollouts would have been worth",
        finish(figure, "rollouts a prompt, allotted", "worth in rollouts of uniform", height=HEIGHT),
        "Line chart: rollouts of uniform that the allotted rollouts are worth, by budget.",
        Table(("rollouts a prompt", "worth of uniform"), rows),
        f"Read across from the dotted line, the {budget} rollouts a prompt of uniform: where it meets the curve, the "
        "allotted rollouts give the same variance of the gradient. The dashed line is uniform itself; the further the "
        "curve lies above it, the more is gained.",
    )


def _allotments(summary: Summary) -> Panel:
    shares = summary.shares
    seen = np.flatnonzero(shares.visits > 0)
    shown = seen[np.unique(np.linspace(0, len(seen) - 1, min(MOST_PROMPTS, len(seen))).astype(np.int64))]
    figure = go.Figure()
    figure.add_scatter(
        x=shares.success[shown].round(4).tolist(),
        y=shares.allotted[shown].round(3).tolist(),
        mode="markers",
        marker={"color": COLOUR, "size": 6, "opacity": 0.35},
        text=[
            f"{safe(str(shares.ids[m]))}, {shares.visits[m]} visits<br>{shares.logged[m]:.1f} rollouts a visit, "
            f"{shares.allotted[m]:.1f} allotted"
            for m in shown
        ],
        hovertemplate="%{text}<extra></extra>",
    )
    mark(figure, summary.budget_per_prompt)
    rows = [(c.name, c.prompts, c.logged, c.allotted) for c in summary.classes]
    cut = "" if len(shown) == len(seen) else f" {len(shown):,} of {len(seen):,} prompts are drawn."
    return Panel(
        "What each prompt would have got",
        finish(figure, "share of successes in the log", "rollouts a visit, allotted", height=HEIGHT, y=TO_ZERO),
        "Scatter plot: rollouts allotted a visit against the share of successes, one dot a prompt.",
        Table(("share of successes", "prompts", "rollouts a visit, logged", "allotted"), rows),
        "A dot is a prompt: how often its rollouts succeeded in the whole log, and how many a visit it would have had, "
        f"decided before each visit. The dotted line is uniform at the same rollouts.{cut}",
    )


def _calibration(summary: Summary, predictor: str) -> Panel | None:
    bins = summary.calibration
    if not bins:
        return None
    figure = go.Figure()
    diagonal(figure)
    figure.add_scatter(
        **columns(bins, x="predicted", y="observed", customdata="rollouts"),
        mode="markers",
        marker={"color": COLOUR, "size": 8},
        error_y={"array": [1.96 * (b.observed * (1 - b.observed) / b.rollouts) ** 0.5 for b in bins], "width": 4},
        hovertemplate="predicted %{x:.3f}, observed %{y:.3f}<br>%{customdata:,} rollouts<extra></extra>",
    )
    up = {"range": [-0.04, 1.04]}
    rows = [(b.low, b.high, b.predicted, b.observed, b.rollouts) for b in bins]
    return Panel(
        "Did the predictions come true?",
        finish(figure, f"predicted by {predictor}", "observed success", height=HEIGHT, x=PROBABILITIES, y=up),
        "Calibration plot: observed against predicted success in ten bins.",
        Table(("from", "to", "predicted", "observed", "rollouts"), rows),
        "Visits are sorted into tenths by what was predicted before them. A point on the dashed diagonal says: of the "
        "rollouts predicted to succeed with that probability, that share did. Bars: 95 % of the chance of so many "
        "rollouts.",
    )
