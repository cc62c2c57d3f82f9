"""The cards of the page: which figures there are to show, and why others are left out. Their words are in texts.py."""

from __future__ import annotations

from collections.abc import Sequence

from allotment.report import figures
from allotment.report.course import Visits
from allotment.report.course_cards import budget_card, history_card, variance_card
from allotment.report.data import Arm, Study
from allotment.report.judged import judged_card
from allotment.report.panel import Card, Panel, draw_each, no_predictions
from allotment.report.predictions import Predictions, bins, calibration_error, predictions
from allotment.report.style import Look
from allotment.report.summary import Axis, Measure
from allotment.report.tables import bins_table, learning_table
from allotment.report.weight_card import weight_card

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
            table = learning_table(study.arms, axis, measure)
            card.panels.append(Panel(f"{prompts}, {by}", specification, label, table))
    return card


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
        specification = figures.allocation_figure(found, looks[number], ideal=arm.config.estimator == "rloo")
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
