"""The cards over the course of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from allotment.report import course_figures
from allotment.report.course import Visits, gini, lorenz, mean_counts, prediction_history, variance_ratios, windows
from allotment.report.data import Arm, Study
from allotment.report.panel import Card, Panel, draw_each, no_predictions
from allotment.report.style import Look
from allotment.report.tables import heat_table, history_table, lorenz_table, variance_table

SMALLEST_WINDOWS = 2
"""Windows of steps that a course needs."""


def budget_card(study: Study, looks: Sequence[Look], visited: Sequence[Visits]) -> Card:
    """Heat maps of the counts, and Lorenz curves."""
    if not any(map(len, visited)):
        return Card("budget", absent=["no run has rollouts logged yet."])
    card = Card("budget")
    curves = [lorenz(seen.n) if len(seen) else (np.zeros(0), np.zeros(0)) for seen in visited]
    ginis = [f"{arm.label} {gini(seen.n):.3f}" for arm, seen in zip(study.arms, visited, strict=True) if len(seen)]
    card.panels.append(
        Panel(
            "Shares of the rollouts",
            course_figures.lorenz_figure(study.arms, looks, curves),
            "Lorenz curves: share of the rollouts against share of the prompts, one line per planner.",
            lorenz_table(study.arms, curves),
            f"Gini coefficient, 0 for equal shares: {'; '.join(ginis)}.",
        )
    )

    def draw(number: int, arm: Arm) -> Panel | str:
        seen = visited[number]
        if reason := _no_course(seen):
            return f"the heat map of {arm.label}: {reason}"
        over = windows(seen.step)
        counts_BW = mean_counts(seen, over)
        label = f"Heat map for {arm.label}: mean rollouts of a prompt by step and predicted success probability."
        figure = course_figures.heat_map(counts_BW, over)
        return Panel(arm.label, figure, label, heat_table(counts_BW, over), arm=number)

    return draw_each(card, study.arms, draw)


def history_card(study: Study, looks: Sequence[Look], visited: Sequence[Visits]) -> Card:
    """Error and bias of the predictions over steps."""
    card = Card("history")
    histories = [prediction_history(seen, windows(seen.step)) for seen in visited]
    for arm, seen, history in zip(study.arms, visited, histories, strict=True):
        if not history:
            card.absent.append(no_predictions(arm, any_rollouts=len(seen) > 0))
    if not any(map(len, histories)):
        return card
    table = history_table(study.arms, histories)
    for bias, title in ((False, "Error beyond chance"), (True, "Too low or too high")):
        what = "observed minus predicted success" if bias else "mean absolute error of predictions beyond chance"
        figure = course_figures.history_figure(study.arms, looks, histories, bias=bias)
        card.panels.append(Panel(title, figure, f"Line chart: {what} over steps, one line per planner.", table))
    return card


def variance_card(study: Study, looks: Sequence[Look], visited: Sequence[Visits]) -> Card:
    """Predicted and realised variance of the gradient over steps."""

    def draw(number: int, arm: Arm) -> Panel | str:
        seen = visited[number]
        if reason := _no_course(seen, needs_predictions=False):
            return f"{arm.label}: {reason}"
        ratios = variance_ratios(arm, seen, windows(seen.step))
        (whole,) = variance_ratios(arm, seen, windows(seen.step, most=1))
        label = f"Chart for {arm.label}: predicted and realised variance of the gradient over steps."
        note = "No plan says what variance it expects." if whole.predicted is None else ""
        if whole.realised is not None:
            error = "" if whole.standard_error is None else f" ± {whole.standard_error:.3f}"
            expected = "" if whole.predicted is None else f", predicted {whole.predicted:.3f}"
            note = f"Over the whole run: realised {whole.realised:.3f}{error}{expected}."
        figure = course_figures.variance_figure(ratios, looks[number])
        return Panel(arm.label, figure, label, variance_table(ratios), note, number)

    return draw_each(Card("variance"), study.arms, draw)


def _no_course(seen: Visits, *, needs_predictions: bool = True) -> str:
    """Why an arm has no figure of its counts over steps; empty if it has one."""
    if not len(seen):
        return "no rollouts are logged yet."
    if len(windows(seen.step)) < SMALLEST_WINDOWS:
        return "a single step is logged."
    if (seen.n == seen.n[0]).all():
        return f"it gives every prompt {seen.n[0]} rollouts."
    if needs_predictions and np.isnan(seen.predicted).all():
        return "it makes no predictions."
    return ""
