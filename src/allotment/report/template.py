"""Pages: templates filled with what all of them share, and written in one go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from allotment.report.style import AXIS, FAINT, FONT, GRID, INK, ON_DARK, PLANNERS
from allotment.report.tables import cell_text
from allotment.run_logs.files import write_atomically

PLOTLY_JS = files("allotment.report") / "plotly" / "plotly-cartesian.min.js"
"""A third of the library that the Python package brings along, see the README beside it."""


def fill(name: str, filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """The whole page as one string of HTML that loads nothing from elsewhere."""
    loader = PackageLoader("allotment.report", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"cell": cell_text, **filters}
    return environment.get_template(name).render(
        font=FONT,
        on_dark=ON_DARK,
        colours={"ink": INK, "faint": FAINT, "grid": GRID, "axis": AXIS, "line": PLANNERS["vip"][0]},
        plotly_js=Markup(PLOTLY_JS.read_text("utf-8")),
        **values,
    )


def write_page(text: str, out: Path, usual_name: str) -> Path:
    """Write a page to ``out``, or under its usual name where that is a folder; parent folders are made. The file."""
    file = out / usual_name if out.is_dir() else out
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, text)
    return file
