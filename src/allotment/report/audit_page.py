"""The page of an audit: what a log says, and what another split of its rollouts would have been worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from allotment.errors import needs_extra
from allotment.report.tables import Cell, Table
from allotment.run_logs.files import write_atomically

if TYPE_CHECKING:
    from allotment.audit.bootstrap import Interval
    from allotment.audit.summary import Summary

MOST_PROMPTS = 2000
"""Prompts drawn and listed, evenly spaced in the log's order."""


@dataclass(frozen=True)
class Audited:
    """The audit of one run."""

    source: str
    """Where the log lies."""
    predictor: str
    """Whose predictions the summary is of."""
    summary: Summary
    notes: tuple[str, ...]
    """What a reader should know of the file."""


@dataclass(frozen=True)
class Figure:
    """One figure with its words and numbers."""

    title: str
    read: str
    """How to read it."""
    specification: str
    """Plotly JSON."""
    label: str
    """What it shows, for those who cannot see it."""
    table: Table


def write_audit(audited: Sequence[Audited], out: Path) -> Path:
    """Write one self-contained HTML page about one or more audited runs.

    Args:
        audited: at least one, in the order of the page.
        out: the file to write (replaced if it exists), or a folder, which gets an ``audit.html``.

    Raises:
        MissingExtraError: plotly or jinja2 is not installed.
    """
    with needs_extra("report"):
        import plotly  # noqa: F401
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from markupsafe import Markup
    from allotment.report.page import PLOTLY_JS
    from allotment.report.style import AXIS, FAINT, FONT, GRID, INK, ON_DARK, PLANNERS
    from allotment.report.tables import cell_text

    loader = PackageLoader("allotment.report", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"cell": cell_text, "interval": interval}
    text = environment.get_template("audit.html.j2").render(
        runs=[(each, facts(each.summary), figures(each)) for each in audited],
        font=FONT,
        on_dark=ON_DARK,
        colours={"ink": INK, "faint": FAINT, "grid": GRID, "axis": AXIS, "line": PLANNERS["vip"][0]},
        plotly_js=Markup(PLOTLY_JS.read_text("utf-8")),
    )
    file = out / "audit.html" if out.is_dir() else out
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, text)
    return file


def facts(summary: Summary) -> list[tuple[str, str]]:
    """The figures that stand beside the verdict, as (name, value)."""
    worth, waste, budget = summary.equivalence, summary.waste, summary.budget_per_prompt
    found = [
        ("In the log", f"{summary.prompts:,} prompts, {summary.visits:,} visits"),
        ("Rollouts without signal", f"{100 * waste.without_signal:.1f} % of {waste.rollouts:,}"),
        ("… of groups that all failed", f"{100 * waste.all_failed / waste.rollouts:.1f} %"),
        ("… of groups that all succeeded", f"{100 * waste.all_succeeded / waste.rollouts:.1f} %"),
        ("Gradient variance over uniform’s", interval(worth.variance_ratio)),
        (f"Rollouts a prompt for the precision of {budget}", interval(worth.rollouts)),
        (f"Rollouts of uniform worth {budget} allotted", interval(worth.uniform_rollouts)),
    ]
    if summary.lengths is not None:
        lengths = summary.lengths
        found.append((f"{lengths.unit.capitalize()}, logged", f"{lengths.logged:,.0f}"))
        found.append(
            (f"{lengths.unit.capitalize()}, uniform and VIP", f"{lengths.uniform:,.0f}, {lengths.allotted:,.0f}")
        )
        if math.isfinite(lengths.equivalent):
            found.append((f"{lengths.unit.capitalize()} of VIP at uniform’s precision", f"{lengths.equivalent:,.0f}"))
    return found


def interval(value: Interval) -> str:
    """A figure with its 95 % interval."""
    if math.isnan(value.value):
        return "not known"
    return f"{_number(value.value)} ({_number(value.low)} to {_number(value.high)})"


def figures(audited: Audited) -> list[Figure]:
    """The page's figures of one run, those that have numbers."""
    made = [_worth(audited.summary), _allotments(audited), _calibration(audited)]
    return [figure for figure in made if figure is not None]


