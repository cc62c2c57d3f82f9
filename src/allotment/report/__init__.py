"""From run directories to one self-contained HTML file.

    write_report([Path("runs/uniform-0"), Path("runs/vip-0")], Path("report.html"))

Importing this loads no torch. Writing a page needs plotly and jinja2 (``pip install 'allotment[report]'``); the numbers
behind it (:mod:`allotment.report.data`, :mod:`allotment.report.summary`, :mod:`allotment.report.predictions`) do not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from allotment.errors import needs_extra
from allotment.report.data import Arm, Study, read_study
from allotment.report.run import Run
from allotment.run_logs.files import write_atomically

__all__ = ["Arm", "Run", "Study", "read_study", "write_report"]


def write_report(
    run_directories: Sequence[Path], out: Path, figures: Path | None = None, command: str | None = None
) -> Path:
    """Write one HTML page about one or more runs, finished or not; it needs no network to be read.

    Args:
        run_directories: as ``allotment train`` leaves them, or the ``output_dir`` of TRL runs that were started from
            Python, in any order; a repeated one counts once.
        out: the file to write (replaced if it exists), or a folder, which gets a ``report.html``. Parent folders
            are made.
        figures: a file for the numbers of all figures, as JSON.
        command: what was typed, to be named on the page.

    Returns:
        The page, about 2 MB (the plotting library is inside).

    Raises:
        MissingExtraError: plotly or jinja2 is not installed.
        RunDirectoryError: no directory was given, one holds no run, or a log is damaged before its last line.
        ConfigError: a ``config.json`` does not fit this version.
    """
    with needs_extra("report"):
        import_module("plotly")
        import_module("jinja2")
    from allotment.report.cards import make_cards
    from allotment.report.health import health
    from allotment.report.page import explorer, figures_json, render, write_page
    from allotment.report.predictions import visits
    from allotment.report.style import looks

    study = read_study(run_directories)
    visited = [visits(arm) for arm in study.arms]
    checks, cards, prompts = health(study), make_cards(study, looks(study.arms), visited), explorer(study, visited)
    if figures is not None:
        figures.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(figures, json.dumps(figures_json(study, checks, cards, prompts), indent=1) + "\n")
    return write_page(render(study, checks, cards, prompts, command), out, "report.html")
