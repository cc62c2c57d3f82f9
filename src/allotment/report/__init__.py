"""From run directories to one self-contained HTML page.

    write_report([Path("runs/uniform-0"), Path("runs/vip-0")], Path("report.html"))

Importing this loads no torch. Writing a page needs plotly and jinja2 (``pip install 'allotment[report]'``); the numbers
behind it (:mod:`allotment.report.data`, :mod:`allotment.report.summary`, :mod:`allotment.report.predictions`) do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from allotment.errors import needs_extra
from allotment.lab.run_directory import write_atomically
from allotment.report.data import Arm, Study, read_study
from allotment.report.runs import Run

__all__ = ["Arm", "Run", "Study", "read_study", "write_report"]


def write_report(run_directories: Sequence[Path], out: Path) -> Path:
    """Write one HTML page about one or more runs, finished or not; it needs no network to be read.

    Args:
        run_directories: as ``allotment train`` leaves them, in any order; a repeated one counts once.
        out: the file to write (replaced if it exists), or a folder, which gets a ``report.html``. Parent folders
            are made.

    Returns:
        The file written, about 5 MB (the plotting library is inside).

    Raises:
        MissingExtraError: plotly or jinja2 is not installed.
        RunDirectoryError: no directory was given, one holds no run, or a log is damaged before its last line.
        ConfigError: a ``config.json`` does not fit this version.
    """
    with needs_extra("report"):
        import_module("plotly")
        import_module("jinja2")
    from allotment.report.page import render

    study = read_study(run_directories)
    file = out / "report.html" if out.is_dir() else out
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, render(study))
    return file
