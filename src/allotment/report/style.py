"""Colours on light and on dark ground, and the look of each arm, the same in every figure and in the legend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from allotment.report.data import Arm

GROUND = "#ffffff"
INK = "#1f2328"
FAINT = "#5f6873"
GRID = "#e6e8eb"
AXIS = "#b6bcc4"
LITTLE, MUCH = "#e8f1f8", "#0a5a8f"
"""The ends of the heat maps' scale."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"

PLANNERS = {
    "uniform": ("#4d4d4d", "circle", "●"),
    "vip": ("#0072b2", "square", "■"),
    "vip-paper": ("#d55e00", "diamond", "◆"),
    "vip-moments": ("#6a3d9a", "hexagram", "✶"),
    "vip-second-look": ("#5b7f00", "cross", "✚"),
    "vip-tokens": ("#c2255c", "hexagon", "⬢"),
    "inverse-accuracy": ("#009e73", "triangle-up", "▲"),
    "inverse-variance": ("#b5830a", "triangle-down", "▼"),
    "ridge": ("#56a3d9", "pentagon", "⬟"),
    "oracle": ("#b5588d", "star", "★"),
}
"""Colour, Plotly marker and its glyph: the colour-blind safe set of Okabe and Ito, the light ones darkened."""

OTHER = ("#7a5c3e", "x", "✖")
"""A planner that is not in the list."""

ON_DARK = {
    GROUND: "#161b22",
    INK: "#e6edf3",
    FAINT: "#9aa4af",
    GRID: "#30363d",
    AXIS: "#57606a",
    LITTLE: "#1c2733",
    MUCH: "#6cc0f5",
    "#4d4d4d": "#b8bec6",
    "#0072b2": "#4aa8e0",
    "#d55e00": "#ff8c42",
    "#6a3d9a": "#b794f6",
    "#5b7f00": "#a9d14f",
    "#c2255c": "#ff7aa2",
    "#009e73": "#2fc49a",
    "#b5830a": "#e0b23c",
    "#56a3d9": "#8cc8f2",
    "#b5588d": "#e08cc0",
    "#7a5c3e": "#c9a27c",
}
"""What the page puts in the place of each colour on a dark screen; the figures are written with the light ones."""

DASHES = (("solid", ""), ("dash", "6 4"), ("dot", "2 3"), ("dashdot", "6 3 2 3"))
"""Plotly's name and the SVG pattern: arms of one planner differ in their dash."""


@dataclass(frozen=True)
class Look:
    """How an arm is drawn."""

    colour: str
    """Hexadecimal, on light ground."""
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
        return tinted(self.colour, alpha)

    @property
    def css(self) -> str:
        """The colour for HTML, by the screen's ground."""
        return f"light-dark({self.colour}, {ON_DARK[self.colour]})"


def tinted(colour: str, alpha: float) -> str:
    """A hexadecimal colour with an opacity in [0, 1]."""
    return f"{colour}{round(255 * alpha):02x}"


def looks(arms: Sequence[Arm]) -> list[Look]:
    """One look per arm: colour and marker by planner, dash by its place among the arms of that planner.

    Planners without a colour of their own share one, and are told apart by dashes.
    """
    seen: Counter[str] = Counter()
    found = []
    for arm in arms:
        planner = arm.config.planner if arm.config.planner in PLANNERS else ""
        found.append(Look(*PLANNERS.get(planner, OTHER), *DASHES[seen[planner] % len(DASHES)]))
        seen[planner] += 1
    return found
