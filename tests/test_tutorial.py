"""The tutorial runs as it stands, and prints what it says; the notebook is made of the same pages.

The notebook is executed once, cell by cell. In an expected output ``...`` stands for anything, and decimal numbers may
differ by 5 %: sampling with torch may round otherwise on another machine.
"""

import copy
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "tutorial"
sys.path.append(str(TUTORIAL))
from notebook import FILE, notebook, pages  # noqa: E402

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
DECIMAL = re.compile(r"(\d+\.\d+)")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after its execution, by page."""
    made = copy.deepcopy(notebook())
    bin_folder = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    folder = tmp_path_factory.mktemp("tutorial")
    client = NotebookClient(made, timeout=900, startup_timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    return made


def printed(cell):
    """What a cell wrote to standard output."""
    return CONTROL.sub("", "".join(output.text for output in cell.outputs if output.get("name") == "stdout"))


def is_as_expected(found, expected):
    """Whether an output is the one that the page shows."""
    found, expected = (re.sub(r"\s+", " ", text).strip() for text in (found, expected))
    parts = DECIMAL.split(expected)
    pattern = "".join(
        DECIMAL.pattern if place % 2 else ".*".join(re.escape(piece) for piece in part.split("..."))
        for place, part in enumerate(parts)
    )
    match = re.fullmatch(pattern, found)
    return match is not None and all(
        abs(float(is_found) - float(shown)) <= 0.05 * abs(float(shown)) + 1e-9
        for is_found, shown in zip(match.groups(), parts[1::2], strict=True)
    )


@pytest.mark.parametrize(
    ("found", "expected", "fits"),
    [
        ("a 1.00 b", "a 1.02 b", True),
        ("a 1.00 b", "a 1.20 b", False),
        ("a 10 b", "a 11 b", False),
        ("a\nx\ny\nb", "a\n...\nb", True),
        ("a\nc", "a\n...\nb", False),
        ("a  b\n", "a b", True),
        ("a b c", "a b", False),
    ],
)
def test_what_is_as_expected(found, expected, fits):
    assert is_as_expected(found, expected) == fits


@pytest.mark.parametrize("page", [page.stem for page in pages()])
def test_a_page_prints_what_it_shows(executed, page):
    pairs = zip(notebook().cells, executed.cells, strict=True)
    shown = [(before, after) for before, after in pairs if before.metadata["page"] == page and before.get("outputs")]
    assert shown
    for before, after in shown:
        assert is_as_expected(printed(after), printed(before)), f"{after.source}\nprinted\n{printed(after)}"


def test_the_notebook_is_made_of_the_pages():
    made = nbformat.writes(notebook()) + "\n"
    assert FILE.read_text() == made, "run: python docs/tutorial/notebook.py"


@pytest.mark.parametrize("page", sorted(TUTORIAL.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_is_short(page):
    assert len(page.read_text().split()) < 1200
