"""The cards of the page: which figures there are to show, and why others are left out. Their words are in panel.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from allotment.audit.figures import BINS
from allotment.report import figures
from allotment.report.data import Arm, Study
from allotment.report.judged import judged_card
from allotment.report.panel import Card, Cell, Panel, Table, bins_table, draw_each, no_predictions
from allotment.report.predictions import (
    Predictions,
    Visits,
    bins,
    calibration_error,
    gini,
    lorenz,
    mean_counts,
    prediction_history,
    predictions,
    variance_ratios,
    windows,
)
from allotment.report.style import Look
from allotment.report.summary import Axis, Measure, curve
from allotment.report.weights import weight_card

MEASURES: dict[Measure, str] = {"pool_success": "Training pool", "held_out_success": "Held-out prompts"}

AXES: dict[Axis, str] = {"rollouts_total": "by rollouts", "tokens_total": "by tokens", "seconds_total": "by time"}


def make_cards(study: Study, looks: Sequence[Look], visited: Sequence[Visits]) -> list[Card]:
    """All cards, in reading order, each drawn or with the reason why it is not; of learnt rewards, if there are."""
    forecasts = [predictions(arm) for arm in study.arms]
    judged = judged_card(study, looks)
    return [
        _learning(study, looks),
        *([] if judged is None else [judged]),
        _allocation(study, looks, forecasts),
        budget_card(study, looks, visited),
        _calibration(study, looks, forecasts),
        history_card(study, looks, visited),
        variance_card(study, looks, visited),
        weight_card(study, looks, visited),
    ]


def _learning(study: Study, looks: Sequence[Look]) -> Card:
    if not any(len(run.evaluations) > 1 for run in study.runs):
        return Card("learning", absent=["no run has been evaluated since its training began."])
    card = Card("learning")
    for axis, by in AXES.items():
        if axis == "seconds_total" and not all(run.timed for run in study.runs if run.evaluations):
            card.absent.append("the curves by time, since timing.jsonl of a run does not hold all its steps.")
            continue
        for measure, prompts in MEASURES.items():
            label = f"Line chart: success on the {prompts.lower()} against {figures.SPENT[axis]}, one line per planner."
            specification = figures.learning_figure(study.arms, looks, axis, measure)
            rows = [_curve_rows(arm, axis, measure) for arm in study.arms]
            table = Table.by_arm(("step", axis, measure, "standard error", "runs"), study.arms, rows)
            card.panels.append(Panel(f"{prompts}, {by}", specification, label, table))
    return card


def _curve_rows(arm: Arm, axis: Axis, measure: Measure) -> list[tuple[Cell, ...]]:
    found, runs = curve(arm, axis, measure), len(arm.counted)
    errors = [None] * len(found.step) if found.standard_error is None else found.standard_error.tolist()
    columns = zip(found.step, found.x.tolist(), found.mean.tolist(), errors, strict=True)
    return [(*row, runs) for row in columns]


def _allocation(study: Study, looks: Sequence[Look], forecasts: Sequence[Predictions]) -> Card:
    def draw(number: int, arm: Arm) -> Panel | str:
        found = forecasts[number]
        if not len(found):
            return no_predictions(arm, any_rollouts=found.without > 0)
        if found.equal_counts:
            return f"{arm.label} gives every prompt {found.n[0]} rollouts, whatever it predicts."
        drawn = min(len(found), figures.MOST_DOTS)
        which = f"all {len(found):,} dots" if drawn == len(found) else f"{drawn:,} of {len(found):,} dots"
        note = f"Counts from {found.n.min()} to {found.n.max()}, mean {found.n.mean():.1f}; {which} shown."
        label = f"Scatter plot for {arm.label}: rollouts given against predicted success probability."
        specification = figures.allocation_figure(found, looks[number], ideal=arm.config.priced == "rloo")
        table = bins_table(bins(found.only(~found.first)))
        return Panel(arm.label, specification, label, table, note + _without(found), number)

    return draw_each(Card("allocation"), study.arms, draw)


def _calibration(study: Study, looks: Sequence[Look], forecasts: Sequence[Predictions]) -> Card:
    def draw(number: int, arm: Arm) -> Panel | str:
        found = forecasts[number]
        if not len(found):
            return no_predictions(arm, any_rollouts=found.without > 0)
        note = (
            f"Mean absolute error {found.mean_absolute_error:.3f} per prompt; {found.chance_error:.3f} would remain "
            "from the chance of few rollouts if every prediction were exact. Points lie "
            f"{calibration_error(bins(found)):.3f} from the diagonal on average, weighted by rollouts."
        )
        label = f"Calibration plot for {arm.label}: observed against predicted success probability."
        specification = figures.calibration_figure(found, looks[number])
        return Panel(arm.label, specification, label, bins_table(bins(found)), note + _without(found), number)

    return draw_each(Card("calibration"), study.arms, draw)


def _without(found: Predictions) -> str:
    return f" {found.without:,} prompts without a prediction are left out." if found.without else ""


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
            figures.lorenz_figure(study.arms, looks, curves),
            "Lorenz curves: share of the rollouts against share of the prompts, one line per planner.",
            Table.by_arm(
                ("share of prompts", "share of rollouts"),
                study.arms,
                [zip(x.tolist(), y.tolist(), strict=True) for x, y in curves],
            ),
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
        figure = figures.heat_map(counts_BW, over)
        table = Table(
            ("steps", *(f"{b / BINS:g} to {(b + 1) / BINS:g}" for b in range(BINS))),
            [(f"{w.first} to {w.last}", *_known(column)) for w, column in zip(over, counts_BW.T.tolist(), strict=True)],
        )
        return Panel(arm.label, figure, label, table, arm=number)

    return draw_each(card, study.arms, draw)


def _known(numbers: Sequence[float]) -> list[float | None]:
    return [None if number != number else number for number in numbers]


def history_card(study: Study, looks: Sequence[Look], visited: Sequence[Visits]) -> Card:
    """Error and bias of the predictions over steps."""
    card = Card("history")
    histories = [prediction_history(seen, windows(seen.step)) for seen in visited]
    for arm, seen, history in zip(study.arms, visited, histories, strict=True):
        if not history:
            card.absent.append(no_predictions(arm, any_rollouts=len(seen) > 0))
    if not any(map(len, histories)):
        return card
    columns = ("first step", "last step", "prompts", "mean absolute error", "by chance", "observed − predicted")
    rows = [[(window.first, window.last, *rest) for window, *rest in history] for history in histories]
    table = Table.by_arm(columns, study.arms, rows)
    for bias, title in ((False, "Error beyond chance"), (True, "Too low or too high")):
        what = "observed minus predicted success" if bias else "mean absolute error of predictions beyond chance"
        figure = figures.history_figure(study.arms, looks, histories, bias=bias)
        card.panels.append(Panel(title, figure, f"Line chart: {what} over steps, one line per planner.", table))
    return card


OF_SUCCESSES = (
    " Its plans expect the variance of rewards, and what came is that of successes: where rewards have other values "
    "than 0 and 1, read realised_variance_ratio in metrics.jsonl or TRL's log."
)


def variance_card(study: Study, looks: Sequence[Look], visited: Sequence[Visits]) -> Card:
    """Predicted and realised variance of the gradient over steps."""

    def draw(number: int, arm: Arm) -> Panel | str:
        seen = visited[number]
        if reason := _no_course(seen, needs_predictions=False):
            return f"{arm.label}: {reason}"
        ratios = variance_ratios(arm, seen, windows(seen.step))
        (whole,) = variance_ratios(arm, seen, windows(seen.step, most=1))
        is_of_rewards = whole.predicted is not None and bool(np.isnan(seen.predicted).all())
        label = f"Chart for {arm.label}: predicted and realised variance of the gradient over steps."
        note = "No plan says what variance it expects." if whole.predicted is None else ""
        if whole.realised is not None:
            error = "" if whole.standard_error is None else f" ± {whole.standard_error:.3f}"
            expected = "" if whole.predicted is None else f", predicted {whole.predicted:.3f}"
            note = f"Over the whole run: realised {whole.realised:.3f}{error}{expected}."
        note += OF_SUCCESSES if is_of_rewards else ""
        figure = figures.variance_figure(ratios, looks[number])
        table = Table(
            ("first step", "last step", "predicted", "realised", "standard error"),
            [(r.window.first, r.window.last, r.predicted, r.realised, r.standard_error) for r in ratios],
        )
        return Panel(arm.label, figure, label, table, note, number)

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
