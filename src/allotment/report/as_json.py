"""The page's numbers as one JSON object, for notebooks and other programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from allotment.report.data import Study
from allotment.report.explorer import Explorer
from allotment.report.health import Check, health_table
from allotment.report.panel import Card

FORMAT = 1
"""Raised when a name changes its meaning or goes."""


def figures_json(study: Study, checks: Sequence[Check], cards: Sequence[Card], prompts: Explorer) -> dict[str, Any]:
    """``runs``, ``health``, ``prompts``, and each card's figures as ``columns`` and ``rows``, or why it is left out."""
    return {
        "format": FORMAT,
        "runs": [
            {"path": str(run.path), "planner": arm.label, "seed": run.config.seed, "steps": run.last_step}
            for arm in study.arms
            for run in arm.runs
        ],
        "health": health_table(checks).to_json(),
        "cards": [_card(card) for card in cards],
        "prompts": prompts.table.to_json(),
    }


def _card(card: Card) -> dict[str, Any]:
    return {
        "id": card.id,
        "title": card.text.title,
        "left_out": card.absent,
        "figures": [{"title": p.title, "label": p.label, "note": p.note, **p.table.to_json()} for p in card.panels],
    }
