"""docs/methods.md has a row and a page for every planner, selector and objective, and both are current."""

import json
import re
import runpy
from pathlib import Path

import pytest

from allotment.registry import OBJECTIVES, PLANNERS, SELECTORS

DOCS = Path(__file__).parents[1] / "docs"
ONLY_IN_THE_LAB = {"oracle"}  # knows every p: a bound, not a method


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(DOCS.parent / "benchmarks" / "methods.py"))


def rows(text):
    """The cells of every row of a method, by its name."""
    table = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:4] == "| [`"
    ]
    return {re.match(r"\[`(.+)`\]", cells[0])[1]: cells for cells in table}


def test_every_name_of_the_command_line_has_a_row_and_a_page():
    names = set(PLANNERS.built_in) - ONLY_IN_THE_LAB | set(SELECTORS.built_in) | set(OBJECTIVES.built_in)
    assert set(rows((DOCS / "methods.md").read_text())) == names == {path.stem for path in (DOCS / "methods").iterdir()}


def test_every_row_has_every_column_and_fits_a_screen():
    for name, cells in rows((DOCS / "methods.md").read_text()).items():
        assert len(cells) == (3 if name in OBJECTIVES else 6)
        assert all(cells), name
        words = [re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", cell) for cell in cells]
        assert max(map(len, words)) <= 180, name


def test_every_measured_method_has_its_plot(benchmark):
    for name in benchmark["METHODS"]:
        assert f"(../images/methods/{name}.svg)" in (DOCS / "methods" / f"{name}.md").read_text()
        assert (DOCS / "images" / "methods" / f"{name}.svg").read_text().lstrip().startswith("<?xml")


def test_the_pages_are_current(benchmark):
    numbers = json.loads((DOCS / "images" / "methods.json").read_text())
    for path, text in benchmark["written"](numbers).items():
        assert (DOCS / path).read_text() == text, "run: python benchmarks/methods.py --write docs --missing"


def test_the_figure_names_every_method(benchmark):
    figure = (DOCS / "images" / "methods-weights.svg").read_text()
    assert all(f">{name}</text>" in figure for name in benchmark["METHODS"])
