"""What a card is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """Words beside it: its numbers, or how to read it."""
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


def draw_each(card: Card, arms: Sequence[Arm], draw: Callable[[int, Arm], Panel | str]) -> Card:
    """``card`` with what ``draw`` makes of each arm and its number: a figure, or the reason why there is none."""
    for number, arm in enumerate(arms):
        drawn = draw(number, arm)
        if isinstance(drawn, Panel):
            card.panels.append(drawn)
        else:
            card.absent.append(drawn)
    return card


def no_predictions(arm: Arm, *, any_rollouts: bool) -> str:
    """Why an arm has no figure of predictions."""
    return f"{arm.label} {'makes no predictions' if any_rollouts else 'has no rollouts logged yet'}."
