"""docs/methods.md has a row for every planner and selector, and says what benchmarks/method_rows.py says."""

import json
import re
import runpy
from pathlib import Path

import pytest

from allotment.registry import OBJECTIVES, PLANNERS, SELECTORS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "methods.md"
ONLY_IN_THE_LAB = {"oracle"}  # knows every p: a bound, not a method


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(ROOT / "benchmarks" / "methods.py"))


def rows(text):
    """The cells of every row of a method, by its name."""
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:3] == "| `"]
    return {cells[0].strip("`"): cells for cells in table}


def test_every_name_of_the_command_line_has_a_row():
    names = set(PLANNERS.built_in) - ONLY_IN_THE_LAB | set(SELECTORS.built_in) | set(OBJECTIVES.built_in)
    assert set(rows(PAGE.read_text())) == names


def test_every_row_has_every_column_and_its_plot(benchmark):
    for name, cells in rows(PAGE.read_text()).items():
        is_objective = name in OBJECTIVES
        assert len(cells) == (5 if is_objective else 7)
        assert all(cells), name
        if is_objective and name not in benchmark["METHODS"]:
            continue
        plot = re.search(r"\((images/methods/.+\.svg)\)", cells[1 if is_objective else 4])
        assert (ROOT / "docs" / plot[1]).read_text().lstrip().startswith("<?xml")


def test_the_page_is_current(benchmark):
    numbers = json.loads((ROOT / "docs" / "images" / "methods.json").read_text())
    assert PAGE.read_text() == benchmark["page"](numbers), "run: python benchmarks/methods.py --write docs --missing"


def test_the_figure_names_every_method(benchmark):
    figure = (ROOT / "docs" / "images" / "methods-weights.svg").read_text()
    assert all(f">{name}</text>" in figure for name in benchmark["METHODS"])
