"""The reference has every public name, and reads docstrings as they are meant."""

import importlib
import logging
import re
import sys
from pathlib import Path

import griffe
import pytest

import allotment

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "reference"
sys.path.append(str(PAGES))
from docstrings import Docstrings  # noqa: E402

ROOMS = "planning prediction pricing allocation learning audit compare report integrations.slime"
PACKAGES = [f"allotment.{name}" for name in ROOMS.split()]


@pytest.fixture(scope="module")
def package():
    """The whole library as mkdocstrings reads it, and what was complained about."""
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger = logging.getLogger("griffe")
    logger.addHandler(handler)
    read = griffe.load("allotment", search_paths=[ROOT / "src"], extensions=griffe.load_extensions(Docstrings))
    logger.removeHandler(handler)
    return read, heard


@pytest.fixture(scope="module")
def shown():
    """What the pages name: packages, modules and single objects."""
    return set(re.findall(r"^::: (\S+)$", "\n".join(page.read_text() for page in PAGES.glob("*.md")), re.MULTILINE))


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_of_a_package_is_shown_with_a_docstring(package, shown, name):
    assert name in shown
    page = package[0][name.removeprefix("allotment.")]
    for public in importlib.import_module(name).__all__:
        thing = page[public].final_target if page[public].is_alias else page[public]
        assert thing.docstring is not None, f"{name}.{public}"


def test_every_public_name_of_the_library_has_a_line_and_a_page(package, shown):
    index = (PAGES / "index.md").read_text()
    links = dict(re.findall(r"\[\]\(\)\{#(allotment\.\w+)\}\[`\w+`\]\[([\w.]+)\]", index))
    assert {name.removeprefix("allotment.") for name in links} == set(allotment.__all__)
    for target in links.values():
        assert target in shown or target.rpartition(".")[0] in shown


def test_every_page_names_what_exists_and_is_in_the_menu(package, shown):
    for name in shown:
        assert package[0][name.removeprefix("allotment.")].docstring is not None, name
    menu = (ROOT / "mkdocs.yml").read_text()
    assert all(f"reference/{page.name}" in menu for page in PAGES.glob("*.md"))


def test_every_name_in_a_docstring_exists(package):
    assert [line for line in package[1] if "names nothing" in line] == []


def test_fields_say_what_their_help_says(package):
    fields = package[0]["integrations.trl.AllotmentArguments"].final_target.attributes
    assert fields["success_reward"].docstring.value.startswith("Name of the reward function whose value")
    assert all(field.docstring is not None for field in fields.values())
    assert str(fields["planner"].value) == "'vip'"


def test_roles_blocks_tables_and_pages_become_markdown(tmp_path):
    (tmp_path / "little.py").write_text(
        '"""See :func:`double`, :meth:`~little.Thing.half`, docs/audit.md::\\n\\n    double(2)\\n\\n'
        '==== ====\\nname what\\n==== ====\\na    b\\n     c\\n==== ====\\n\\n:class:`Nothing`\\n"""\\n'
        "def double(x): ...\\nclass Thing:\\n    def half(self): ...\\n".replace("\\n", "\n")
    )
    found = griffe.load("little", search_paths=[tmp_path], extensions=griffe.load_extensions(Docstrings))
    assert found.docstring.value.splitlines() == [
        'See <autoref optional identifier="little.double"><code>double</code></autoref>, '
        '<autoref optional identifier="little.Thing.half"><code>half</code></autoref>, [docs/audit.md](../audit.md):',
        "",
        "```python",
        "double(2)",
        "```",
        "",
        "| name | what |",
        "| --- | --- |",
        "| a | b c |",
        "",
        "`Nothing`",
    ]
