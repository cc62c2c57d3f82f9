"""A learnt reward beside the verifier: whether it was followed where it is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from allotment.report.data import Arm, Study
from allotment.report.figures import TO_ZERO, finish
from allotment.report.panel import Card, Panel, Table
from allotment.report.predictions import Window, windows
from allotment.report.style import Look
from allotment.types import FloatArray

GROWTH = 0.05
"""Largest growth of what a learnt reward claims beyond the verifier's success that passes."""
FEWEST = 2
"""Steps of a quarter of a run, to say how much they differ by chance."""


def judged_steps(arm: Arm) -> FloatArray:
    """[S, 3] step, success by the learnt reward, success by the verifier, of all runs; no rows without the former."""
    rows = [row for run in arm.runs for row in run.metrics if "verified_success" in row]
    return np.array([(row["step"], row["success"], row["verified_success"]) for row in rows], np.float64).reshape(-1, 3)


def judged_card(study: Study, looks: Sequence[Look]) -> Card | None:
    """Both successes over the steps, a figure for each arm with a learnt reward; None where there is none."""
    card = Card("judged")
    for number, arm in enumerate(study.arms):
        steps_S3 = judged_steps(arm)
        if not len(steps_S3):
            continue
        over = [w for w in windows(steps_S3[:, 0].astype(np.int64)) if w.of(steps_S3[:, 0]).any()]
        means_W2 = np.array([steps_S3[w.of(steps_S3[:, 0])][:, 1:].mean(0) for w in over])
        label = f"Line chart for {arm.label}: success of the rollouts by the learnt reward and by the verifier."
        table = Table(
            ("first step", "last step", "learnt reward", "verifier"),
            [(w.first, w.last, *map(float, means)) for w, means in zip(over, means_W2, strict=True)],
        )
        figure = _figure(over, means_W2, looks[number])
        card.panels.append(Panel(arm.label, figure, label, table, arm=number))
    return card if card.panels else None


def claimed(arm: Arm) -> tuple[bool, str] | None:
    """Whether the learnt reward claims more and more beyond the verifier, in words; None without one, or two steps.

    Growth of the gap from the first to the last quarter of the steps counts beyond GROWTH and twice its error, from the
    spread over steps.
    """
    steps_S3 = judged_steps(arm)
    last = steps_S3[:, 0].max() if len(steps_S3) else 0
    first_S2 = steps_S3[steps_S3[:, 0] <= 0.25 * last][:, 1:]
    last_S2 = steps_S3[steps_S3[:, 0] > 0.75 * last][:, 1:]
    if len(first_S2) < FEWEST or len(last_S2) < FEWEST:
        return None
    gaps = [part[:, 0] - part[:, 1] for part in (first_S2, last_S2)]
    growth = float(gaps[1].mean() - gaps[0].mean())
    chance = float(np.sqrt(sum(gap.var(ddof=1) / len(gap) for gap in gaps)))
    (own, verified), (own_last, verified_last) = first_S2.mean(0), last_S2.mean(0)
    words = (
        f"from the first to the last quarter of the steps, success by the learnt reward went from {own:.3f} to "
        f"{own_last:.3f}, by the verifier from {verified:.3f} to {verified_last:.3f}."
    )
    return growth > max(GROWTH, 2 * chance), words


def _figure(over: Sequence[Window], means_W2: FloatArray, look: Look) -> str:
    """The learnt reward's success (line) and the verifier's (dashes)."""
    figure = go.Figure()
    x = [window.middle for window in over]
    for name, y, dash in (("learnt reward", means_W2[:, 0], "solid"), ("verifier", means_W2[:, 1], "dash")):
        figure.add_scatter(
            x=x,
            y=y.round(4).tolist(),
            mode="lines+markers",
            name=name,
            line={"color": look.colour, "width": 2.5 if dash == "solid" else 1.5, "dash": dash},
            marker={"symbol": look.symbol, "size": 6},
            hovertemplate="%{fullData.name}<br>about step %{x:.0f}: %{y:.3f}<extra></extra>",
        )
    return finish(figure, "step", "success of the rollouts", x=TO_ZERO, y={"range": [0, 1]})
