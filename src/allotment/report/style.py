"""The look of each arm: colour, marker and dash, the same in every figure and in the legend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from allotment.report.data import Arm

INK = "#1f2328"
FAINT = "#5f6873"
GRID = "#e6e8eb"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"

PLANNERS = {
    "uniform": ("#4d4d4d", "circle", "●"),
    "vip": ("#0072b2", "square", "■"),
    "vip-paper": ("#d55e00", "diamond", "◆"),
    "inverse-accuracy": ("#009e73", "triangle-up", "▲"),
    "inverse-variance": ("#b5830a", "triangle-down", "▼"),
    "ridge": ("#56a3d9", "pentagon", "⬟"),
    "oracle": ("#b5588d", "star", "★"),
}
"""Colour, Plotly marker and its glyph: the colour-blind safe set of Okabe and Ito, the light ones darkened."""

OTHER = ("#7a5c3e", "x", "✖")
"""A planner that is not in the list."""

DASHES = (("solid", ""), ("dash", "6 4"), ("dot", "2 3"), ("dashdot", "6 3 2 3"))
"""Plotly's name and the SVG pattern: arms of one planner differ in their dash."""


@dataclass(frozen=True)
class Look:
    """How an arm is drawn."""

    colour: str
    """Hexadecimal."""
    symbol: str
    """Plotly's marker name."""
    glyph: str
    """The marker as a character."""
    dash: str
    """Plotly's dash name."""
    svg_dash: str
    """``stroke-dasharray``."""

    def tint(self, alpha: float) -> str:
        """The colour with an opacity in [0, 1]."""
        red, green, blue = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red},{green},{blue},{alpha})"


def looks(arms: Sequence[Arm]) -> list[Look]:
    """One look per arm: colour and marker by planner, dash by its place among the arms of that planner."""
    seen: Counter[str] = Counter()
    found = []
    for arm in arms:
        planner = arm.config.planner
        found.append(Look(*PLANNERS.get(planner, OTHER), *DASHES[seen[planner] % len(DASHES)]))
        seen[planner] += 1
    return found
