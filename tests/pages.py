"""Blocks of code on the pages of the documentation."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
TITLED = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def titled(*pages):
    """The blocks with a title: title to text."""
    return {name: text for page in pages for _, name, text in TITLED.findall((DOCS / page).read_text())}


def toys():
    """The modules of the guides: a method of each kind from another package, file name to text."""
    pages = sorted(page.relative_to(DOCS) for page in (DOCS / "guides").glob("*.md"))
    return {name: text for name, text in titled(*pages).items() if name.startswith("toy_")}