def _worth(summary: Summary) -> Figure | None:
    from allotment.report.figures import finish, to_json
    from allotment.report.style import FAINT, INK, PLANNERS

    worth, budget = summary.equivalence, summary.budget_per_prompt
    if np.isnan(worth.worth).any():
        return None
    figure = _figure()
    ends = [float(worth.budgets[0]), float(worth.budgets[-1])]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": INK, "width": 1.5, "dash": "dash"}, hoverinfo="skip"
    )
    line = {"color": PLANNERS["vip"][0], "width": 2.5}
    hover = "%{x:.1f} rollouts a prompt are worth %{y:.1f} of uniform<extra></extra>"
    figure.add_scatter(
        x=worth.budgets.tolist(), y=worth.worth.tolist(), mode="lines+markers", line=line, hovertemplate=hover
    )
    figure.add_hline(y=budget, line={"color": FAINT, "width": 1, "dash": "dot"})
    finish(figure, "rollouts a prompt, allotted", "worth in rollouts of uniform", height=360)
    rows: list[tuple[Cell, ...]] = [(float(b), float(w)) for b, w in zip(worth.budgets, worth.worth, strict=True)]
    return Figure(
        "What the rollouts would have been worth",
        f"Read across from the dotted line, the {budget} rollouts a prompt of uniform: where it meets the curve, the "
        "allotted rollouts give the same variance of the gradient. The dashed line is uniform itself; the further the "
        "curve lies above it, the more is gained.",
        to_json(figure),
        "Line chart: rollouts of uniform that the allotted rollouts are worth, by budget.",
        Table(("rollouts a prompt", "worth of uniform"), rows),
    )


def _allotments(audited: Audited) -> Figure:
    from allotment.report.figures import finish, safe, to_json
    from allotment.report.style import FAINT, PLANNERS

    shares = audited.summary.shares
    seen = np.flatnonzero(shares.visits > 0)
    shown = seen[np.unique(np.linspace(0, len(seen) - 1, min(MOST_PROMPTS, len(seen))).astype(np.int64))]
    figure = _figure()
    figure.add_scatter(
        x=shares.success[shown].round(4).tolist(),
        y=shares.allotted[shown].round(3).tolist(),
        mode="markers",
        marker={"color": PLANNERS["vip"][0], "size": 6, "opacity": 0.35},
        text=[
            f"{safe(str(shares.ids[m]))}, {shares.visits[m]} visits<br>{shares.logged[m]:.1f} rollouts a visit, "
            f"{shares.allotted[m]:.1f} allotted"
            for m in shown
        ],
        hovertemplate="%{text}<extra></extra>",
    )
    figure.add_hline(y=audited.summary.budget_per_prompt, line={"color": FAINT, "width": 1, "dash": "dot"})
    finish(figure, "share of successes in the log", "rollouts a visit, allotted", height=360)
    figure.update_yaxes(rangemode="tozero")
    rows: list[tuple[Cell, ...]] = [(c.name, c.prompts, c.logged, c.allotted) for c in audited.summary.classes]
    cut = "" if len(shown) == len(seen) else f" {len(shown):,} of {len(seen):,} prompts are drawn."
    return Figure(
        "What each prompt would have got",
        "A dot is a prompt: how often its rollouts succeeded in the whole log, and how many a visit it would have had, "
        f"decided before each visit. The dotted line is uniform at the same rollouts.{cut}",
        to_json(figure),
        "Scatter plot: rollouts allotted a visit against the share of successes, one dot a prompt.",
        Table(("share of successes", "prompts", "rollouts a visit, logged", "allotted"), rows),
    )


def _calibration(audited: Audited) -> Figure | None:
    from allotment.report.figures import finish, to_json
    from allotment.report.style import INK, PLANNERS

    bins = audited.summary.calibration
    if not bins:
        return None
    figure = _figure()
    diagonal = {"color": INK, "width": 1.5, "dash": "dash"}
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=diagonal, hoverinfo="skip")
    figure.add_scatter(
        x=[b.predicted for b in bins],
        y=[b.observed for b in bins],
        customdata=[b.rollouts for b in bins],
        mode="markers",
        marker={"color": PLANNERS["vip"][0], "size": 10},
        hovertemplate="predicted %{x:.3f}, observed %{y:.3f}<br>%{customdata:,} rollouts<extra></extra>",
    )
    finish(figure, f"predicted by {audited.predictor}", "observed success", height=360)
    figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_yaxes(range=[-0.04, 1.04])
    rows: list[tuple[Cell, ...]] = [(b.low, b.high, b.predicted, b.observed, b.rollouts) for b in bins]
    return Figure(
        "Did the predictions come true?",
        "Visits are sorted into tenths by what was predicted before them. A point on the dashed diagonal says: of the "
        "rollouts predicted to succeed with that probability, that share did.",
        to_json(figure),
        "Calibration plot: observed against predicted success in ten bins.",
        Table(("from", "to", "predicted", "observed", "rollouts"), rows),
    )


def _figure() -> Any:
    import plotly.graph_objects as go

    return go.Figure()


def _number(value: float) -> str:
    return "more than tried" if math.isinf(value) else f"{value:.3g}"
