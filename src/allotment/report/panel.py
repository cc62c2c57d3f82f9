"""What a card is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from allotment.report.data import Arm
from allotment.report.tables import Table
from allotment.report.texts import TEXTS, CardId, CardText


@dataclass(frozen=True)
class Panel:
    """One figure."""

    title: str
    specification: str
    """Plotly JSON."""
    label: str
    """What it shows, for those who cannot see it."""
    table: Table
    """Its numbers."""
    note: str = ""
    """Its numbers in words."""
    arm: int | None = None
    """Index of the one arm it is about; None if it shows all."""


@dataclass(frozen=True)
class Card:
    """A section of the page. Without panels it is one line that says why."""

    id: CardId
    panels: list[Panel] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    """Arms, or the whole card, that are left out, each with the reason."""

    @property
    def text(self) -> CardText:
        """The words around the figures."""
        return TEXTS[self.id]


def no_predictions(arm: Arm, *, any_rollouts: bool) -> str:
    """Why an arm has no figure of predictions."""
    return f"{arm.label} {'makes no predictions' if any_rollouts else 'has no rollouts logged yet'}."
