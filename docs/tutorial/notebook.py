"""The tutorial as a notebook: ``python docs/tutorial/notebook.py`` writes examples/tutorial.ipynb from the pages.

Blocks of Python and of the shell become cells; a block of text right after one is its output.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

HERE = Path(__file__).parent
FILE = HERE.parents[1] / "examples" / "tutorial.ipynb"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!http|#)")


def pages() -> list[Path]:
    """In the order of their numbers."""
    return sorted(HERE.glob("[0-9]_*.md"))


def cells(text: str) -> list[nbformat.NotebookNode]:
    """The cells of a page."""
    made, place = [], 0
    for block in BLOCK.finditer(text):
        made.append(new_markdown_cell(text[place : block.start()].strip()))
        place = block.end()
        language, code, output = block.groups()
        outputs = [] if output is None else [new_output("stream", name="stdout", text=output)]
        source = code if language == "python" else f"%%sh\n{code}"
        made.append(new_code_cell(source.strip("\n"), outputs=outputs))
    return [*made, new_markdown_cell(text[place:].strip())]


def notebook() -> nbformat.NotebookNode:
    """All pages, one after another; each cell knows its page."""
    made = new_notebook()
    for page in pages():
        for cell in cells(page.read_text()):
            if cell.cell_type == "markdown":
                cell.source = LINK.sub("](../docs/tutorial/", cell.source)
            cell.metadata["page"] = page.stem
            cell["id"] = f"cell-{len(made.cells)}"
            made.cells.append(cell)
    made.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return made


if __name__ == "__main__":
    nbformat.validate(notebook())
    FILE.write_text(nbformat.writes(notebook()) + "\n")
